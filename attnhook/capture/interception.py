"""Sees the attention call that happens between `open` and `close` on one thread, and hands over its operands.

Four ways, from cheap to thorough, one a `Kernel`:

- SDPA: for the duration of the scope `torch.nn.functional.scaled_dot_product_attention` points to a function that passes every call on and
  tells the scopes open on *this thread*. Two attribute writes a block, where a function mode costs a Python call for every torch call in it.
- OPEN: a `TorchFunctionMode` that sees scaled_dot_product_attention and every softmax over the last of four dimensions.
- INTERFACE: the same, and the function registered at transformers' attention interface is wrapped, so that a kernel which calls neither (a
  custom or compiled one) is seen with its operands. Those are believed only if they reproduce the kernel's own output.
- MULTIHEAD: nothing is opened. An `nn.MultiheadAttention` is read from its own inputs and weights after it ran, because an open mode
  would switch its fast path off and move its output.

Dynamo: a scope must not be traced; sessions run compiled modules eagerly.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnhook.capture.adapters import Kernel
from attnhook.capture.softmax_matrix import Operands, SoftmaxMatrix, quiet_arithmetic
from attnhook.errors import AttnhookError, UnsupportedModelError


class Listener(Protocol):
    """What is told about attention calls. All arguments by reference; the listener copies what it keeps."""

    def operands(self, call: Operands, kernel: str) -> None:
        """An attention call with these operands ran."""

    def refused(self, error: AttnhookError) -> None:
        """An attention call ran that cannot be recorded; the forward goes on, and reading the maps raises this."""

    def logits(self, scores: Tensor, weights: Tensor) -> None:
        """A softmax over `scores` `(batch, heads, queries, keys)` gave `weights`."""


class Scope(Protocol):
    """Something that watches between `open` and `close`."""

    def open(self) -> None:
        """Begin to watch, on this thread."""

    def close(self) -> None:
        """Stop watching; harmless if not open."""


def scope_for(module: nn.Module, kernel: Kernel, listener: Listener) -> Scope | None:
    """The cheapest scope that sees the attention of a module.

    Args:
        module: The attention module.
        kernel: How it computes attention.
        listener: Told about each call.

    Returns:
        The scope; None for `Kernel.MULTIHEAD`, which needs none.
    """
    if kernel is Kernel.MULTIHEAD:
        return None
    if kernel is Kernel.SDPA:
        return _FusedScope(listener)
    if kernel is Kernel.INTERFACE:
        return _InterfaceScope(module, listener)
    return _OpenScope(listener)


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
        query: `(batch, heads, queries, head_dim)`, or without heads.
        key: `(batch, key heads, keys, head_dim)`, or without heads.
        value: As `key`; not kept.
        attn_mask: Boolean or additive mask.
        dropout_p: Ignored: rows are those before dropout.
        is_causal: Whether query i sees keys 0..i only.
        scale: Factor on the scores.
        enable_gqa: Implied by the shapes.

    Returns:
        The operands, by reference, always with four dimensions.

    Raises:
        UnsupportedModelError: If the call's tensors have neither three nor four dimensions, or are nested.
    """
    if query.is_nested or query.dim() not in (3, 4):
        shape = "nested" if query.is_nested else tuple(query.shape)
        raise UnsupportedModelError(
            "an attention call cannot be recorded: expected queries of shape (batch, heads, tokens, head_dim), "
            f"got {shape}. Capture other blocks with `blocks=`."
        )
    if query.dim() == 3:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
        if attn_mask is not None and attn_mask.dim() == 3:
            attn_mask = attn_mask.unsqueeze(1)
    return Operands(query, key, scale, attn_mask, is_causal)


