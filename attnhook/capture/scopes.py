"""Who attends now: the modules of captured models that are running in this context, and what watches the calls that they make.

A scope is one run of one module, opened by a hook before it and closed by one after it; the innermost scope of a capture says whose calls
are seen. Scopes lie in a context variable, so that every task and every thread has its own. How a module's calls are seen:

- Through functions that are replaced while the scope is open, by ones that pass every call on: above all
  `torch.nn.functional.scaled_dot_product_attention`.
- `ModeScope`: through a `TorchFunctionMode`, which sees every call of scaled_dot_product_attention and every softmax over the last of three or
  more dimensions, however it is called. It adds a Python call to every torch call, so it is used only where replacing functions is not enough.
- Not at all: an `nn.MultiheadAttention` is read in its hook, and the calls of some modules are ignored.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from typing import Any, Protocol
from weakref import WeakSet

import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.overrides import TorchFunctionMode

from attnhook.capture import torch_internals
from attnhook.capture.forward_records import ForwardRecord
from attnhook.capture.operands import Operands
from attnhook.capture.output_gradients import Outcome
from attnhook.capture.shared_state import Call, ReplacedFunction
from attnhook.capture.torch_internals import remove_modes


class Listener(Protocol):
    """What is told of attention calls, everything by reference. What goes wrong in it ends in `refused`, never in the model's forward."""

    def operands(self, record: ForwardRecord, call: Operands, kernel: str, outcome: Outcome | None = None) -> None:
        """An attention call with these operands ran, and this came out, where that was seen."""

    def fused(self, record: ForwardRecord, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """A call of `scaled_dot_product_attention` gave `output`."""

    def softmax(self, record: ForwardRecord, logits: Tensor, weights: Tensor) -> None:
        """A softmax over the last dimension of `logits`, `(..., queries, keys)`, gave `weights`."""

    def refused(self, record: ForwardRecord, error: Exception) -> None:
        """A call could not be recorded."""


class Entry:
    """One time that a capture is entered, until it is left: its open scopes, in every context.

    It holds the `nn.MultiheadAttention` of each encoder layer, and who is told of its calls, too.
    """

    __slots__ = ("closed", "layers", "paused", "scopes")

    def __init__(self, layers: Sequence[tuple[nn.MultiheadAttention, Any]], paused: Callable[[], bool]) -> None:
        self.layers = layers
        self.paused = paused
        self.scopes: WeakSet[Scope] = WeakSet()  # what is open is held by its context, and by what it holds itself
        self.closed = False

    def close(self) -> None:
        """Close every scope that was left open, those of other contexts, too."""
        self.closed = True
        for scope in self.open_scopes():
            scope.close()
            # Another context may hold the scope for longer than the user holds the model and the maps.
            scope.record, scope.opener, scope.listener, scope.holds = ForwardRecord(), None, None, ()
        self.layers, self.paused = (), lambda: True

    def open_scopes(self) -> "list[Scope]":
        """All of them, while other threads open and close theirs."""
        while True:
            with suppress(RuntimeError):  # one has, in this moment
                return list(self.scopes)


class Scope:
    """One run of one module: of which capture, in which forward, opened by what, who is told of its calls, what is replaced meanwhile."""

    __slots__ = ("__weakref__", "entry", "holds", "listener", "opener", "record")

    def __init__(
        self,
        entry: Entry,
        record: ForwardRecord,
        opener: object = None,
        listener: Listener | None = None,
        holds: tuple[ReplacedFunction, ...] = (),
    ) -> None:
        self.entry = entry
        self.record = record
        self.opener = opener
        self.listener = listener
        self.holds = holds

    def open(self) -> None:
        """Begin: from now on this is the innermost scope of its capture in this context."""
        self.entry.scopes.add(self)  # first, so that whatever comes after is undone when the capture is left
        stack = _open.get()
        outer = innermost(self.entry)
        if outer is not None:
            outer.suspend()
        self._watch()
        _open.set((*stack, self))
        if self.entry.closed:  # by another thread, in this moment
            self.close()

    def close(self) -> None:
        """End, and with it whatever an aborted forward left open inside. Ending again changes nothing."""
        stack = _open.get()
        if stack and stack[-1] is self:
            stack = stack[:-1]
        elif self in stack:
            inner = [scope for scope in stack[stack.index(self) :] if scope.entry is self.entry]
            stack = tuple(scope for scope in stack if scope not in inner)
            for scope in inner[1:]:
                scope._unwatch()
        self._unwatch()
        _open.set(stack)
        self.entry.scopes.discard(self)
        outer = innermost(self.entry)
        if outer is not None and not self.entry.closed:
            outer.resume()

    def replace(self, record: ForwardRecord) -> None:
        """Let another record be that of this scope, which watches nothing, in this context alone."""
        other = Scope(self.entry, record, self.opener)
        self.entry.scopes.add(other)
        _open.set(tuple(other if scope is self else scope for scope in _open.get()))

    def suspend(self) -> None:
        """Stop watching while a scope inside is open."""

    def resume(self) -> None:
        """Watch again."""

    def _watch(self) -> None:
        for function in self.holds:
            function.hold(self)

    def _unwatch(self) -> None:
        """Stop watching; may be called again."""
        for function in self.holds:
            function.release(self)


_open: ContextVar[tuple[Scope, ...]] = ContextVar("attnhook_open_scopes", default=())


def innermost(entry: Entry, opener: object = None) -> Scope | None:
    """The innermost scope of a capture in this context, opened by `opener` or, if that is None, by anything."""
    for scope in reversed(_open.get()):
        if scope.entry is entry and (opener is None or scope.opener is opener):
            return scope
    return None


def innermost_of_each() -> list[Scope]:
    """The innermost scope of every capture in this context that is not paused."""
    found: list[Scope] = []
    for scope in reversed(_open.get()):
        if all(scope.entry is not other.entry for other in found):
            found.append(scope)
    return [scope for scope in found if not scope.entry.paused()]


def forget_closed() -> None:
    """Forget what captures that were left have left behind in this context: left in another one, or by an interrupt."""
    remove_modes(lambda mode: isinstance(mode, _Watch) and mode.scope.entry.closed)
    stack = _open.get()
    if any(scope.entry.closed for scope in stack):
        _open.set(tuple(scope for scope in stack if not scope.entry.closed))


# --- scaled_dot_product_attention, as long as it is called by its attribute ----------------------------------------------------------------


def attribute(home: Any, name: str, call: Call) -> ReplacedFunction:
    """A function of torch that is called through an attribute of a module, to be held; `call` as for `ReplacedFunction`."""
    return ReplacedFunction(lambda: getattr(home, name), lambda function: setattr(home, name, function), call)


def _sdpa_called(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with SDPA.aside() if any(map(_has_own_functions, (*args, *kwargs.values()))) else nullcontext():
        output = original(*args, **kwargs)
    for scope in innermost_of_each():
        if scope.listener is not None and SDPA in scope.holds:
            try:
                scope.listener.fused(scope.record, args, kwargs, output)
            except Exception as error:
                scope.listener.refused(scope.record, error)
    return output


def _has_own_functions(given: Any) -> bool:
    """Whether it is a tensor whose class brings functions of its own, as the masks of `torch.nn.attention.bias` do."""
    kind = type(given)
    if kind is Tensor or not isinstance(given, Tensor):
        return False
    return getattr(kind.__torch_function__, "__func__", None) not in {None, Tensor.__torch_function__.__func__}  # type: ignore[attr-defined]


SDPA = attribute(F, "scaled_dot_product_attention", _sdpa_called)


# --- anything else: a function mode -------------------------------------------------------------------------------------------------------


class _Watch(TorchFunctionMode):
    """Passes every call of torch on unchanged, and tells a scope of those that attend."""

    def __init__(self, scope: "ModeScope") -> None:
        super().__init__()
        self.scope = scope

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        if (func is torch_internals.SDPA or func in torch_internals.SOFTMAXES) and not is_compiling():
            with torch_internals.torch_functions_disabled():  # another capture's mode must not see our own softmax
                self.scope.tell(func is torch_internals.SDPA, args, kwargs or {}, result)
        return result


class ModeScope(Scope):
    """One run of a module of which every call of torch is seen; `told` counts those that attend."""

    __slots__ = ("_above", "_mode", "told")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._mode = _Watch(self)
        self._above: int | None = None
        self.told = 0

    def _watch(self) -> None:
        super()._watch()
        torch_internals.put_on(self._mode)

    def _unwatch(self) -> None:
        torch_internals.take_off(self._mode)
        super()._unwatch()

    def suspend(self) -> None:
        """Take the mode off: it would switch off the fast path of an `nn.MultiheadAttention` inside, and move its output."""
        self._above = torch_internals.take_off(self._mode)

    def resume(self) -> None:
        """Put the mode on again, where it was."""
        if self._above is not None:
            torch_internals.put_on(self._mode, self._above)
            self._above = None

    def tell(self, fused: bool, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """A call of scaled_dot_product_attention, or of a softmax, was seen."""
        if (
            self.listener is None or self.entry.closed or self.entry.paused()
        ):  # closed on another thread than its mode is on
            return
        try:
            if fused:
                self.told += 1
                self.listener.fused(self.record, args, kwargs, result)
            else:
                self._softmax(result, *args, **kwargs)
        except Exception as error:
            self.listener.refused(self.record, error)

    def _softmax(self, weights: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
        if self.listener is not None and weights.dim() >= 3 and dim in (-1, weights.dim() - 1):
            self.told += 1
            self.listener.softmax(self.record, input.detach(), weights)
