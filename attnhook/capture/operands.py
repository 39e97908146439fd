"""The operands of an attention call, and the products for its softmax rows: float32 (float64 where they are), no autocast, no autograd."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias

from attnhook.errors import UnsupportedModelError


@contextmanager
def exact_arithmetic(device_type: str) -> Iterator[None]:
    """Context in which attention is computed: no autograd, no autocast."""
    kind = "cpu" if device_type == "meta" else device_type  # meta has no autocast
    on = torch.is_autocast_enabled(kind)  # entering autocast takes the time of a small product
    with torch.no_grad(), torch.autocast(kind, enabled=False) if on else nullcontext():
        yield


def as_index(index: slice | Tensor | list[int], device: torch.device) -> slice | Tensor:
    """A list of queries as a tensor; anything else as it is."""
    return torch.tensor(index, device=device, dtype=torch.int64) if isinstance(index, list) else index


@dataclass(slots=True, eq=False)
class Operands:
    """The operands of one attention call, by reference."""

    query: Tensor  # (batch, heads, queries, head_dim)
    key: Tensor  # (batch, key heads, keys, head_dim); with fewer key heads, consecutive heads share one (GQA)
    scale: float | None = None  # factor on Q K^T; None: head_dim ** -0.5
    # Additive (floating) or boolean (True: attend), broadcastable to (batch, heads, queries, keys).
    mask: Tensor | None = None
    causal: bool = False  # whether query i sees the keys 0..i only

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(batch, heads, queries, keys)`."""
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[-2]

    def detached(self, *, with_values: bool = False) -> "Operands":
        """The same operands without their autograd history, safe to store: by reference, or copied as `_owned` says."""
        call = self.by_reference()
        call.query, call.key = _owned(call.query, call.key, with_values), _owned(call.key, call.query, with_values)
        # A larger mask, which blocks often share, stays the model's; in inference mode, overwriting it goes unnoticed.
        if call.mask is not None and call.mask.is_inference() and call.mask.numel() <= call.query.numel():
            call.mask = call.mask.clone()
        return call

    def by_reference(self) -> "Operands":
        """The same operands without their autograd history."""
        mask = None if self.mask is None else self.mask.detach()
        return Operands(self.query.detach(), self.key.detach(), self.scale, mask, self.causal)

    def image(self, index: int) -> "Operands":
        """The operands of one image, with a batch of one, by reference."""
        one = slice(index, index + 1)
        return Operands(self.query[one], self.key[one], self.scale, self._mask_of(one, slice(None)), self.causal)

    def head(self, index: int) -> "Operands":
        """The operands of one head, by reference."""
        key_head = index * self.key.shape[1] // self.query.shape[1]
        one, its_key = slice(index, index + 1), slice(key_head, key_head + 1)
        mask = self._mask_of(slice(None), one)
        return Operands(self.query[:, one], self.key[:, its_key], self.scale, mask, self.causal)

    def to(self, device: torch.device | str) -> "Operands":
        """The same on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Operands(self.query.to(device), self.key.to(device), self.scale, mask, self.causal)

    def _mask_of(self, images: slice, heads: slice) -> Tensor | None:
        return None if self.mask is None else self.mask.expand(self.shape)[images, heads]

    @property
    def masked(self) -> bool:
        """Whether some keys may be hidden from some queries."""
        return self.causal or self.mask is not None

    def logits(self, index: slice | Tensor) -> Tensor:
        """Rows of Q K^T * scale + bias, `(batch, heads, rows, keys)` float32 or float64; call it in `exact_arithmetic`."""
        query, key = self.query[:, :, index], self.key
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        if query.dtype is not torch.float32 and query.dtype is not torch.float64:
            query, key = query.float(), key.float()
        logits = _scaled_product(query, key, scale)
        return self.hide(logits, index) if self.masked else logits

    def hide(self, logits: Tensor, index: slice | Tensor | list[int]) -> Tensor:
        """Apply the mask and causality to the logits `(batch, heads, rows, keys)` of the queries `index`, as the kernels do; may overwrite."""
        queries, keys = self.shape[2:]
        # Masks are added, if boolean as 0 or minus infinity: a masked key with a NaN in it gives NaN, a later key does not.
        if self.mask is not None:
            mask = self.mask.expand(self.shape)[:, :, index]
            logits = logits.add_(torch.where(mask, 0.0, float("-inf")) if mask.dtype is torch.bool else mask)
        if self.causal:
            positions = torch.arange(queries, device=logits.device)[index]
            later = torch.arange(keys, device=logits.device) > positions[:, None]
            logits = logits.masked_fill_(later, float("-inf"))
        return logits


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
    """The operands of one call of `scaled_dot_product_attention`, by reference, in the shapes given; raises for nested ones."""
    if query.is_nested:
        raise UnsupportedModelError(
            "an attention call cannot be recorded: expected queries of shape (batch, heads, tokens, head_dim), got nested ones. "
            "Capture other blocks with `blocks=`."
        )
    if isinstance(attn_mask, CausalBias):
        raise UnsupportedModelError(
            "an attention call cannot be recorded: expected a mask that is a plain tensor, got a CausalBias. Pass is_causal=True, or a tensor."
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


def _scaled_product(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """`query @ key^T * scale`, `(batch, heads, rows, keys)`, without copying keys that are strided views of a fused projection."""
    batch, heads, rows, dim = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    if key_heads != heads:
        query = query.reshape(batch, key_heads, heads // key_heads * rows, dim)
    product = query.new_empty(batch, key_heads, query.shape[2], keys)
    # One product per image: a batched one would first copy all keys, whose (batch, head) strides do not merge.
    for image in range(batch):
        torch.bmm(query[image], key[image].mT, out=product[image])
    product *= scale
    return product.view(batch, heads, rows, keys)


def softmax_rows(logits: Tensor, *, masked: bool) -> Tensor:
    """Softmax over the last axis, float32, owning its memory. Where `masked`, a row whose keys all are is zero, as in the fused kernels."""
    weights = torch.softmax(logits, dim=-1)
    if masked:
        weights = weights.masked_fill_((logits == float("-inf")).all(dim=-1, keepdim=True), 0.0)
    return weights.float()


def versions(*tensors: Tensor | None) -> tuple[int, ...]:
    """How often each tensor was written to; those made in inference mode do not count writes and are left out."""
    return tuple(t._version for t in tensors if t is not None and not t.is_inference())


def _owned(tensor: Tensor, other: Tensor, with_values: bool) -> Tensor:
    """A copy where its memory holds more than it and the other, unless values are stored too, or where it does not count writes; else itself."""
    memory = tensor.untyped_storage()
    shared = other.nbytes if memory.data_ptr() == other.untyped_storage().data_ptr() else 0
    if not tensor.is_inference() and (with_values or memory.nbytes() <= tensor.nbytes + shared):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
