"""The operands of an `nn.MultiheadAttention` call, read from its own inputs and weights after it ran.

Nothing is opened around the module: a function mode would switch its fast path off and move its output.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from attnhook.capture.operands import Operands
from attnhook.capture.output_gradients import CallOutput
from attnhook.capture.torch_internals import shares_projection
from attnhook.errors import UnsupportedModelError

_ARGUMENTS = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")  # the first ones
_WEIGHTS = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "bias_k")
_WEIGHTS_FOR_VALUES = ("v_proj_weight", "out_proj.weight")


def multihead_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names."""
    return {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}


def multihead_operands(module: nn.MultiheadAttention, call: dict[str, Any], rows: slice | None) -> Operands:
    """The operands of a call that has just run; of its queries, and of a mask, only `rows` (None: all)."""
    refuse_parametrised(module)
    if module.bias_k is not None or module.add_zero_attn:
        raise UnsupportedModelError(
            "nn.MultiheadAttention with add_bias_kv or add_zero_attn attends to keys that are not tokens: expected both off. "
            "Leave the block out with blocks=."
        )
    mask = _multihead_mask(module, call)
    if rows is not None and mask is not None and mask.shape[-2] > 1:
        mask = mask[..., rows, :]
    query, key = (_batch_first(module, call[name].detach()) for name in ("query", "key"))
    query, key = _project(module, query, key, rows)
    return Operands(query, key, (module.embed_dim // module.num_heads) ** -0.5, mask)


def multihead_lengths(module: nn.MultiheadAttention, call: dict[str, Any]) -> tuple[int, int]:
    """Number of queries and of keys of one image in a call."""
    queries, keys = (_batch_first(module, call[name]).shape[1] for name in ("query", "key"))
    return queries, keys


def multihead_output(
    module: nn.MultiheadAttention, call: dict[str, Any], output: tuple[Tensor, Tensor | None]
) -> CallOutput:
    """The values `(batch, heads, keys, head_dim)` of a call that has just run, and its output.

    The module returns O W^T + b with its output projection W, so the gradient of O is that of its output times W.
    """
    refuse_parametrised(module, values=True)
    value = _batch_first(module, call["value"].detach())
    width, heads = module.embed_dim, module.num_heads
    weight = module.in_proj_weight[2 * width :] if shares_projection(module) else module.v_proj_weight
    with torch.no_grad():
        bias = None if module.in_proj_bias is None else module.in_proj_bias[2 * width :]
        projected = _split(F.linear(value, weight, bias), heads)
    out = module.out_proj.weight.detach()

    def arrange(gradient: Tensor) -> Tensor:
        gradient = _batch_first(module, gradient)
        return _split(torch.matmul(gradient, out.to(gradient.dtype)), heads)

    attended, returned = output
    return CallOutput(projected, attended, module.dropout if module.training else 0.0, arrange, returned)


def refuse_parametrised(module: nn.Module, *, values: bool = False) -> None:
    """Refuse a module with a parametrised weight, without reading it; with `values`, also of those that only values and gradients need."""
    for name in _WEIGHTS + (_WEIGHTS_FOR_VALUES if values else ()):
        owner, _, weight = name.rpartition(".")
        if is_parametrized(module.get_submodule(owner), weight):
            raise UnsupportedModelError(
                f"nn.MultiheadAttention cannot be captured: expected plain weights, got a parametrised {name!r} (torch.nn.utils.parametrize). "
                "Reading it would compute it again, which could change training. Leave the block out with blocks=, or capture a "
                "copy.deepcopy of the model after torch.nn.utils.parametrize.remove_parametrizations("
                f"{f'attention.{owner}'.rstrip('.')}, {weight!r}), with each such attention module."
            )


def _batch_first(module: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    if tokens.dim() == 2:
        return tokens.unsqueeze(0)
    return tokens if module.batch_first else tokens.transpose(0, 1)


def _project(module: nn.MultiheadAttention, query: Tensor, key: Tensor, rows: slice | None) -> tuple[Tensor, Tensor]:
    """Queries and keys, rounded as the module rounds them: in low precision a product of few rows would not be, so all are projected.

    For a few rows in float32 no key is: with q_h the query of head h, q_h (W_k x + b_k)^T equals (q_h W_k) x^T up to a constant per row, which
    the softmax cancels. The returned keys are then the inputs themselves, shared by all heads.
    """
    width, heads = module.embed_dim, module.num_heads
    if shares_projection(module):
        weight_q, weight_k = module.in_proj_weight.detach()[: 2 * width].chunk(2)
    else:
        weight_q, weight_k = module.q_proj_weight.detach(), module.k_proj_weight.detach()
    bias = module.in_proj_bias
    bias_q, bias_k, _ = (None, None, None) if bias is None else bias.detach().chunk(3)
    few = rows is not None and query.dtype is torch.float32 and not torch.is_autocast_enabled(query.device.type)
    with torch.no_grad():
        query = _split(F.linear(query[:, rows] if few else query, weight_q, bias_q), heads)
        if few:
            return _through(query, weight_k.view(heads, width // heads, -1)), key.unsqueeze(1)
        return query if rows is None else query[:, :, rows], _split(F.linear(key, weight_k, bias_k), heads)


def _through(query: Tensor, weights: Tensor) -> Tensor:
    """Queries `(batch, heads, rows, head_dim)` times each head's `(head_dim, width)`: heads first, or `@` would copy the weights."""
    batch, heads, rows, dim = query.shape
    product = torch.bmm(query.transpose(0, 1).reshape(heads, batch * rows, dim), weights)
    return product.view(heads, batch, rows, weights.shape[2]).transpose(0, 1)


def _split(tokens: Tensor, heads: int) -> Tensor:
    batch, length, width = tokens.shape
    return tokens.reshape(batch, length, heads, width // heads).transpose(1, 2)


def _multihead_mask(module: nn.MultiheadAttention, call: dict[str, Any]) -> Tensor | None:
    """Join the two masks (True or -inf: hidden) into one additive mask that broadcasts to (batch, heads, queries, keys)."""
    joined: Tensor | None = None
    for name in ("attn_mask", "key_padding_mask"):
        mask = call.get(name)
        if mask is None:
            continue
        mask = mask.detach()
        if mask.dtype is torch.bool:
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(mask, float("-inf"))
        if name == "key_padding_mask":
            mask = mask[..., None, None, :]
        elif mask.dim() == 3:
            mask = mask.view(mask.shape[0] // module.num_heads, module.num_heads, *mask.shape[1:])
        joined = mask if joined is None else joined + mask
    return joined
