"""Sees the functions registered at transformers' attention interface, and reads those that call neither SDPA nor a softmax.

The registered function is wrapped once for the process while a scope is open. A kernel which calls neither (a custom or compiled one) is seen
with its operands, and those are believed only if they reproduce the kernel's own output at a few queries.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.adapters import class_of
from attnhook.capture.following import Outcome
from attnhook.capture.interception import Listener, OpenScope, lock
from attnhook.capture.operands import Operands, quiet_arithmetic
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import UnsupportedModelError


class _OpenScopes(threading.local):
    """The interface scopes that are open on this thread."""

    def __init__(self) -> None:
        self.scopes: list[InterfaceScope] = []


_open_here = _OpenScopes()


class InterfaceScope:
    """Watches as `OpenScope` does; a registered function in which that sees nothing is read from its operands and checked."""

    def __init__(self, module: nn.Module, listener: Listener) -> None:
        self._inner = OpenScope(self)
        self._listener = listener
        self._interface, self._name = _interface_of(module)
        self._key = (id(self._interface), self._name)
        self._seen = 0

    def operands(self, call: Operands, kernel: str, outcome: Outcome | None = None) -> None:
        """Pass it on, and remember that something was seen."""
        self._seen += 1
        self._listener.operands(call, kernel, outcome)

    def refused(self, error: Exception) -> None:
        """Pass it on, and remember that something was seen."""
        self._seen += 1
        self._listener.refused(error)

    def logits(self, scores: Tensor, weights: Tensor) -> None:
        """Pass it on, and remember that something was seen."""
        self._seen += 1
        self._listener.logits(scores, weights)

    def open(self) -> None:
        """Begin to watch, on this thread."""
        self.close()  # left open by a forward that KeyboardInterrupt ended
        mapping = self._interface._local_mapping
        with lock:
            count, before = _wrapped.get(self._key, (0, None))
            if not count:
                before = mapping.get(self._name)
                mapping[self._name] = _watched(self._interface[self._name], self._key)
            _wrapped[self._key] = (count + 1, before)
        _open_here.scopes.append(self)
        self._inner.open()

    def close(self) -> bool:
        """Stop watching; False if it was not open on this thread."""
        if self not in _open_here.scopes:
            return False
        self._inner.close()
        _open_here.scopes.remove(self)
        mapping = self._interface._local_mapping
        with lock:
            count, before = _wrapped.pop(self._key)
            if count > 1:
                _wrapped[self._key] = (count - 1, before)
            elif before is None:
                mapping.pop(self._name, None)
            else:
                mapping[self._name] = before
        return True

    def after_call(self, key: tuple[int, str]) -> Callable[..., None] | None:
        """What to call with the arguments and output of the function `key`; None if this scope watches another."""
        if self._key != key:
            return None
        seen = self._seen

        def finish(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._seen != seen:
                return
            try:
                with torch._C.DisableTorchFunction():  # our own softmax is not the model's
                    self._reconstruct(dict(zip(_ARGUMENTS, args, strict=False)) | kwargs, output[0])
            except Exception as error:
                self.refused(error)

        return finish

    def _reconstruct(self, given: dict[str, Any], output: Tensor) -> None:
        call, value = _interface_operands(given, self._name), given["value"]
        _check_against_output(call, value, output, self._name, given.get("dropout", 0.0))
        self._listener.operands(call, self._name, Outcome(value, output, arrange=_heads_first))


_ARGUMENTS = ("module", "query", "key", "value", "attention_mask")  # of every registered function
_wrapped: dict[tuple[int, str], tuple[int, Any]] = {}  # open scopes on all threads, what the mapping held before


def _watched(function: Callable[..., Any], name: tuple[int, str]) -> Callable[..., Any]:
    """`function`, wrapped once for the process: it tells the scopes that are open on the calling thread."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        told = [scope.after_call(name) for scope in tuple(_open_here.scopes)]
        result = function(*args, **kwargs)
        for finish in told:
            if finish is not None:
                finish(args, kwargs, result)
        return result

    return watched


def _interface_of(module: nn.Module) -> tuple[Any, str]:
    interface = None
    forward: Any = class_of(module).forward
    while interface is None and forward is not None:
        interface = getattr(forward, "__globals__", {}).get("ALL_ATTENTION_FUNCTIONS")
        forward = getattr(forward, "__wrapped__", None)
    if interface is None:
        raise UnsupportedModelError(f"{type(module).__name__} does not use transformers' attention interface.")
    return interface, module.config._attn_implementation  # type: ignore[union-attr, return-value]


def _interface_operands(given: dict[str, Any], name: str) -> Operands:
    mask = given.get("attention_mask")
    if mask is not None and not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"the attention function {name!r} got a mask of type {type(mask).__name__}: expected a tensor or None. "
            "Load the model with attn_implementation='sdpa'."
        )
    bias = given.get("position_bias")
    if bias is not None:
        mask = (
            bias
            if mask is None
            else bias.masked_fill(~mask, float("-inf"))
            if mask.dtype is torch.bool
            else bias + mask
        )
    causal = bool(given.get("is_causal", False))
    return Operands(given["query"], given["key"], given.get("scaling"), mask, causal)


def _heads_first(tensor: Tensor) -> Tensor:
    """From what registered functions give, `(batch, queries, heads, value_dim)`."""
    return tensor.transpose(1, 2)


def _check_against_output(call: Operands, value: Tensor, output: Tensor, name: str, dropout: float) -> None:
    """Hold the first, middle and last reconstructed rows against what an unseen kernel returned: row @ V must be its output."""
    if dropout:
        raise UnsupportedModelError(
            f"the attention function {name!r} calls neither scaled_dot_product_attention nor softmax and applies dropout, so "
            "its rows cannot be checked. Call model.eval(), or load the model with attn_implementation='sdpa'."
        )
    last = call.query.shape[2] - 1
    some = sorted({0, last // 2, last})
    rows = SoftmaxMatrix(call.by_reference()).rows(some)
    with quiet_arithmetic(value.device.type):
        groups = rows.shape[1] // value.shape[1]
        expected = (rows @ value.detach().float().repeat_interleave(groups, dim=1)).transpose(1, 2).flatten()
        got = (output.detach()[:, some] if output.shape[1] > last else output.detach()).float().flatten()
        low = torch.finfo(output.dtype).eps > 1e-6
        if got.shape != expected.shape or not torch.allclose(
            got, expected, rtol=2e-2 if low else 1e-3, atol=2e-2 if low else 1e-4
        ):
            raise UnsupportedModelError(
                f"the attention function {name!r} does not compute softmax(Q K^T * scale + mask) V of the operands it is given: its "
                "output differs from that. Load the model with attn_implementation='sdpa' to capture it."
            )
