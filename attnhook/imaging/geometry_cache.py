"""Remembers what was measured: per preprocessing, as long as it lives and does not change."""

import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

_STRONG = 64  # preprocessings that cannot be referred to weakly, such as dicts, are held; no more than these
_ANSWERS = 4096
_DEEP = 6
_LONG = 256  # entries of a container that are read; a longer one is no setting
_LARGE = 1 << 16  # bytes of an array that are read
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, type(Ellipsis))
_SETTINGS = (str, int, float, bool, list, tuple, dict)
_MISSING = object()
_EMPTY = types.CellType()

_weak: dict[Any, tuple[Any, "Cache"]] = {}
_strong: dict[Any, tuple[Any, "Cache"]] = {}


class Cache(OrderedDict[Any, Any]):
    """What is known of a preprocessing in one state; the oldest answers are dropped first."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def __setitem__(self, key: Any, answer: Any) -> None:
        super().__setitem__(key, answer)
        if len(self) > _ANSWERS:
            self.popitem(last=False)


def cache_of(preprocess: Any) -> Cache:
    """Find what is known of a preprocessing."""
    state = state_of(preprocess)
    owner: Any = preprocess
    key: Any = id(preprocess)
    if isinstance(preprocess, Mapping):  # the same settings are the same preprocessing
        owner, key = None, state
    elif isinstance(preprocess, types.MethodType):  # made anew at every access
        owner, key = preprocess.__self__, (id(preprocess.__self__), preprocess.__func__)
    caches, reference = _weak, lambda: owner
    try:
        reference = weakref.ref(owner, lambda _: _weak.pop(key, None))
    except TypeError:  # no weak references to it
        caches = _strong
    there, cache = caches.pop(key, (reference, None))
    if cache is None or there() is not owner or cache.state != state:
        cache = Cache(state)
    caches[key] = reference, cache
    while len(_strong) > _STRONG:
        del _strong[next(iter(_strong))]
    return cache


def state_of(value: Any, depth: int = _DEEP) -> Any:  # noqa: PLR0911 (one return per kind)
    """Make a fingerprint of something's attributes, cheaply: numbers, words and small arrays by value, the rest by identity."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.ndarray) and value.nbytes <= _LARGE:
        return value.shape, value.dtype.str, value.tobytes()
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
        held = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        own = state_of((*held, value.__defaults__, value.__kwdefaults__), depth)
        return id(value), own, tuple(_globals_of(value, depth - 1))
    if isinstance(value, torch.nn.Module) and any(True for _ in value.parameters()):
        return id(value)  # a model
    if isinstance(value, functools.partial):
        return state_of((value.func, value.args, value.keywords), depth - 1)
    own = object.__getstate__(value)  # __dict__, and __slots__ where there are any
    return type(value), state_of(own, depth - 1) if own else id(value)


def _globals_of(function: types.FunctionType, depth: int) -> Iterator[Any]:
    """The settings among the globals that a function names, in its own module or as attributes of another, and its module's functions."""
    names, scope = function.__code__.co_names, function.__globals__
    for name in names:
        value = scope.get(name, _MISSING)
        if isinstance(value, types.ModuleType):
            own = vars(value)
            yield from (state_of(own[one], depth) for one in names if isinstance(own.get(one), _SETTINGS))
        elif isinstance(value, types.FunctionType):
            if value is not function and value.__module__ == function.__module__:
                yield state_of(value, depth)
        elif value is not _MISSING and not callable(value):
            yield name, state_of(value, depth)
