"""What 0.1 called otherwise: old names work with a `DeprecationWarning` until 0.3. Where an old line cannot run, its error gives the new one."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from enum import EnumType
from operator import attrgetter
from typing import Any, TypeVar

_Called = TypeVar("_Called", bound=Callable[..., Any])  # a function, or a class, which is called to make its objects
_Kind = TypeVar("_Kind", bound=type)

IMAGING: Mapping[str, str] = {
    "contour_overlay": 'overlay(photo, patch_map, where, style="contours")',
    "mask_overlay": 'overlay(photo, mask, where, style="mask")',
    "patch_box": "patch_map.box(where, patch)",
    "patch_edges": "patch_map.edges(where)",
    "patch_overlay": 'overlay(photo, patch_map, where, style="patches")',
}
"""What replaced the functions that `attnhook.imaging` had."""

WORKFLOWS = (
    "attnhook.workflows was removed in attnhook 0.2: import public names from attnhook, the callbacks from "
    "attnhook.monitoring.integrations.lightning and attnhook.monitoring.integrations.transformers, and Writer from attnhook.monitoring.writers."
)
"""What replaced `attnhook.workflows`."""

ADAPTERS = (
    "attnhook.capture.adapters was removed in attnhook 0.2: import ModelAnatomy, Readout and register_adapter from attnhook, and SequenceInfo, "
    "which was SeenTokens, from attnhook.capture.anatomy."
)
"""What replaced `attnhook.capture.adapters`."""


def renamed_arguments(**new: str) -> Callable[[_Called], _Called]:
    """Decorate a function or class of which some keyword arguments have other names now."""

    def decorate(called: _Called) -> _Called:
        function = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in new.keys() & kwargs.keys():
                _warn(f"{old}=", f"{new[old]}=")
                kwargs = {new[old]: kwargs.pop(old)} | kwargs
            return function(*args, **kwargs)

        if isinstance(called, type):
            called.__init__ = call  # type: ignore[misc]
            return called
        return call  # type: ignore[return-value]

    return decorate


def replaced_arguments(instead: str, *names: str, most: int) -> Callable[[_Kind], _Kind]:
    """Decorate a class that has no arguments of these names any more, and at most so many without a name."""

    def decorate(kind: _Kind) -> _Kind:
        make = kind.__init__  # type: ignore[misc]

        @functools.wraps(make)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            old = [f"{name}=" for name in names if name in kwargs]
            if old or len(args) > most:
                got = ", ".join(old) or f"{len(args)} arguments without names"
                raise TypeError(
                    f"{kind.__name__} takes other arguments since attnhook 0.2: expected {instead}, got {got}."
                )
            make(self, *args, **kwargs)

        kind.__init__ = init  # type: ignore[misc]
        return kind

    return decorate


class _Old:
    """An attribute of 0.1: it gives the one at `path`, or if there is none says what to do instead."""

    def __init__(self, name: str, path: str, instead: str) -> None:
        self.name, self.path, self.instead = name, path, instead

    def __get__(self, owner: Any, kind: type) -> Any:
        if self.instead:
            raise AttributeError(f"{kind.__name__}.{self.name} was removed in attnhook 0.2: {self.instead}.")
        if owner is None and not isinstance(kind, EnumType):  # someone looks at the class, such as `inspect.getmembers`
            return self
        found = attrgetter(self.path)(kind if owner is None else owner)
        _warn(f"{kind.__name__}.{self.name}", f".{self.path}")
        return found


def old_attributes(renamed: Mapping[str, str], gone: Mapping[str, str] | None = None) -> Callable[[_Kind], _Kind]:
    """Decorate a class of which some attributes have other names or paths now, and others are gone, with what to do instead."""

    def decorate(kind: _Kind) -> _Kind:
        for name, path in renamed.items():
            setattr(kind, name, _Old(name, path, ""))
        for name, instead in (gone or {}).items():
            setattr(kind, name, _Old(name, "", instead))
        return kind

    return decorate


def named_fields(kind: _Kind) -> _Kind:
    """Decorate a class whose fields were the entries of a dict."""

    def __getitem__(self: Any, name: str) -> Any:
        if name not in inspect.get_annotations(kind):
            raise KeyError(name)
        _warn(f"[{name!r}]", f".{name}")
        return getattr(self, name)

    setattr(kind, "__getitem__", __getitem__)  # noqa: B010 (unknown to type checkers)
    return kind


def was_a_tensor(kind: _Kind) -> _Kind:
    """Decorate the class that is returned where 0.1 returned its tensor, `values`: what only a tensor can do says so."""
    from torch import Tensor

    def problem(used: str) -> str:
        return (
            f"a {kind.__name__} is not a tensor: expected .values, got {used}. Since attnhook 0.2, methods return a {kind.__name__}; its tensor "
            "is .values."
        )

    def __getattr__(self: Any, name: str) -> Any:
        tensors = not name.startswith("__") and hasattr(Tensor, name)
        raise AttributeError(problem(f".{name}") if tensors else f"{kind.__name__!r} object has no attribute {name!r}")

    def __torch_function__(function: Any, *_: Any, **__: Any) -> Any:
        raise TypeError(problem(f"torch.{getattr(function, '__name__', function)}"))

    def refused(sign: str) -> Callable[..., Any]:
        def operate(*_: Any) -> Any:
            raise TypeError(problem(f"the operator {sign}"))

        return operate

    setattr(kind, "__getattr__", __getattr__)  # noqa: B010 (here and below: unknown to type checkers)
    setattr(kind, "__torch_function__", staticmethod(__torch_function__))  # noqa: B010
    for name, sign in {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "matmul": "@", "pow": "**"}.items():
        setattr(kind, f"__{name}__", refused(sign))
        setattr(kind, f"__r{name}__", refused(sign))
    for name, sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
        setattr(kind, f"__{name}__", refused(sign))
    return kind


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"{old} is {new} since attnhook 0.2, and will be removed in 0.3. Write {new}", DeprecationWarning, stacklevel=3
    )
