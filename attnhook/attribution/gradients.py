"""Class-specific maps: attention weighted by the gradient of a score, in linear memory.

They explain a score, with the limits of any gradient: they hold near this input, saturated scores have small gradients, and MLPs and norms are
left out of the products. A is a block's attention matrix, dA the gradient of the score with respect to it, and `(.)+` the positive part,
elementwise. A is not negative, so (A dA)+ is A (dA)+; products with it are made a chunk at a time. Maps scale with the score. A score summed
over the batch gives each image its own map, because a batch's images do not interact.
"""

import torch
from torch import Tensor

from attnhook.attribution import propagation
from attnhook.attribution.map_making import make_map
from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import exact_arithmetic
from attnhook.capture.output_gradients import AttentionGradient
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.sites import Queries
from attnhook.capture.softmax_matrix import BUDGET_BYTES
from attnhook.errors import GradientsNotKeptError, TokenLayoutError
from attnhook.imaging.patch_maps import PatchMap


def relevance_rows(block: BlockAttention, queries: slice) -> Tensor:
    """Rows of the relevance, `(batch, heads, rows, keys)` float64."""
    return block.matrix.rows(queries).double() * _gradient(block).rows(queries).double().clamp_min_(0)


def left_multiply_relevance(block: BlockAttention, row: Tensor) -> Tensor:
    """A row `(batch, queries)` times the mean of the relevance over heads: `(batch, keys)` float64."""
    matrix, gradient = block.matrix, _gradient(block)
    batch, heads, _, keys = matrix.shape
    total = torch.zeros(batch, keys, dtype=torch.float64, device=row.device)
    buffer = torch.empty(0, dtype=gradient.dtype, device=gradient.device)
    with exact_arithmetic(matrix.device.type):
        for head in range(heads):
            for chunk, attention in matrix.head(head).fused_chunks():  # chunks that stay in a cache
                if buffer.numel() < attention.numel():  # once: the first chunk is the largest
                    buffer = buffer.new_empty(attention.numel())
                slopes = gradient.head_rows(chunk.image, head, chunk.queries, buffer).clamp_min_(0)
                relevance = attention.mul_(slopes)
                weights = row[chunk.image, chunk.queries].to(relevance.dtype)
                total[chunk.image] += torch.mv(relevance.T, weights)
    return total / heads


