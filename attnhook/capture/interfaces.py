"""Watches the functions registered at transformers' attention interface, and reads those that call neither SDPA nor a softmax.

A kernel that calls neither (a custom or compiled one) is read from its operands, if they reproduce its own output at a few queries.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.operands import Operands, exact_arithmetic
from attnhook.capture.output_gradients import CallOutput
from attnhook.capture.recognition import class_of
from attnhook.capture.scopes import ModeScope, innermost_of_each
from attnhook.capture.shared_state import LOCK, ReplacedFunction
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.torch_internals import torch_functions_disabled
from attnhook.errors import UnsupportedModelError


class InterfaceScope(ModeScope):
    """One run of a module that calls a registered function: a `ModeScope` that also holds the function."""

    __slots__ = ()

    def read(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Record a call of the registered function in which no other call was seen."""
        if self.listener is None:
            return
        try:
            with torch_functions_disabled():  # our own softmax is not the model's
                given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
                call, value = _interface_operands(given, name), given["value"]
                _check_against_output(call, value, output[0], name, given.get("dropout", 0.0))
                result = CallOutput(value, output[0], arrange=lambda tensor: tensor.transpose(1, 2))
                self.listener.operands(self.record, call, name, result)
        except Exception as error:
            self.listener.refused(self.record, error)


_ARGUMENTS = ("module", "query", "key", "value", "attention_mask")  # of every registered function
# By interface, of which every file of transformers may have one, and name.
_functions: dict[tuple[int, str], ReplacedFunction] = {}


def registered_function(module: nn.Module) -> ReplacedFunction:
    """The registered function that a module of transformers calls; the same each time, so that all captures hold one."""
    interface, name = _interface_of(module)
    key = id(interface), name
    with LOCK:
        if key not in _functions:
            own: dict[str, Any] = interface._local_mapping

            def write(function: Any) -> None:
                if interface._global_mapping.get(name) is function:  # as it was before
                    own.pop(name, None)
                else:
                    own[name] = function

            _functions[key] = ReplacedFunction(lambda: interface[name], write, partial(_called, key))
        return _functions[key]


def _called(key: tuple[int, str], original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    watching = [scope for scope in innermost_of_each() if isinstance(scope, InterfaceScope)]
    reported = [scope.reported for scope in watching]
    output = original(*args, **kwargs)
    for scope, before in zip(watching, reported, strict=True):
        if scope.reported == before and _functions[key] in scope.holds:
            scope.read(key[1], args, kwargs, output)
    return output


def _interface_of(module: nn.Module) -> tuple[Any, str]:
    interface = None
    forward: Any = class_of(module).forward
    while interface is None and forward is not None:
        interface = getattr(forward, "__globals__", {}).get("ALL_ATTENTION_FUNCTIONS")
        forward = getattr(forward, "__wrapped__", None)
    if interface is None:
        raise UnsupportedModelError(
            f"{type(module).__name__} does not use transformers' attention interface: expected a forward that reads ALL_ATTENTION_FUNCTIONS. "
            "Leave the block out with blocks=."
        )
    return interface, module.config._attn_implementation  # type: ignore[union-attr, return-value]


def _interface_operands(given: dict[str, Any], name: str) -> Operands:
    mask = given.get("attention_mask")
    if mask is not None and not isinstance(mask, Tensor):
        raise UnsupportedModelError(
            f"the attention function {name!r} got a mask of type {type(mask).__name__}: expected a tensor or None. "
            "Load the model with attn_implementation='sdpa'."
        )
    bias = given.get("position_bias")
    if bias is not None and mask is not None:
        mask = bias.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else bias + mask
    causal = bool(given.get("is_causal", False))
    return Operands(given["query"], given["key"], given.get("scaling"), bias if mask is None else mask, causal)


def _check_against_output(call: Operands, value: Tensor, output: Tensor, name: str, dropout: float) -> None:
    """Check the first, middle and last reconstructed rows against the kernel's output: row @ V must equal it."""
    if dropout:
        raise UnsupportedModelError(
            f"the attention function {name!r} calls neither scaled_dot_product_attention nor softmax and applies dropout, so "
            "its rows cannot be checked. Call model.eval(), or load the model with attn_implementation='sdpa'."
        )
    last = call.query.shape[2] - 1
    some = sorted({0, last // 2, last})
    rows = SoftmaxMatrix(call.by_reference()).rows(some)
    with exact_arithmetic(value.device.type):
        groups = rows.shape[1] // value.shape[1]
        expected = (rows @ value.detach().float().repeat_interleave(groups, dim=1)).transpose(1, 2).flatten()
        got = (output.detach()[:, some] if output.shape[1] > last else output.detach()).float().flatten()
        rtol, atol = (2e-2, 2e-2) if torch.finfo(output.dtype).eps > 1e-6 else (1e-3, 1e-4)
        if got.shape != expected.shape or not torch.allclose(got, expected, rtol, atol, equal_nan=True):
            raise UnsupportedModelError(
                f"the attention function {name!r} does not compute softmax(Q K^T * scale + mask) V of its operands: its output differs from "
                "that. Load the model with attn_implementation='sdpa' to capture it."
            )
