"""Remembers what was measured: per preprocessing, as long as it lives and does not change."""

import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

_STRONG = 64  # preprocessings that cannot be referred to weakly, such as dicts, are held, no more than these
_SIZES = 4096
_DEEP = 6
_LONG = 256  # entries of a container that are read; a longer one is no setting
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, type(Ellipsis))

_SETTINGS = (str, int, float, bool, list, tuple, dict)

_weak: dict[Any, tuple[Any, "Memory"]] = {}
_strong: "OrderedDict[Any, tuple[Any, Memory]]" = OrderedDict()


class Memory:
    """What is known of one preprocessing in one state.

    Attributes:
        state: A fingerprint of its attributes.
        answers: Whatever was found, by key.
    """

    def __init__(self, state: Any) -> None:
        self.state = state
        self.answers: OrderedDict[Any, Any] = OrderedDict()

    def keep(self, key: Any, answer: Any) -> Any:
        """Remember an answer."""
        self.answers[key] = answer
        while len(self.answers) > _SIZES:
            self.answers.popitem(last=False)
        return answer


def memory_of(preprocess: Any) -> Memory:
    """Find what is known of a preprocessing."""
    state = state_of(preprocess)
    if isinstance(preprocess, Mapping):  # the same settings are the same preprocessing
        return _held(("mapping", state), preprocess, state)
    owner: Any = preprocess
    key: Any = id(preprocess)
    if isinstance(preprocess, types.MethodType):  # made anew at every access
        owner, key = preprocess.__self__, (id(preprocess.__self__), preprocess.__func__)
    try:
        there, memory = _weak.get(key, (None, None))
        if there is None or there() is not owner or memory is None or memory.state != state:
            memory = Memory(state)
            _weak[key] = weakref.ref(owner, lambda _: _weak.pop(key, None)), memory
    except TypeError:  # no weak references to it
        return _held(key, owner, state)
    return memory


def _held(key: Any, owner: Any, state: Any) -> Memory:
    there, memory = _strong.get(key, (owner, None))
    if memory is None or (there is not owner and not isinstance(owner, Mapping)) or memory.state != state:
        memory = Memory(state)
    _strong[key] = owner, memory
    _strong.move_to_end(key)
    while len(_strong) > _STRONG:
        _strong.popitem(last=False)
    return memory


def state_of(value: Any, depth: int = _DEEP) -> Any:  # noqa: PLR0911 (one return per kind)
    """Make a fingerprint of something's attributes, cheaply: numbers and words by value, what is large or unknown by identity."""
    if isinstance(value, _PLAIN):
        return value
    if depth == 0 or isinstance(value, torch.Tensor | np.ndarray | types.ModuleType):
        return id(value), getattr(value, "_version", None)
    if isinstance(value, Mapping | list | tuple | set | frozenset) and len(value) > _LONG:
        return id(value), len(value)
    if isinstance(value, Mapping):
        return tuple((state_of(key, depth - 1), state_of(one, depth - 1)) for key, one in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(state_of(one, depth - 1) for one in value)
    if isinstance(value, types.MethodType):
        return value.__func__, state_of(value.__self__, depth)
    if isinstance(value, types.FunctionType):
        cells = tuple(_content(cell, depth) for cell in value.__closure__ or ())
        defaults = (value.__defaults__, value.__kwdefaults__)
        return id(value), cells, state_of(defaults, depth - 1), tuple(_globals_of(value, depth - 1))
    if isinstance(value, torch.nn.Module) and any(True for _ in value.parameters()):
        return id(value)  # a model
    if isinstance(value, functools.partial):
        return state_of((value.func, value.args, value.keywords), depth - 1)
    own = getattr(value, "__dict__", None)
    return type(value), state_of(own, depth - 1) if own else id(value)


def _globals_of(function: types.FunctionType, depth: int) -> Iterator[Any]:
    """The settings among the globals that a function names, in its own module or as attributes of another, and its module's functions."""
    names, scope = function.__code__.co_names, function.__globals__
    for name in names:
        value = scope.get(name, _content)
        if isinstance(value, types.ModuleType):
            yield from (
                state_of(vars(value)[one], depth) for one in names if isinstance(vars(value).get(one), _SETTINGS)
            )
        elif isinstance(value, types.FunctionType):
            if value is not function and value.__module__ == function.__module__:
                yield state_of(value, depth)
        elif value is not _content and not callable(value):
            yield name, state_of(value, depth)


def _content(cell: Any, depth: int) -> Any:
    try:
        return state_of(cell.cell_contents, depth - 1)
    except ValueError:  # not yet filled
        return None