def mean_positive_gradient(block: BlockAttention) -> Tensor:
    """Mean over heads and queries of the positive part of dA: `(batch, keys)` float64."""
    gradient = _gradient(block)
    batch, heads, queries, keys = gradient.shape
    total = torch.zeros(batch, keys, dtype=torch.float64, device=gradient.device)
    step = max(1, min(queries, BUDGET_BYTES // (2 * gradient.dtype.itemsize * keys)))
    buffer = torch.empty(step * keys, dtype=gradient.dtype, device=gradient.device)
    with exact_arithmetic(gradient.device.type):
        for image in range(batch):
            for head in range(heads):
                for first in range(0, queries, step):
                    chunk = slice(first, min(first + step, queries))
                    slopes = gradient.head_rows(image, head, chunk, buffer)
                    total[image] += slopes.clamp_min_(0).sum(dim=0, dtype=torch.float64)
    return total / (heads * queries)


def _gradient(block: BlockAttention) -> AttentionGradient:
    gradient = block.gradient
    if gradient.shape != block.shape:
        raise GradientsNotKeptError(
            f"the gradient of block {block.name!r} does not fit its matrix: expected shape {block.shape}, got {gradient.shape}. Capture the "
            "block in one forward of its own."
        )
    return gradient


def gradient_attention(maps: AttentionMaps, *, block: int | str = -1) -> PatchMap:
    """The readout's attention row of one block, weighted by the gradient of the score.

    With r the readout, the map is `mean_heads((A * dA)+[r, patches])`: the weighting of Grad-CAM (Selvaraju et al., Grad-CAM: Visual
    Explanations from Deep Networks via Gradient-based Localization, 2017, arXiv 1610.02391), entry by entry, on the attention of one block, as
    Chefer et al. (2021, arXiv 2103.15679) use it for one layer. For a mean readout it is the mean over the patches' rows; for an attention
    pooling, over its queries.

    Args:
        maps: Captured with `gradients=True`, after a backward pass.
        block: Index (negative from the end) or name.

    Returns:
        A map of `(batch, h, w)` float32, not negative.

    Raises:
        GradientsNotKeptError: Unless captured with `gradients=True` and after a backward pass.
        NoReadoutError: If the model's head reads no class token, pooling or mean in this block.
        TokenLayoutError: If the block's queries or keys are not the tokens of one image (windows, pooled keys, packed images).

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, gradient_attention
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with AttentionCapture(model, gradients=True) as capture:
        ...     model(torch.randn(2, 3, 224, 224))[:, 281].sum().backward()
        >>> gradient_attention(capture.maps).shape
        torch.Size([2, 14, 14])
    """
    propagation.require_all_rows(maps, "gradient_attention", "gradients=True")
    chosen = maps[block]
    layout = _layout(chosen, "gradient_attention")
    queries = propagation.readout_queries(maps, chosen)
    begin, end, _ = queries.indices(chosen.shape[2])
    if end - begin == 1:
        relevance = relevance_rows(chosen, queries)[:, :, 0].mean(dim=1)
    else:
        row = torch.zeros(chosen.shape[0], chosen.shape[2], dtype=torch.float64, device=chosen.matrix.device)
        row[:, queries] = 1.0 / (end - begin)
        relevance = left_multiply_relevance(chosen, row)
    return make_map(maps, layout.patches(relevance).float(), [chosen], "gradient attention")


def gradient_rollout(maps: AttentionMaps) -> PatchMap:
    """Relevance of the patches for the readout, propagated through all blocks.

    Chefer, Gur and Wolf, Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers, ICCV 2021,
    arXiv 2103.15679. With `R = I` at the start, each self-attention block does `R <- R + E_heads[(A * dA)+] R`, from the first block to the
    last, and the map is the readout's row of R, at the patches. Only that row is computed: from the last block to the first,
    `r <- r + r E_heads[(A * dA)+]`, in chunks. The readout r at the start is, as the model's head has it,

    - class token: the unit row of that token;
    - attention pooling: the pooling's own `E_heads[(A * dA)+]`, over the tokens that it reads (the paper's rule for attention between two
      sequences, of which the pooling's queries start with nothing), averaged over its queries;
    - mean: the same weight for every patch, so that each patch begins with 1 / patches of its own.

    Rows are not normalised: that is for the paper's models of two modalities.

    Args:
        maps: Captured with `gradients=True`, after a backward; the blocks that were captured are those that are followed.

    Returns:
        A map of `(batch, h, w)` float32, not negative; NaN at patches that the model dropped before the first block.

    Raises:
        GradientsNotKeptError: Unless captured with `gradients=True` and after a backward pass.
        NoReadoutError: If the model's head reads no class token, pooling or mean, or the pooling was not captured.
        TokenLayoutError: If a block's matrix is not all tokens by all tokens (windows, pooled keys, packed images), or the blocks' tokens
            differ (dropped in between, in another order).
        UnsupportedModelError: If a block does not multiply its values by softmax rows alone.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, gradient_rollout
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with AttentionCapture(model, gradients=True) as capture:
        ...     model(torch.randn(2, 3, 224, 224))[:, 281].sum().backward()
        >>> gradient_rollout(capture.maps).shape
        torch.Size([2, 14, 14])
    """
    propagation.require_all_rows(maps, "gradient_rollout", "gradients=True")
    blocks = propagation.blocks_from(maps, "gradient_rollout")
    layout = propagation.shared_layout(blocks, "gradient_rollout")
    row, token = propagation.initial_row(maps, blocks[-1], layout, _pooling_relevance, "gradient_rollout")
    for block in reversed(blocks):
        if token is None:
            row = row + left_multiply_relevance(block, row)
        else:
            row, token = row + relevance_rows(block, slice(token, token + 1))[:, :, 0].mean(dim=1), None
    return make_map(maps, layout.patches(row).float(), propagation.with_pooling(maps, blocks), "gradient rollout")


def _pooling_relevance(pooling: BlockAttention) -> Tensor:
    return relevance_rows(pooling, pooling.readout_rows or slice(None)).mean(dim=(1, 2))


def legrad(maps: AttentionMaps) -> PatchMap:
    """The positive gradient of the attention of all blocks.

    Bousselham et al., LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity, 2024, arXiv 2404.03214. The
    map is the mean over blocks of `E_l = mean_heads mean_queries (dA_l)+`, at the patches, before the paper's min-max normalisation. An
    attention pooling counts as a block, its queries as the queries. No readout is needed: all queries count.

    One departure: the paper scores the tokens of every layer l by the classifier, and E_l is of that score's own gradient. After one backward of
    the model's score, all E_l are of that one, because only the model knows how to score a layer's tokens. If you know it too,
    this gives the paper's: inside one capture, `torch.autograd.grad(score_l, input_of_block_l, retain_graph=True)` for every block; such a
    backward passes through no other.

    Both tell classes apart less well than methods that multiply the gradient by the attention, because a patch that no query reads counts as
    much as one that all queries read. With two digits on a canvas (`tests/attribution/test_digits.py`, 2,000 cases), the map peaks inside the
    right digit 65 % of the time, with the paper's layer-wise scores 73 %, and `gradient_rollout` 98 %.

    Args:
        maps: Captured with `gradients=True`, after a backward; the blocks that were captured are those that are averaged.

    Returns:
        A map of `(batch, h, w)` float32, not negative.

    Raises:
        GradientsNotKeptError: Unless captured with `gradients=True` and after a backward pass.
        TokenLayoutError: If a block's queries or keys are not the tokens of one image (windows, pooled keys, packed images), or the blocks'
            grids differ.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, legrad
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with AttentionCapture(model, gradients=True) as capture:
        ...     model(torch.randn(2, 3, 224, 224))[:, 281].sum().backward()
        >>> legrad(capture.maps).shape
        torch.Size([2, 14, 14])
    """
    propagation.require_all_rows(maps, "legrad", "gradients=True")
    grid = _layout(maps[-1], "legrad").grid
    found = []
    for block in maps:
        layout = _layout(block, "legrad")
        if layout.grid != grid:
            raise TokenLayoutError(
                f"legrad cannot average block {block.name!r} with the others: expected a grid of {grid[0]}x{grid[1]}, got "
                f"{layout.grid[0]}x{layout.grid[1]}. Capture blocks of one grid with blocks=."
            )
        found.append(layout.patches(mean_positive_gradient(block)))
    return make_map(maps, torch.stack(found).mean(dim=0).float(), list(maps), "legrad", row="all queries to patches")


def _layout(block: BlockAttention, method: str) -> TokenLayout:
    """The token layout of a block whose keys, and queries unless they are a pooling's, are the tokens of one image."""
    layout, (_, _, queries, keys) = block.layout, block.shape
    own_queries = queries != keys or block.query_token_layout is not None
    pooled = own_queries and block.queries in (Queries.TOKENS, Queries.PATCHES)
    if not isinstance(layout, TokenLayout) or block.queries is Queries.OTHER or pooled:
        raise TokenLayoutError(
            f"{method} has no map of block {block.name!r}: expected attention to the tokens of one image, got {queries} queries by {keys} keys "
            f"({block.queries} to {layout.describe()}). Read `.gradient.rows(...)` and `.matrix.rows(...)`."
        )
    return layout
