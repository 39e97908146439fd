"""Which modules of captured models are running in this context, and what watches the calls that they make.

Hooks open a scope before a module and close it after; the innermost scope of a capture, a context variable, says whose calls are seen.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode

from attnhook.capture import torch_internals
from attnhook.capture.forward_records import ForwardRecord
from attnhook.capture.shared_state import Call, ReplacedFunction

Listener = Any
"""Receives attention calls, by reference: a `SiteRecorder`, or an object with its methods. Errors go to `refused`, not into the forward."""


@dataclass(slots=True, eq=False)
class ActiveCapture:
    """One `with` block of a capture: its open scopes, in every context."""

    by_weights: Mapping[Any, Any]  # `nn.MultiheadAttention`s recognised by their weights, and their listeners
    paused: Callable[[], bool]
    scopes: "WeakSet[Scope]" = field(default_factory=WeakSet)  # contexts, and what a scope holds, keep it alive
    closed: bool = False

    def close(self) -> None:
        """Close every scope that was left open, also those of other contexts."""
        self.closed = True
        for scope in self.open_scopes():
            scope.close()
            # Another context may hold the scope for longer than the user holds the model and the maps.
            scope.record, scope.opener, scope.listener, scope.holds = ForwardRecord(), None, None, ()
        self.by_weights, self.paused = {}, lambda: True

    def open_scopes(self) -> "list[Scope]":
        """All of them, while other threads open and close theirs."""
        while True:
            with suppress(RuntimeError):  # another thread has, in this moment
                return list(self.scopes)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Scope:
    """One run of one module: of which capture, in which forward, opened by what, its listener, and the functions replaced meanwhile."""

    capture: ActiveCapture
    record: ForwardRecord
    opener: object = None
    listener: Listener | None = None
    holds: tuple[ReplacedFunction, ...] = ()

    def open(self) -> None:
        """Begin: from now on this is the innermost scope of its capture in this context."""
        self.capture.scopes.add(self)  # first, so that whatever comes after is undone when the capture is left
        stack = _open.get()
        outer = innermost(self.capture)
        if outer is not None:
            outer.suspend()
        self._watch()
        _open.set((*stack, self))
        if self.capture.closed:  # by another thread, in this moment
            self.close()

    def close(self) -> None:
        """End, and with it whatever an aborted forward left open inside. May be repeated."""
        stack = _open.get()
        if stack and stack[-1] is self:
            stack = stack[:-1]
        elif self in stack:
            inner = [scope for scope in stack[stack.index(self) :] if scope.capture is self.capture]
            stack = tuple(scope for scope in stack if scope not in inner)
            for scope in inner[1:]:
                scope._unwatch()
        self._unwatch()
        _open.set(stack)
        self.capture.scopes.discard(self)
        outer = innermost(self.capture)
        if outer is not None and not self.capture.closed:
            outer.resume()

    def replace(self, record: ForwardRecord) -> None:
        """Go on with another record in this context; others that share this scope (threads of one task) keep it."""
        other = type(self)(self.capture, record, self.opener)
        self.capture.scopes.add(other)
        _open.set(tuple(other if scope is self else scope for scope in _open.get()))

    def suspend(self) -> None:
        """Stop watching while a scope inside is open."""

    def resume(self) -> None:
        """Watch again."""

    def _watch(self) -> None:
        for function in self.holds:
            function.hold(self)

    def _unwatch(self) -> None:
        """Stop watching; may be repeated."""
        for function in self.holds:
            function.release(self)


_open: ContextVar[tuple[Scope, ...]] = ContextVar("attnhook_open_scopes", default=())


def innermost(capture: ActiveCapture, opener: object = None) -> Scope | None:
    """The innermost scope of a capture in this context, opened by `opener` if given."""
    for scope in reversed(_open.get()):
        if scope.capture is capture and (opener is None or scope.opener is opener):
            return scope
    return None


def innermost_of_each() -> list[Scope]:
    """The innermost scope of every capture in this context that is not paused."""
    found: dict[ActiveCapture, Scope] = {}
    for scope in reversed(_open.get()):
        found.setdefault(scope.capture, scope)
    return [scope for capture, scope in found.items() if not capture.paused()]


def forget_closed() -> None:
    """Remove what closed captures left behind in this context, because they were left in another one or by an interrupt."""
    torch_internals.remove_modes(lambda mode: isinstance(mode, _WatchMode) and mode.scope.capture.closed)
    _open.set(tuple(scope for scope in _open.get() if not scope.capture.closed))


def attribute(home: Any, name: str, call: Call) -> ReplacedFunction:
    """A function of torch that callers look up as an attribute of a module; `call` as for `ReplacedFunction`."""
    return ReplacedFunction(lambda: getattr(home, name), lambda function: setattr(home, name, function), call)


def _sdpa_called(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with SDPA.set_aside() if any(map(_has_torch_function, (*args, *kwargs.values()))) else nullcontext():
        output = original(*args, **kwargs)
    for scope in innermost_of_each():
        if scope.listener is not None and SDPA in scope.holds:
            try:
                scope.listener.fused(scope.record, args, kwargs, output)
            except Exception as error:
                scope.listener.refused(scope.record, error)
    return output


def _has_torch_function(given: Any) -> bool:
    """Whether it is a tensor whose class overrides torch's functions, as the masks of `torch.nn.attention.bias` do."""
    kind = type(given)
    if kind is Tensor or not isinstance(given, Tensor):
        return False
    return getattr(kind.__torch_function__, "__func__", None) not in {None, Tensor.__torch_function__.__func__}  # type: ignore[attr-defined]


