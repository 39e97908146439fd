"""Sees the attention calls of modules while they run, and hands over their operands.

Five ways, one a `Kernel`:

- SDPA: while a capture is open `torch.nn.functional.scaled_dot_product_attention` points to a function that passes every call on and finds
  on the call stack which module made it. No hook on the module, and no function mode, which would cost a Python call for every torch call
  in the block.
- OPEN: a `TorchFunctionMode` that sees scaled_dot_product_attention and every softmax over the last of three or more dimensions.
- INTERFACE: the same, and the function registered at transformers' attention interface is wrapped: see `interfaces`.
- MULTIHEAD: nothing is opened. An `nn.MultiheadAttention` is read from its own inputs and weights after it ran, because an open mode
  would switch its fast path off and move its output.
- ENCODER_LAYER: as SDPA, for the functions through which an `nn.TransformerEncoderLayer` calls its kernels: see `encoder_layers`.

Dynamo: a scope must not be traced; sessions run compiled modules eagerly.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import CodeType, FrameType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnhook.capture.following import Outcome
from attnhook.capture.operands import Operands
from attnhook.errors import UnsupportedModelError


class Listener(Protocol):
    """What is told about attention calls. All arguments by reference; the listener copies what it keeps.

    What goes wrong while it is told ends in `refused`, never in the model's forward.
    """

    def operands(self, call: Operands, kernel: str, outcome: Outcome | None = None) -> None:
        """An attention call with these operands ran, and this came out, where that was seen."""

    def refused(self, error: Exception) -> None:
        """An attention call ran that could not be recorded; the forward goes on, and reading the maps says why."""

    def logits(self, scores: Tensor, weights: Tensor) -> None:
        """A softmax over the last dimension of `scores`, `(..., queries, keys)`, gave `weights`, which are still in the autograd graph."""


class Scope(Protocol):
    """Something that watches between `open` and `close`."""

    def open(self) -> None:
        """Begin to watch, on this thread."""

    def close(self) -> bool:
        """Stop watching; False if it was not open on this thread."""


def sdpa_operands(  # noqa: PLR0917 (the arguments of scaled_dot_product_attention)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Operands:
    """The operands of one call of `scaled_dot_product_attention`; takes exactly its arguments.

    Args:
        query: `(..., queries, head_dim)`.
        key: `(..., keys, head_dim)`.
        value: As `key`; not kept.
        attn_mask: Boolean or additive mask.
        dropout_p: Ignored: rows are those before dropout.
        is_causal: Whether query i sees keys 0..i only.
        scale: Factor on the scores.
        enable_gqa: Implied by the shapes.

    Returns:
        The operands, by reference, in the shapes that the caller gave them.

    Raises:
        UnsupportedModelError: If the call's tensors are nested.
    """
    if query.is_nested:
        raise UnsupportedModelError(
            "an attention call cannot be recorded: expected queries of shape (batch, heads, tokens, head_dim), got nested ones. "
            "Capture other blocks with `blocks=`."
        )
    number = float(scale) if isinstance(scale, Tensor) else scale  # a tensor may change before the maps are read
    return Operands(*_broadcast(query, key), number, attn_mask, is_causal)


def _broadcast(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Expand batch axes of length 1, and queries of one head to the keys' heads, as the kernel does; fewer key heads are GQA's."""
    if query.dim() != key.dim() or query.dim() < 3 or query.shape[:-2] == key.shape[:-2]:
        return query, key
    axis = query.dim() - 3  # heads, where there are four dimensions
    common = torch.broadcast_shapes(query.shape[:axis], key.shape[:axis])  # type: ignore[no-untyped-call]
    heads = key.shape[axis] if query.shape[axis] == 1 else query.shape[axis]
    return query.expand(*common, heads, *query.shape[-2:]), key.expand(*common, *key.shape[axis:])


def report(listener: Listener, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
    """Tell a listener of a call of `scaled_dot_product_attention`: its operands and its outcome.

    Args:
        listener: Who is told.
        args: Of the call.
        kwargs: Likewise.
        output: What it gave.
    """
    call = sdpa_operands(*args, **kwargs)
    listener.operands(call, "scaled_dot_product_attention", _outcome(output, *args, **kwargs))


def _outcome(  # noqa: PLR0917 (the arguments of scaled_dot_product_attention)
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *_: Any,
    **__: Any,
) -> Outcome:
    return Outcome(value, output, dropout_p)


# --- functions that are called through an attribute of torch ------------------------------------------------------------------------------

_READ_VARIABLES = frozenset({"locals", "vars"})


def first_argument(frame: FrameType) -> Any:
    """What the function of a frame holds as its first argument: of a method, the object.

    Up to Python 3.12 reading a frame's variables fills the dictionary that `locals()` gave in that frame, and keeps what they are alive. So
    functions whose code asks for it are passed by.

    Args:
        frame: A frame.

    Returns:
        The argument; None where there is none, or it cannot be read.
    """
    code = frame.f_code
    if code.co_argcount and _READ_VARIABLES.isdisjoint(code.co_names):
        return frame.f_locals.get(code.co_varnames[0])
    return None


def _module_call() -> CodeType | None:
    """The code that runs a module's call, if what it holds as `self` can be read; else None, which no frame runs."""
    code: CodeType | None = getattr(nn.Module._call_impl, "__code__", None)
    readable = code is not None and code.co_varnames[:1] == ("self",) and _READ_VARIABLES.isdisjoint(code.co_names)
    return code if readable else None


_MODULE_CALL = _module_call()

# A listener, what the function was given, and what it gave.
Tell = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None]