def _report(listener: Listener, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        call = sdpa_operands(*args, **kwargs)
    except UnsupportedModelError as error:
        listener.refused(error)
    else:
        listener.operands(call, "scaled_dot_product_attention")


# --- SDPA: the attribute of torch.nn.functional -------------------------------------------------------------------------------------------


class _Watchers(threading.local):
    """The scopes that are open on this thread."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.interfaces: list[_InterfaceScope] = []


_watchers = _Watchers()
_lock = threading.Lock()
_open_scopes = 0  # on all threads together: the attribute is replaced while there are any
_original: Callable[..., Any] = F.scaled_dot_product_attention  # what it held before


def _passing_sdpa(*args: Any, **kwargs: Any) -> Any:
    output = _original(*args, **kwargs)
    listeners = _watchers.listeners
    if listeners:
        for listener in tuple(listeners):
            _report(listener, args, kwargs)
    return output


class _FusedScope:
    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._depth = 0

    def open(self) -> None:
        global _open_scopes, _original  # noqa: PLW0603 (one process has one torch.nn.functional)
        self.close()  # left open by a forward that KeyboardInterrupt ended
        self._depth += 1
        _watchers.listeners.append(self._listener)
        with _lock:
            _open_scopes += 1
            if _open_scopes == 1:
                _original = F.scaled_dot_product_attention
                F.scaled_dot_product_attention = _passing_sdpa

    def close(self) -> None:
        global _open_scopes  # noqa: PLW0603
        if not self._depth:
            return
        self._depth -= 1
        _watchers.listeners.remove(self._listener)
        with _lock:
            _open_scopes -= 1
            if _open_scopes == 0:
                F.scaled_dot_product_attention = _original


# --- anything else: a function mode -------------------------------------------------------------------------------------------------------

_BUILTIN_SDPA = torch._C._nn.scaled_dot_product_attention
_SOFTMAXES = frozenset({torch.softmax, F.softmax, torch.Tensor.softmax, torch.special.softmax})


class _WatchMode(TorchFunctionMode):
    """Passes every torch call on unchanged and reports attention calls."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self.listener = listener

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        if func is _BUILTIN_SDPA or func in _SOFTMAXES:
            with torch._C.DisableTorchFunction():  # an outer capture's mode must not see our own softmax
                if func is _BUILTIN_SDPA:
                    _report(self.listener, args, kwargs or {})
                else:
                    self._softmax(result, *args, **(kwargs or {}))
        return result

    def _softmax(self, weights: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> None:
        if weights.dim() == 4 and dim in (-1, 3):
            self.listener.logits(input.detach(), weights.detach())


class _OpenScope:
    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._modes: list[_WatchMode] = []

    def open(self) -> None:
        self.close()  # left open by a forward that KeyboardInterrupt ended
        mode = _WatchMode(self._listener)
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._modes.append(mode)

    def close(self) -> None:
        if self._modes:
            _leave(self._modes.pop())


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


# --- transformers' attention interface ----------------------------------------------------------------------------------------------------


class _InterfaceScope:
    """Watches as `_OpenScope` does; a registered function in which that sees nothing is read from its operands and checked."""

    def __init__(self, module: nn.Module, listener: Listener) -> None:
        self._inner = _OpenScope(self)
        self._listener = listener
        self._interface, self._name = _interface_of(module)
        self._key = (id(self._interface), self._name)
        self._seen = 0

    def operands(self, call: Operands, kernel: str) -> None:
        self._seen += 1
        self._listener.operands(call, kernel)

    def refused(self, error: AttnhookError) -> None:
        self._seen += 1
        self._listener.refused(error)

    def logits(self, scores: Tensor, weights: Tensor) -> None:
        self._seen += 1
        self._listener.logits(scores, weights)

    def open(self) -> None:
        self.close()  # left open by a forward that KeyboardInterrupt ended
        mapping = self._interface._local_mapping
        with _lock:
            count, before = _wrapped.get(self._key, (0, None))
            if not count:
                before = mapping.get(self._name)
                mapping[self._name] = _watched(self._interface[self._name], self._key)
            _wrapped[self._key] = (count + 1, before)
        _watchers.interfaces.append(self)
        self._inner.open()

    def close(self) -> None:
        if self not in _watchers.interfaces:
            return
        self._inner.close()
        _watchers.interfaces.remove(self)
        mapping = self._interface._local_mapping
        with _lock:
            count, before = _wrapped.pop(self._key)
            if count > 1:
                _wrapped[self._key] = (count - 1, before)
            elif before is None:
                mapping.pop(self._name, None)
            else:
                mapping[self._name] = before

    def after_call(self, key: tuple[int, str]) -> Callable[..., None] | None:
        """What to call with the arguments and output of the function `key`; None if this scope watches another."""
        if self._key != key:
            return None
        seen = self._seen

        def finish(  # noqa: PLR0917 (the function's own arguments)
            query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any], output: Any
        ) -> None:
            if self._seen == seen:
                with torch._C.DisableTorchFunction():  # our own softmax is not the model's
                    call_of = partial(_interface_operands, query, key, mask, kwargs, self._name)
                    self._reconstruct(call_of, value, kwargs, output[0])

        return finish

    def _reconstruct(
        self, call_of: Callable[[], Operands], value: Tensor, kwargs: dict[str, Any], output: Tensor
    ) -> None:
        try:
            call = call_of()
            _check_against_output(call, value, output, self._name, kwargs.get("dropout", 0.0))
        except UnsupportedModelError as error:
            self.refused(error)
        else:
            self._listener.operands(call, self._name)


_wrapped: dict[tuple[int, str], tuple[int, Any]] = {}  # open scopes on all threads, what the mapping held before


def _watched(function: Callable[..., Any], name: tuple[int, str]) -> Callable[..., Any]:
    """`function`, wrapped once for the process: it tells the scopes that are open on the calling thread."""

    def watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **kwargs: Any) -> Any:
        told = [scope.after_call(name) for scope in tuple(_watchers.interfaces)]
        result = function(module, query, key, value, mask, **kwargs)
        for finish in told:
            if finish is not None:
                finish(query, key, value, mask, kwargs, result)
        return result

    return watched


