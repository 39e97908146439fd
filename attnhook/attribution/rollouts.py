"""Attention rollout: the product of the attention matrices of all blocks, from the readout down to the patches.

It shows how attention could have carried patches to the readout: values, MLPs and norms are left out, and head fusion and the weight of the
residual are conventions. It knows nothing of classes, and it does not measure importance.
"""

from collections.abc import Callable, Iterator
from functools import partial, reduce

import torch
from torch import Tensor

from attnhook.attribution import propagation
from attnhook.attribution.map_making import make_map
from attnhook.attribution.raw_maps import fuse_heads
from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import exact_arithmetic
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, HeadsOption, checked_heads

_HALF = 16  # bits
_NO_SIGN = 2**31 - 1
_Weights = tuple[HeadFusion, float, float]  # how a block's matrix becomes W: fusion, residual, discard


def rollout(
    maps: AttentionMaps,
    *,
    heads: HeadsOption = "mean",
    residual: float = 0.5,
    discard: float = 0.0,
    start: int | str = 0,
) -> PatchMap:
    """Attention rollout to the readout, on the patch grid.

    Abnar and Zuidema, Quantifying Attention Flow in Transformers, 2020, arXiv 2005.00928.

    With F_l the fused matrix of the heads of block l, `W_l = rows_sum_to_1(residual * I + (1 - residual) * F_l)`, and the map is
    `r W_L ... W_(start + 1) W_start` at the patches. The readout r depends on the model's head:

    - class token: the unit row of that token;
    - attention pooling: the pooling query's own row, heads fused, over the tokens that it reads; without a residual, and nothing is discarded
      from it;
    - mean: the same weight for every patch.

    Only a row times a matrix is ever computed, from the last block to the first: memory is linear in the number of tokens, and a class token
    needs one row of the last block. Values sum to 1 minus the attention that leads to special tokens (`.outside`), whatever `heads` is.

    `discard` follows vit-explain: in each image's fused, flattened matrix, that fraction of the entries, the lowest, becomes 0, except the class
    token's attention to itself; then the residual is added and rows are made to sum to 1. (vit-explain itself divides columns by the row sums,
    which is wrong for a batch of one, and fails for larger batches because of the shapes; here rows are divided.) If entries tie for the last
    place, none of them is discarded.

    Args:
        maps: Captured with `rows="all"`. Rollout passes through the captured blocks.
        heads: `"mean"`, `"max"` or `"min"` over heads, or one head's index.
        residual: Weight of the residual connection, 0 to 1; Abnar and Zuidema use 0.5.
        discard: Fraction of each fused matrix to discard, from 0 to below 1; vit-explain uses 0.9. Reads every matrix three times.
        start: The first block, by index or name; earlier ones are left out.

    Returns:
        A map of `(batch, h, w)` float32; NaN at patches that the model dropped before the first block.

    Raises:
        RowsNotKeptError: Unless captured with `rows="all"`.
        NoReadoutError: If the model's head reads no class token, pooling or mean, or the pooling was not captured.
        TokenLayoutError: If a block's matrix is not all tokens by all tokens (windows, pooled keys, packed images), or the blocks' tokens
            differ (dropped in between, in another order).
        UnsupportedModelError: If a block does not multiply its values by softmax rows alone.
        ValueError: If an option is out of range.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, rollout
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with torch.inference_mode(), AttentionCapture(model, rows="all") as capture:
        ...     logits = model(torch.randn(2, 3, 224, 224))
        >>> rollout(capture.maps).shape
        torch.Size([2, 14, 14])
    """
    heads = checked_heads(heads)
    weights = _weights(maps, heads, residual, discard)
    blocks = propagation.blocks_from(maps, "rollout", start)
    layout = propagation.shared_layout(blocks, "rollout")
    with exact_arithmetic(blocks[-1].matrix.device.type):
        row, token = propagation.initial_row(maps, blocks[-1], layout, partial(_pooled_row, heads=heads), "rollout")
        for block in reversed(blocks):
            matrix = block.matrix.head(heads) if isinstance(heads, int) else block.matrix
            row, token = _propagate(matrix, row, token, layout, weights), None
    # Without a residual, a row of which nothing is left stays 0.
    adds_up = bool((row.sum(dim=1) - 1).abs().lt(1e-4).all())
    shown = propagation.with_pooling(maps, blocks)
    values, uniform = layout.patches(row).float(), 1 / blocks[0].shape[-1]
    return make_map(maps, values, shown, "rollout", heads=heads, uniform=uniform, adds_up=adds_up)


def rollout_by_block(maps: AttentionMaps, *, residual: float = 0.5) -> Iterator[Tensor | None]:
    """Rollout from every token of each block, with the mean over heads: `W_l ... W_0` for each l, or a pooling's rows times the last product.

    Each is `(batch, queries, tokens)` float32, or None for a pooling that reads other tokens than those of the block before it.
    """
    propagation.require_all_rows(maps, "rollout")
    propagation.shared_layout(propagation.blocks_from(maps, "rollout"), "rollout")
    for block in maps:
        propagation.require_softmax_weights(block, "rollout")
    return _products(maps, residual)


def _products(maps: AttentionMaps, residual: float) -> Iterator[Tensor | None]:
    product: Tensor | None = None
    for block in maps:
        if not block.pooling:
            product = _multiplied(block.matrix, product, residual)
            yield product
        else:
            fits = product is not None and product.shape[2] == block.shape[3]
            yield _multiplied(block.matrix, product, residual=0.0) if fits else None


