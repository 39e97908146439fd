"""`nn.TransformerEncoderLayer`: its fast path runs a whole layer in one call, unless a hook is registered on any of its modules.

So none is hooked: while a module around it runs, the functions that call its kernels are watched; the weights they get identify the layer.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnhook.capture.operands import Operands
from attnhook.capture.scopes import SDPA, Scope, attribute, innermost_of_each
from attnhook.errors import UnsupportedModelError


def _recognised(weight: Tensor | None, bias: Tensor | None) -> Iterator[tuple[Scope, Any]]:
    """The innermost scope of each capture in this context, and its listener for the attention module with these projections."""
    for scope in innermost_of_each():
        listeners = [
            listener
            for attention, listener in scope.capture.by_weights.items()
            if weight is not None and attention.in_proj_weight is weight and attention.in_proj_bias is bias
        ]
        for listener in filter(None, listeners):
            if len(listeners) == 1:
                yield scope, listener
            else:
                problem = (
                    "an nn.TransformerEncoderLayer cannot be told apart from another: expected input projections of its own, got shared ones. "
                    "Share the layer itself, or leave these layers out with blocks=."
                )
                listener.refused(scope.record, UnsupportedModelError(problem))


def _kernel_called(kernel: str, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `torch._transformer_encoder_layer_fwd` or `torch._native_multi_head_attention`, and report its operands."""
    output = original(*args, **kwargs)
    layer = kernel == "encoder layer"
    weight, bias = args[3:5] if layer else args[5:7]
    for scope, listener in _recognised(weight, bias):
        try:
            with torch.no_grad():
                listener.operands(scope.record, _layer_operands(args) if layer else _multihead_operands(args), kernel)
        except Exception as error:
            listener.refused(scope.record, error)
    return output


def _layer_operands(args: tuple[Any, ...]) -> Operands:
    """From the arguments of `torch._transformer_encoder_layer_fwd`, which may normalise its input first."""
    source, width, heads, weight, bias = args[:5]
    norm_first, eps, norm_weight, norm_bias = args[8:12]
    norm = partial(F.layer_norm, normalized_shape=(width,), weight=norm_weight, bias=norm_bias, eps=eps)
    mask, mask_type = args[18:20]
    return _self_attention(source, heads, weight, bias, mask, mask_type, norm if norm_first else None)


def _multihead_operands(args: tuple[Any, ...]) -> Operands:
    """From the arguments of `torch._native_multi_head_attention`, which is always self-attention."""
    return _self_attention(args[0], args[4], args[5], args[6], args[9], args[12])


def _self_attention(  # noqa: PLR0917 (what the kernels are given)
    tokens: Tensor,
    heads: int,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    mask_type: int | None,
    norm: Any = None,
) -> Operands:
    if tokens.is_nested:
        raise UnsupportedModelError(
            "an nn.TransformerEncoder packed its padded input into nested tensors, whose attention cannot be recorded: expected padded ones. "
            "Create it with enable_nested_tensor=False."
        )
    tokens = tokens if norm is None else norm(tokens)
    batch, length, width = tokens.shape
    projected = F.linear(tokens.detach(), weight.detach()[: 2 * width], bias.detach()[: 2 * width])
    query, key = projected.view(batch, length, 2, heads, width // heads).permute(2, 0, 3, 1, 4)
    # Hidden: True, and of a float mask whatever is not 0; type 0 over queries and keys, 1 over keys, 2 over all.
    if mask is not None:
        mask = ~mask if mask.dtype is torch.bool else mask == 0
        mask = mask[:, None, None, :] if mask_type == 1 else mask
    return Operands(query, key, None, mask)


def _forward_called(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `F.multi_head_attention_forward` in a scope of the layer that calls it: what it calls is scaled_dot_product_attention."""
    weight, bias = args[5:7] if len(args) > 6 else (kwargs.get("in_proj_weight"), kwargs.get("in_proj_bias"))
    with ExitStack() as stack:
        for scope, listener in _recognised(weight, bias):
            inside = Scope(scope.capture, scope.record, listener=listener, holds=(SDPA,))
            stack.callback(inside.close)
            inside.open()
        return original(*args, **kwargs)


FUNCTIONS = (
    attribute(torch, "_transformer_encoder_layer_fwd", partial(_kernel_called, "encoder layer")),
    attribute(torch, "_native_multi_head_attention", partial(_kernel_called, "multihead")),
    attribute(F, "multi_head_attention_forward", _forward_called),
)
"""Replaced while a module around an encoder layer runs."""