class FunctionWatch:
    """Tells recorders of the calls that their modules make through a watched function.

    The module that makes a call is found on the call stack: the innermost frame whose first argument is one of the watched modules. That is
    what a pair of hooks around the module would say, for a third of their time.

    Args:
        listeners: Who is told, by `id` of the module; None for a module whose calls are of no interest, so that nobody looks further out.
        listens: Asked at each call whether it is to be told.
        tell: Tells a listener of a call: its arguments and its output.
        elsewhere: Told the frame of each call that none of these modules makes; None for nobody.
    """

    __slots__ = ("_elsewhere", "_listeners", "_listens", "_tell")

    def __init__(
        self,
        listeners: Mapping[int, Listener | None],
        listens: Callable[[], bool],
        tell: Tell,
        elsewhere: Callable[[FrameType | None], None] | None = None,
    ) -> None:
        self._listeners = listeners
        self._listens = listens
        self._tell = tell
        self._elsewhere = elsewhere

    def saw(self, caller: FrameType | None, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A call ran that the frame `caller` made; most often that is the forward of a watched module."""
        frame, listeners = caller, self._listeners
        while frame is not None:
            around = frame.f_back
            # A module's call holds the module as its forward does, and fewer variables: it is asked first.
            if (
                around is not None
                and around.f_code is _MODULE_CALL
                and (first := id(around.f_locals["self"])) in listeners
            ):
                break
            if (first := id(first_argument(frame))) in listeners:
                break
            frame = around
        else:
            if self._elsewhere is not None:
                self._elsewhere(caller)
            return
        listener = listeners[first]
        if listener is not None and self._listens():
            try:
                self._tell(listener, args, kwargs, output)
            except Exception as error:
                listener.refused(error)


lock = threading.Lock()


class WatchedFunction:
    """A function of torch that is called through an attribute: replaced, while anyone watches, by one that passes every call on.

    Args:
        home: The module that holds it.
        name: The attribute.
    """

    def __init__(self, home: Any, name: str) -> None:
        self._home, self._name = home, name
        self.watches: tuple[FunctionWatch, ...] = ()  # of the contexts open on all threads
        self._passing: Callable[..., Any] | None = None  # what stands there while anyone watches

    def _put(self) -> None:
        original = getattr(self._home, self._name)

        def passing(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if passing is self._passing:  # someone may have kept, and may still call, that of an earlier context
                for watch in self.watches:
                    watch.saw(sys._getframe(1), args, kwargs, output)
            return output

        self._passing, self._original = passing, original
        setattr(self._home, self._name, passing)

    def _take_back(self) -> None:
        if (
            getattr(self._home, self._name) is self._passing
        ):  # or someone else has put their own there, which is theirs to take back
            setattr(self._home, self._name, self._original)
        self._passing = None

    def watch(self, watch: FunctionWatch, stack: ExitStack) -> None:
        """Let `watch` see the calls until `stack` is closed."""
        stack.callback(self._unwatch, watch)
        with lock:
            if not self.watches:
                self._put()
            self.watches = (*self.watches, watch)

    def _unwatch(self, watch: FunctionWatch) -> None:
        with lock:
            self.watches = tuple(other for other in self.watches if other is not watch)
            if not self.watches and self._passing is not None:
                self._take_back()


SDPA = WatchedFunction(F, "scaled_dot_product_attention")


# --- anything else: a function mode -------------------------------------------------------------------------------------------------------

_BUILTIN_SDPA = torch._C._nn.scaled_dot_product_attention
_SOFTMAXES = frozenset({torch.softmax, F.softmax, torch.Tensor.softmax, torch.special.softmax})


class _WatchMode(TorchFunctionMode):
    """Passes every torch call on unchanged and reports attention calls, while it is the last of `opened`."""

    def __init__(self, listener: Listener, opened: "list[_WatchMode]") -> None:
        super().__init__()
        self.listener = listener
        self.opened = opened

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        if (func is _BUILTIN_SDPA or func in _SOFTMAXES) and self.opened[-1] is self:
            with torch._C.DisableTorchFunction():  # an outer capture's mode must not see our own softmax
                try:
                    if func is _BUILTIN_SDPA:
                        report(self.listener, args, kwargs or {}, result)
                    else:
                        self._softmax(result, *args, **(kwargs or {}))
                except Exception as error:
                    self.listener.refused(error)
        return result

    def _softmax(self, weights: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
        if weights.dim() >= 3 and dim in (-1, weights.dim() - 1):
            self.listener.logits(input.detach(), weights)


class OpenScope:
    """Watches every torch call on this thread through a function mode.

    Args:
        listener: Who is told.
        opened: The modes of scopes that stand for each other: a call is told to the innermost alone. None for no other scope.
    """

    def __init__(self, listener: Listener, opened: list[_WatchMode] | None = None) -> None:
        self._listener = listener
        self._opened: list[_WatchMode] = [] if opened is None else opened
        self._thread = 0
        self._modes: list[_WatchMode] = []

    def open(self) -> None:
        """Begin to watch, on this thread."""
        self.close()  # left open by a forward that KeyboardInterrupt ended
        self._thread = threading.get_ident()
        mode = _WatchMode(self._listener, self._opened)
        self._opened.append(mode)
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._modes.append(mode)

    def close(self) -> bool:
        """Stop watching; False if it was not open on this thread."""
        if not self._modes or self._thread != threading.get_ident():  # a mode is on its own thread's stack
            return False
        mode = self._modes.pop()
        self._opened.remove(mode)
        _leave(mode)
        return True


def _leave(mode: TorchFunctionMode) -> None:
    """Take a mode off this thread's stack, also from under modes that an aborted forward left above it."""
    above = []
    while torch._C._len_torch_function_stack() > 0:
        top = torch._C._pop_torch_function_stack()
        if top is mode:
            break
        above.append(top)
    for other in reversed(above):
        torch._C._push_on_torch_function_stack(other)
