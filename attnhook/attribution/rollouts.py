"""Attention rollout: where a readout's attention leads when it is followed through all blocks, down to the patches.

It multiplies attention matrices; values, MLPs and norms are left out, and head fusion and the residual's weight are conventions. It says how
attention could have carried patches to the readout. It knows no class, and it is not importance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.attribution.discarding import Discard
from attnhook.attribution.map_making import make_map
from attnhook.attribution.raw_maps import fuse_heads
from attnhook.attribution.readouts import (
    check_rows_multiply_values,
    check_whole_matrices,
    common_layout,
    first_row,
    followed_blocks,
)
from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import exact_arithmetic
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, HeadsOption, Rows, choose


def rollout(
    maps: AttentionMaps,
    *,
    heads: HeadsOption = "mean",
    residual: float = 0.5,
    discard: float = 0.0,
    start: int | str = 0,
) -> PatchMap:
    """Attention rollout towards the readout, on the patch grid.

    Abnar and Zuidema, Quantifying Attention Flow in Transformers, 2020, arXiv 2005.00928.

    With F_l the matrix that the heads of block l make together, rows are `W_l = rows_sum_to_1(residual * I + (1 - residual) * F_l)`, and the map
    is the patches' part of `r W_L ... W_(start + 1) W_start`. The readout r is, as the model's head has it,

    - class token: the unit row of that token;
    - attention pooling: the pooling query's own row, heads fused, over the tokens that it reads; nothing is residual there, and a pooling's
      rows are fused, never discarded from;
    - mean: the same weight for every patch.

    So a row times a matrix is all that is ever computed, from the last block to the first: memory is linear in the tokens, and a class token
    needs one row of the last block. Values sum to 1 minus what leads to special tokens.

    `discard` follows vit-explain: of each image's fused matrix, flattened, that fraction of the entries, the lowest, becomes 0, except the class
    token's attention to itself; then the residual is added and rows are made to sum to 1. (Its own code divides columns by the row sums, which
    for a batch of one is an error of the convention, and for more images of the shape; here rows are divided.) Where entries tie for the last
    place, none of those is discarded.

    Args:
        maps: Captured with `rows="all"`; the blocks that were captured are those that are followed.
        heads: `"mean"`, `"max"` or `"min"` over heads, or one head's index.
        residual: Share of the residual connection, 0 to 1; Abnar and Zuidema take 0.5.
        discard: Fraction of each fused matrix to discard, 0 to below 1; vit-explain takes 0.9. Every matrix is then gone through three times.
        start: The first block that is followed, by index or name; earlier ones are left out.

    Returns:
        A map of `(batch, h, w)` float32; NaN at patches that the model dropped before the first block.

    Raises:
        RowsNotKeptError: Unless captured with `rows="all"`.
        NoReadoutError: If the model's head reads no class token, pooling or mean, or the pooling was not captured.
        TokenLayoutError: If a block's matrix is not one of all tokens by all tokens (windows, pooled keys, packed images), or the blocks'
            tokens differ (dropped on the way, in another order).
        UnsupportedModelError: If a block multiplies its values by something else than softmax rows.
        ValueError: If an option is out of its range.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, rollout
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with torch.inference_mode(), AttentionCapture(model, rows="all") as capture:
        ...     logits = model(torch.randn(2, 3, 224, 224))
        >>> rollout(capture.maps).shape
        torch.Size([2, 14, 14])
    """
    fusion = _checked(maps, heads, residual, discard)
    blocks = followed_blocks(maps, "rollout", start)
    layout = common_layout(blocks, "rollout")
    with exact_arithmetic(blocks[-1].matrix.device.type):
        weights = _Weights(fusion, residual, Discard(discard, layout))
        values = layout.patches(_rolled(maps, blocks, layout, heads, weights)).float()
    return make_map(maps, values, _with_pooling(maps, blocks), "rollout", heads=heads, uniform=1 / blocks[0].shape[-1])


def _with_pooling(maps: AttentionMaps, blocks: list[BlockAttention]) -> list[BlockAttention]:
    """The blocks that were followed, and the pooling from which."""
    return [*blocks, *(block for block in maps if block.pooling and maps.readout.rows is Rows.POOL)]


def rollout_by_block(maps: AttentionMaps, *, residual: float = 0.5) -> Iterator[Tensor | None]:
    """Rollout of every token through the blocks up to each, by the rules of `rollout`: the mean over heads, nothing discarded.

    With W_l as there, these are the products `W_l ... W_0`, and a pooling's rows times the last of them. Each is a whole matrix.

    Returns:
        For each block `(batch, queries, tokens)` float32; None for a pooling that reads other tokens than the block before it.
    """
    check_whole_matrices(maps, "rollout")
    common_layout(followed_blocks(maps, "rollout"), "rollout")
    for block in maps:
        check_rows_multiply_values(block, "rollout")
    return _products(maps, residual)


def _products(maps: AttentionMaps, residual: float) -> Iterator[Tensor | None]:
    product: Tensor | None = None
    for block in maps:
        if not block.pooling:
            product = _followed(block.matrix, product, residual)
            yield product
        else:
            fits = product is not None and product.shape[2] == block.shape[3]
            yield _followed(block.matrix, product, residual=0.0) if fits else None


def _followed(matrix: SoftmaxMatrix, before: Tensor | None, residual: float) -> Tensor:
    """W of a block times the product before it."""
    batch, _, queries, keys = matrix.shape
    product = torch.empty(batch, queries, keys, device=matrix.device)
    for chunk, fused in matrix.fused_chunks():
        with exact_arithmetic(matrix.device.type):
            mixed = (1 - residual) * fused.float()
            if residual:
                mixed.diagonal(chunk.queries.start).add_(residual)
            mixed /= _nonzero(mixed.sum(dim=-1, keepdim=True))
            product[chunk.image, chunk.queries] = mixed if before is None else mixed @ before[chunk.image]
    return product


def _rolled(
    maps: AttentionMaps, blocks: list[BlockAttention], layout: TokenLayout, heads: HeadsOption, weights: "_Weights"
) -> Tensor:
    """The readout's row times every block's W, from the last to the first: `(batch, tokens)` float64."""
    row, token = first_row(maps, blocks[-1], layout, lambda pooling: _pooled_row(pooling, heads), "rollout")
    for block in reversed(blocks):
        matrix = block.matrix.head(heads) if isinstance(heads, int) else block.matrix
        row, token = _through(matrix, row, token, weights), None
    return row


@dataclass(frozen=True, eq=False)
class _Weights:
    """How a block's matrix becomes W: head fusion, the residual's share, what is discarded."""

    fusion: HeadFusion
    residual: float
    discard: Discard


def _checked(maps: AttentionMaps, heads: HeadsOption, residual: float, discard: float) -> HeadFusion:
    if heads is None:
        raise ValueError(
            "rollout multiplies one matrix a block: expected heads='mean', 'max', 'min' or one head's index, got None. Choose one."
        )
    if not 0 <= residual <= 1:
        raise ValueError(f"rollout cannot weigh the residual: expected 0 <= residual <= 1, got {residual}.")
    if not 0 <= discard < 1:
        raise ValueError(f"rollout cannot discard: expected a fraction, 0 <= discard < 1, got {discard}.")
    check_whole_matrices(maps, "rollout")
    return HeadFusion.MEAN if isinstance(heads, int) else choose(HeadFusion, heads, "heads")


def _pooled_row(pooling: BlockAttention, heads: HeadsOption) -> Tensor:
    """The pooling's row over the tokens that it reads, `(batch, keys)` float64, summing to 1."""
    rows = pooling.matrix.rows(pooling.readout_rows or slice(None)).double()
    fused = fuse_heads(rows, heads).mean(dim=1)
    return fused / fused.sum(dim=-1, keepdim=True)


