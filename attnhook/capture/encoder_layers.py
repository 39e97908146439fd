"""The operands of `nn.TransformerEncoderLayer`, whose fast path runs a whole layer in one call and is given up where a hook hangs on it.

So nothing is hooked: the functions through which the layer and its `nn.MultiheadAttention` call their kernels are watched instead.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnhook.capture.interception import Listener, WatchedFunction
from attnhook.capture.operands import Operands
from attnhook.errors import UnsupportedModelError

ENCODER_LAYER = WatchedFunction(torch, "_transformer_encoder_layer_fwd")
MULTIHEAD = WatchedFunction(torch, "_native_multi_head_attention")


def tell_layer(listener: Listener, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Tell a listener of a call of `torch._transformer_encoder_layer_fwd`, which normalises its input first if told so."""
    source, width, heads, weight, bias = args[:5]
    norm_first, eps, norm_weight, norm_bias = args[8:12]
    mask, mask_type = args[18:20]
    if source.is_nested:
        raise _nested()
    with torch.no_grad():
        tokens = F.layer_norm(source, (width,), norm_weight, norm_bias, eps) if norm_first else source
        listener.operands(_self_attention(tokens, heads, weight, bias, mask, mask_type), "encoder layer")


def tell_multihead(listener: Listener, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Tell a listener of a call of `torch._native_multi_head_attention`, which is always self-attention."""
    tokens, _, _, _, heads, weight, bias, _, _, mask, _, _, mask_type = args
    if tokens.is_nested:
        raise _nested()
    with torch.no_grad():
        listener.operands(_self_attention(tokens, heads, weight, bias, mask, mask_type), "multihead")


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


def _nested() -> UnsupportedModelError:
    return UnsupportedModelError(
        "an nn.TransformerEncoder packed its padded input into nested tensors, whose attention cannot be recorded: expected padded ones. Make "
        "it with enable_nested_tensor=False."
    )
