"""Where attention is computed: a module of a model, how it calls its kernel, how its tensors are arranged, what its tokens are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from attnhook._deprecated import old_attributes, renamed_arguments
from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import Operands
from attnhook.capture.windows import PackedLayout, WindowLayout
from attnhook.errors import UnsupportedModelError
from attnhook.options import Size

Layout = TokenLayout | WindowLayout | PackedLayout


@old_attributes({"OPEN": "ANY"})
class Kernel(StrEnum):
    """How a module computes its attention, as far as that is known before it runs."""

    SDPA = "sdpa"  # calls `torch.nn.functional.scaled_dot_product_attention` by that attribute
    MULTIHEAD = "multihead"  # is an `nn.MultiheadAttention`, read from its own inputs and weights
    ENCODER_LAYER = "encoder layer"  # is that of an `nn.TransformerEncoderLayer`; a hook would switch off its fast path
    INTERFACE = "interface"  # calls a function registered at transformers' attention interface
    ANY = "any"  # calls scaled_dot_product_attention or a softmax otherwise; every torch call is watched


class Queries(StrEnum):
    """What the queries of an attention module are."""

    TOKENS = "tokens"  # all tokens of the sequence, special tokens included
    PATCHES = "patches"  # the patches only, in a model whose other blocks may have special tokens
    CLASS = "class"  # the class token only (class attention)
    POOL = "pool"  # learned queries of an attention pooling
    OTHER = "other"  # something else: object queries of a decoder, words, frames of one patch


class Arrangement(StrEnum):
    """Order of the axes of queries, keys and attention logits, before their last two."""

    HEADS = "heads"  # (batch, heads)
    HEADS_WINDOWS = "heads windows"  # (batch, heads) or (batch, heads, windows)
    WINDOWS = "windows"  # (batch, windows, heads)
    MERGED = "merged"  # (batch * heads) or (batch * heads, windows)
    MERGED_OR_HEADS = "merged or heads"  # (batch * heads), or (batch, heads) where the tensor has four dimensions
    SINGLE = "single"  # (batch): one head without an axis


_HEADS_FIRST = (Arrangement.HEADS, Arrangement.MERGED_OR_HEADS)


@dataclass(frozen=True, eq=False)
class CallContext:
    """The context of one attention call, from which `tokens_of` tells what its tokens are."""

    # The arguments of the site's `seen_module`, positional first, with shapes instead of floating-point tensors (also inside containers).
    inputs: tuple[Any, ...]
    input_size: Size | None  # of the images, in pixels
    grid: Size | None  # patch rows and columns of the patch embedding's output
    queries: int  # number of queries of one batch entry
    keys: int
    number: int  # how many calls of this module came before in this forward


@dataclass(frozen=True, eq=False)
class SiteTokens:
    """What the tokens of one attention call are: layouts, or the reason why there is none."""

    keys: Layout | str
    queries: Layout | str | None = None  # where it differs


@renamed_arguments(mixing="value_multiplier")
@old_attributes({"mixing": "value_multiplier"})
@dataclass(frozen=True, eq=False)
class AttentionSite:
    """One module that computes token attention at least once per forward.

    Attributes:
        name: Its path in the model, as in `named_modules()`.
        module: The module.
        kernel: How it computes attention, or a function that tells it from the module's present settings.
        queries: What its queries are.
        readout_rows: Where the rows of the class token or the pooling are among the queries, if not where the model's layout says.
        arrangement: How its tensors are arranged.
        heads: Number of heads, needed where they are merged into the batch; a softmax over another number is then not this module's. 0: unknown.
        value_multiplier: What multiplies the values if not the softmax itself, in words; empty otherwise.
        tokens_of: Tells what its tokens are from a call; None where the model's own layout holds.
        seen_module: The module whose inputs `tokens_of` needs, or None.
        holder: The module around it.
        optional: Whether forwards may skip it (a second encoder, a prompt): it is left out of a forward in which it did not run.
        guessed: Whether it was recognised only by its code; a forward in which it calls no attention leaves it out.
        number: Its number among the model's blocks, from 1, and how many there are; the capture fills it in.
    """

    name: str
    module: nn.Module
    kernel: Kernel | Callable[[nn.Module], Kernel] = Kernel.ANY
    queries: Queries = Queries.TOKENS
    readout_rows: slice | None = None
    arrangement: Arrangement = Arrangement.HEADS
    heads: int = 0
    value_multiplier: str = ""
    tokens_of: Callable[[CallContext], SiteTokens] | None = field(default=None, repr=False)
    seen_module: nn.Module | None = field(default=None, repr=False)
    holder: nn.Module | None = field(default=None, repr=False)
    optional: bool = False
    guessed: bool = False
    number: tuple[int, int] | None = None

    @property
    def pooling(self) -> bool:
        """Whether it is an attention pooling: learned queries read the patches."""
        return self.queries is Queries.POOL

    @property
    def plain(self) -> bool:
        """Whether its tensors are `(batch, heads, tokens, head_dim)` and the model's own layout holds."""
        return self.arrangement in _HEADS_FIRST and self.tokens_of is None

    def running_kernel(self) -> Kernel:
        """How the module computes attention with its present settings."""
        if isinstance(self.module, nn.MultiheadAttention):
            return Kernel.ENCODER_LAYER if isinstance(self.holder, nn.TransformerEncoderLayer) else Kernel.MULTIHEAD
        return self.kernel if isinstance(self.kernel, Kernel) else self.kernel(self.module)

    def arranged(self, tensor: Tensor) -> Tensor | None:
        """Queries, keys or logits as `(batch * windows, heads, rows, columns)`; None if their shape or number of heads does not fit."""
        dim, kind = tensor.dim(), self.arrangement
        if (kind is Arrangement.MERGED and dim in (3, 4)) or (kind is Arrangement.MERGED_OR_HEADS and dim == 3):
            if tensor.shape[0] % self.heads:
                return None
            tensor = tensor.reshape(-1, self.heads, *tensor.shape[1:])
        elif kind is Arrangement.SINGLE and dim == 3:
            return tensor.unsqueeze(1)
        elif kind is Arrangement.WINDOWS and dim == 5:
            return tensor.flatten(0, 1)
        if tensor.dim() == 5 and kind in (Arrangement.HEADS_WINDOWS, Arrangement.MERGED):
            return tensor.transpose(1, 2).flatten(0, 1)
        return tensor if tensor.dim() == 4 else None

    def arranged_outcome(self, tensor: Tensor) -> Tensor | None:
        """Values or outputs of a fused call, or their gradients, as `(batch * windows, heads, tokens, value_dim)`, or None as in `arranged`."""
        if self.arrangement is Arrangement.HEADS and tensor.dim() == 3:  # heads unknown: one
            return tensor.unsqueeze(1)
        return self.arranged(tensor)

    def arranged_operands(self, call: Operands) -> Operands:
        """The operands of a fused call with four dimensions; `UnsupportedModelError` if their shape does not fit this module."""
        query, key, mask = call.query, call.key, call.mask
        if self.arrangement in _HEADS_FIRST and query.dim() == 4:
            return call
        if self.arrangement is Arrangement.HEADS and query.dim() == 3:  # heads unknown: one
            mask = mask.unsqueeze(1) if mask is not None and mask.dim() == 3 else mask
            return Operands(query.unsqueeze(1), key.unsqueeze(1), call.scale, mask, call.causal)
        queries, keys = self.arranged(query), self.arranged(key)
        if queries is None or keys is None:
            raise UnsupportedModelError(
                f"an attention call of block {self.name!r} cannot be recorded: expected queries of shape (batch, heads, tokens, "
                f"head_dim), got {tuple(query.shape)}. Capture other blocks with `blocks=`."
            )
        if mask is not None:
            mask = self.arranged(mask.expand(*query.shape[:-1], key.shape[-2]))
        return Operands(queries, keys, call.scale, mask, call.causal)