def _multiplied(matrix: SoftmaxMatrix, product: Tensor | None, residual: float) -> Tensor:
    """W of a block times a product."""
    batch, _, queries, keys = matrix.shape
    result = torch.empty(batch, queries, keys, dtype=torch.float32, device=matrix.device)
    for chunk, fused in matrix.fused_chunks():
        with exact_arithmetic(matrix.device.type):
            weights = (1 - residual) * fused.float()
            if residual:
                weights.diagonal(chunk.queries.start).add_(residual)
            weights /= _nonzero(weights.sum(dim=-1, keepdim=True))
            result[chunk.image, chunk.queries] = weights if product is None else weights @ product[chunk.image]
    return result


def _weights(maps: AttentionMaps, heads: HeadFusion | int | None, residual: float, discard: float) -> _Weights:
    if heads is None:
        raise ValueError(
            "rollout multiplies one matrix per block: expected heads='mean', 'max', 'min' or one head's index, got None. Choose one."
        )
    if not 0 <= residual <= 1:
        raise ValueError(f"bad weight of the residual: expected 0 <= residual <= 1, got {residual}. 0.5 is usual.")
    if not 0 <= discard < 1:
        raise ValueError(f"bad fraction to discard: expected 0 <= discard < 1, got {discard}. 0 discards nothing.")
    propagation.require_all_rows(maps, "rollout")
    return HeadFusion.MEAN if isinstance(heads, int) else heads, residual, discard


def _pooled_row(pooling: BlockAttention, heads: HeadsOption) -> Tensor:
    """The pooling's row over the tokens that it reads, `(batch, keys)` float64, summing to 1."""
    rows = pooling.matrix.rows(pooling.readout_rows or slice(None)).double()
    fused = fuse_heads(rows, heads).mean(dim=1)
    return fused / fused.sum(dim=-1, keepdim=True)


def _propagate(matrix: SoftmaxMatrix, row: Tensor, token: int | None, layout: TokenLayout, weights: _Weights) -> Tensor:
    """The row times one block's W: `(batch, tokens)` float64. If `token` is given, the row is that token's unit row."""
    fusion, residual, discard = weights
    if token is not None and not discard:
        attended = fuse_heads(matrix.rows([token]).double(), fusion)[:, 0]
        total = residual + (1 - residual) * attended.sum(dim=-1, keepdim=True)
        return (residual * row + (1 - residual) * attended) / _nonzero(total)
    if matrix.normalised and fusion is HeadFusion.MEAN and not discard:
        return residual * row + (1 - residual) * matrix.fused_left_multiply(row[:, None])[:, 0]
    images = [_propagate_image(matrix.image(i), row[i], layout, weights) for i in range(len(row))]
    return torch.stack(images) if images else row


def _propagate_image(matrix: SoftmaxMatrix, row: Tensor, layout: TokenLayout, weights: _Weights) -> Tensor:
    """The same for one image, `(tokens,)`, when rows of the fused matrix need not sum to 1."""
    fusion, residual, discard = weights
    count = int(discard * row.numel() ** 2)
    threshold = ranked_entry(lambda: (fused for _, fused in matrix.fused_chunks(fusion)), count) if count else None
    shares, attended = torch.zeros_like(row), torch.zeros_like(row)
    for chunk, fused in matrix.fused_chunks(fusion):
        if threshold is not None:
            _discard_below(threshold, fused, chunk.queries, None if layout.cls is None else layout.class_token())
        total = residual + (1 - residual) * fused.sum(dim=-1, dtype=torch.float64)
        shares[chunk.queries] = share = row[chunk.queries] / _nonzero(total)
        attended += torch.mv(fused.T, share.to(fused.dtype))
    return residual * shares + (1 - residual) * attended


def _nonzero(total: Tensor) -> Tensor:
    return total.masked_fill(total == 0, 1.0)


def _discard_below(threshold: Tensor, rows: Tensor, queries: slice, token: int | None) -> None:
    """Set entries of the rows of `queries`, `(rows, keys)`, below the threshold to 0 in place, except the attention of `token` to itself."""
    discarded = rows.float() < threshold  # ranked in float32
    if token is not None and queries.start <= token < queries.stop:
        discarded[token - queries.start, token] = False
    rows.masked_fill_(discarded, 0.0)


def ranked_entry(chunks: Callable[[], Iterator[Tensor]], rank: int) -> Tensor:
    """The entry that has `rank` entries before it in ascending order, found by counting in two passes over the chunks.

    Non-negative float32 numbers sort like their bits, and NaN comes last: the upper half comes from one histogram, the lower from one of the
    entries that share it.
    """

    def bits() -> Iterator[Tensor]:
        return (chunk.float().view(torch.int32) & _NO_SIGN for chunk in chunks())  # the sign of a NaN

    upper, before = _bucket(((part >> _HALF).flatten() for part in bits()), rank)
    lower, _ = _bucket((part.masked_select(part >> _HALF == upper) & (2**_HALF - 1) for part in bits()), rank - before)
    return torch.tensor((upper << _HALF) | lower, dtype=torch.int32, device="cpu").view(torch.float32)


def _bucket(numbers: Iterator[Tensor], rank: int) -> tuple[int, int]:
    """The bucket, out of 2 ** 16, of the entry of this rank, and the number of entries in the buckets before it."""
    counts: Tensor = reduce(torch.add, (torch.bincount(part, minlength=2**_HALF) for part in numbers))
    up_to = counts.cumsum(0)
    bucket = int(torch.searchsorted(up_to, rank, right=True))
    return bucket, int(up_to[bucket] - counts[bucket])