def _through(matrix: SoftmaxMatrix, row: Tensor, token: int | None, weights: _Weights) -> Tensor:
    """The row times one block's W: `(batch, tokens)` float64. With `token` the row is that token's unit row."""
    keeps_all = not weights.discard.fraction
    if token is not None and keeps_all:
        attended = fuse_heads(matrix.rows([token]).double(), weights.fusion)[:, 0]
        total = weights.residual + (1 - weights.residual) * attended.sum(dim=-1, keepdim=True)
        return _joined(row, attended, weights.residual) / _nonzero(total)
    if matrix.normalised and weights.fusion is HeadFusion.MEAN and keeps_all:
        return _joined(row, matrix.fused_left_multiply(row[:, None])[:, 0], weights.residual)
    images = [_image_through(matrix.image(i), row[i], weights) for i in range(len(row))]
    return torch.stack(images) if images else row


def _image_through(matrix: SoftmaxMatrix, row: Tensor, weights: _Weights) -> Tensor:
    """The same for one image, `(tokens,)`, where rows of the fused matrix need not sum to 1."""
    fusion, residual, discard = weights.fusion, weights.residual, weights.discard
    threshold = discard.threshold(matrix, fusion)
    shares, attended = torch.zeros_like(row), torch.zeros_like(row)
    for chunk, fused in matrix.fused_chunks(fusion):
        if threshold is not None:
            discard.apply(fused, chunk.queries, threshold)
        total = residual + (1 - residual) * fused.sum(dim=-1, dtype=torch.float64)
        shares[chunk.queries] = share = row[chunk.queries] / _nonzero(total)
        attended += torch.mv(fused.T, share.to(fused.dtype))
    return _joined(shares, attended, residual)


def _joined(row: Tensor, attended: Tensor, residual: float) -> Tensor:
    return residual * row + (1 - residual) * attended


def _nonzero(total: Tensor) -> Tensor:
    return total.masked_fill(total == 0, 1.0)