SDPA = attribute(F, "scaled_dot_product_attention", _sdpa_called)


class _WatchMode(TorchFunctionMode):
    """Passes every call of torch on, and tells a scope of those that attend: slower than replacing functions, for where that is not enough."""

    def __init__(self, scope: "ModeScope") -> None:
        super().__init__()
        self.scope = scope

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        if not is_compiling() and (func is torch_internals.SDPA or func in torch_internals.SOFTMAXES):
            with torch_internals.torch_functions_disabled():  # another capture's mode must not see our own softmax
                self.scope.report(func is torch_internals.SDPA, args, kwargs or {}, result)
        return result


class ModeScope(Scope):
    """One run of a module of which every call of torch is seen; `reported` counts those that attend."""

    __slots__ = ("_above", "_mode", "reported")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._mode = _WatchMode(self)
        self._above: int | None = None
        self.reported = 0

    def _watch(self) -> None:
        super()._watch()
        torch_internals.push_mode(self._mode)

    def _unwatch(self) -> None:
        torch_internals.pop_mode(self._mode)
        super()._unwatch()

    def suspend(self) -> None:
        """Pop the mode: it would switch off the fast path of an `nn.MultiheadAttention` inside, and move its output."""
        self._above = torch_internals.pop_mode(self._mode)

    def resume(self) -> None:
        """Push the mode again, where it was."""
        if self._above is not None:
            torch_internals.push_mode(self._mode, self._above)
            self._above = None

    def report(self, fused: bool, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Record a call of scaled_dot_product_attention, or of a softmax."""
        capture, listener = self.capture, self.listener
        if listener is None or capture.closed or capture.paused():  # closed by another thread than the mode's
            return
        try:
            if fused:
                self.reported += 1
                listener.fused(self.record, args, kwargs, result)
            else:
                self._softmax(listener, result, *args, **kwargs)
        except Exception as error:
            listener.refused(self.record, error)

    def _softmax(
        self, listener: Listener, weights: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any
    ) -> None:
        if weights.dim() >= 3 and dim in (-1, weights.dim() - 1):
            self.reported += 1
            listener.softmax(self.record, input.detach(), weights)