def _interface_of(module: nn.Module) -> tuple[Any, str]:
    interface = None
    forward: Any = type(module).forward
    while interface is None and forward is not None:
        interface = getattr(forward, "__globals__", {}).get("ALL_ATTENTION_FUNCTIONS")
        forward = getattr(forward, "__wrapped__", None)
    if interface is None:
        raise UnsupportedModelError(f"{type(module).__name__} does not use transformers' attention interface.")
    return interface, module.config._attn_implementation  # type: ignore[union-attr, return-value]


def _interface_operands(query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any], name: str) -> Operands:
    if mask is not None and not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"the attention function {name!r} got a mask of type {type(mask).__name__}: expected a tensor or None. "
            "Load the model with attn_implementation='sdpa'."
        )
    bias = kwargs.get("position_bias")
    if bias is not None:
        mask = (
            bias
            if mask is None
            else bias.masked_fill(~mask, float("-inf"))
            if mask.dtype is torch.bool
            else bias + mask
        )
    return Operands(query, key, kwargs.get("scaling"), mask, bool(kwargs.get("is_causal", False)))


def _check_against_output(call: Operands, value: Tensor, output: Tensor, name: str, dropout: float) -> None:
    """Hold reconstructed rows against what an unseen kernel returned: row @ V must be its output."""
    if dropout:
        raise UnsupportedModelError(
            f"the attention function {name!r} calls neither scaled_dot_product_attention nor softmax and applies dropout, so "
            "its rows cannot be checked. Call model.eval(), or load the model with attn_implementation='sdpa'."
        )
    first = SoftmaxMatrix(call.detached()).rows(slice(0, 1))
    with quiet_arithmetic(value.device.type):
        groups = first.shape[1] // value.shape[1]
        expected = (first @ value.detach().float().repeat_interleave(groups, dim=1)).transpose(1, 2).flatten()
        got = output.detach()[:, :1].float().flatten()
        low = torch.finfo(output.dtype).eps > 1e-6
        if got.shape != expected.shape or not torch.allclose(
            got, expected, rtol=2e-2 if low else 1e-3, atol=2e-2 if low else 1e-4
        ):
            raise UnsupportedModelError(
                f"the attention function {name!r} does not compute softmax(Q K^T * scale + mask) V of the operands it is given: its "
                "output differs from that. Load the model with attn_implementation='sdpa' to capture it."
            )
