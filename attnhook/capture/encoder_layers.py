"""`nn.TransformerEncoderLayer`: its fast path runs a whole layer in one call, and is given up where a hook hangs on any module of the layer.

So nothing of a layer is hooked. While a module around it runs, the functions are watched through which the layer and its
`nn.MultiheadAttention` call their kernels, and a layer is recognised by the weights that it passes.
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
    """The layer with these projections in each capture of this context: its innermost scope, and who is told."""
    for scope in innermost_of_each():
        found = [
            (attention, listener)
            for attention, listener in scope.entry.layers
            if weight is not None and attention.in_proj_weight is weight and attention.in_proj_bias is bias
        ]
        for listener in [listener for _, listener in found if listener is not None]:
            if len(found) == 1:
                yield scope, listener
            else:
                listener.refused(scope.record, _tied())


def _kernel_called(kernel: str, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `torch._transformer_encoder_layer_fwd` or `torch._native_multi_head_attention`, and tell of its operands."""
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
    """From the arguments of `torch._transformer_encoder_layer_fwd`, which normalises its input first if told so."""
    source, width, heads, weight, bias = args[:5]
    norm_first, eps, norm_weight, norm_bias = args[8:12]
    mask, mask_type = args[18:20]
    if source.is_nested:
        raise _nested()
    tokens = F.layer_norm(source, (width,), norm_weight, norm_bias, eps) if norm_first else source
    return _self_attention(tokens, heads, weight, bias, mask, mask_type)


def _multihead_operands(args: tuple[Any, ...]) -> Operands:
    """From the arguments of `torch._native_multi_head_attention`, which is always self-attention."""
    tokens, _, _, _, heads, weight, bias, _, _, mask, _, _, mask_type = args
    if tokens.is_nested:
        raise _nested()
    return _self_attention(tokens, heads, weight, bias, mask, mask_type)


def _self_attention(  # noqa: PLR0917 (what the kernels are given)
    tokens: Tensor, heads: int, weight: Tensor, bias: Tensor, mask: Tensor | None, mask_type: int | None
) -> Operands:
    batch, length, width = tokens.shape
    projected = F.linear(tokens.detach(), weight.detach()[: 2 * width], bias.detach()[: 2 * width])
    query, key = projected.view(batch, length, 2, heads, width // heads).permute(2, 0, 3, 1, 4)
    return Operands(query, key, None, None if mask is None else _attended(mask, mask_type))


def _attended(mask: Tensor, mask_type: int | None) -> Tensor:
    """From the kernels' masks (hidden: True, and of a float mask whatever is not 0; 0 over queries and keys, 1 over keys, 2 over all)."""
    mask = ~mask if mask.dtype is torch.bool else mask == 0
    return mask[:, None, None, :] if mask_type == 1 else mask


def _forward_called(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `F.multi_head_attention_forward` in a scope of the layer that calls it: what it calls is scaled_dot_product_attention."""
    weight, bias = args[5:7] if len(args) > 6 else (kwargs.get("in_proj_weight"), kwargs.get("in_proj_bias"))
    with ExitStack() as stack:
        for scope, listener in _recognised(weight, bias):
            inside = Scope(scope.entry, scope.record, listener=listener, holds=(SDPA,))
            stack.callback(inside.close)
            inside.open()
        return original(*args, **kwargs)


FUNCTIONS = (
    attribute(torch, "_transformer_encoder_layer_fwd", partial(_kernel_called, "encoder layer")),
    attribute(torch, "_native_multi_head_attention", partial(_kernel_called, "multihead")),
    attribute(F, "multi_head_attention_forward", _forward_called),
)
"""What is replaced while a module around an encoder layer runs."""


def _nested() -> UnsupportedModelError:
    return UnsupportedModelError(
        "an nn.TransformerEncoder packed its padded input into nested tensors, whose attention cannot be recorded: expected padded ones. Make "
        "it with enable_nested_tensor=False."
    )


def _tied() -> UnsupportedModelError:
    return UnsupportedModelError(
        "an nn.TransformerEncoderLayer cannot be told from another: expected input projections of its own, got shared ones. Share the layer "
        "itself, or leave these layers out with blocks=."
    )
