"""Maps of one block: the row of the readout, attention weighted by the values' lengths, attention received from all queries.

Raw attention does not measure importance: what a patch contributes also depends on its value vector and on all other blocks.
"""

import torch
from torch import Tensor

from attnhook.attribution.map_making import make_map, row_in_words
from attnhook.attribution.propagation import readout_queries, require_softmax_weights
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.windows import WindowLayout
from attnhook.errors import RowsNotKeptError
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, HeadsOption, Rows, checked_heads


def raw_attention(
    maps: AttentionMaps, *, block: int | str = -1, heads: HeadsOption = "mean", row: int | None = None
) -> PatchMap:
    """The readout's attention row of one block, on the patch grid.

    With A the block's attention matrix `(batch, heads, queries, keys)` and r the readout (the class token, the pooling query or the mean of
    several, or the mean over the patches' rows), the map is `fuse_heads(A[:, :, r, patches])`. Values are softmax weights: with `heads="mean"`
    they sum to 1 minus the attention on special tokens.

    Args:
        maps: The captured attention, with any `rows`.
        block: Index (negative from the end) or name.
        heads: `"mean"`, `"max"` or `"min"` over heads, one head's index, or None to keep all heads.
        row: Index among the captured rows; needed only if `rows` chose several tokens.

    Returns:
        A map of `(batch, h, w)` float32, or of `(batch, heads, h, w)` for `heads=None`.

    Raises:
        RowsNotKeptError: If several rows were captured and `row` is None, or if there is no such row.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, raw_attention
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with torch.inference_mode(), AttentionCapture(model, blocks=1) as capture:
        ...     logits = model(torch.randn(1, 3, 224, 224))
        >>> raw_attention(capture.maps, heads=None).shape
        torch.Size([1, 3, 14, 14])
    """
    chosen, heads = maps[block], checked_heads(heads)
    weights = readout_row(maps, chosen, row=row)
    values = fuse_heads(chosen.layout.patches(weights), heads, chosen.name)
    shown = row_in_words(maps, row, chosen)
    return make_map(maps, values, [chosen], "raw attention", heads=heads, row=shown, uniform=1 / chosen.shape[-1])


def readout_row(maps: AttentionMaps, block: BlockAttention, *, row: int | None = None) -> Tensor:
    """One row per head of a block, `(batch, heads, keys)` float32: the readout's, or the captured row with the index `row`."""
    if row is None:
        return _readout(maps, block)
    count = block.shape[2]
    if not -count <= row < count:
        raise RowsNotKeptError(
            f"row {row} of block {block.name!r} was not captured: expected -{count} to {count - 1}. Pass one of these, or use rows='all'."
        )
    whole = maps.selected_rows is Rows.ALL
    return block.matrix.rows([row % count])[:, :, 0] if whole else block.rows[:, :, row]


def _readout(maps: AttentionMaps, block: BlockAttention) -> Tensor:
    if maps.selected_rows is Rows.ALL:
        queries = readout_queries(maps, block)
        several = len(range(*queries.indices(block.shape[2]))) > 1
        rows = block.matrix.mean_rows(queries) if several else block.matrix.rows(queries)
    elif block.pooling and maps.selected_rows is Rows.POOL:
        rows = block.rows.mean(dim=2, keepdim=True)
    else:
        rows = block.rows
    if rows.shape[2] != 1:
        raise RowsNotKeptError(
            f"cannot choose a row of block {block.name!r}: expected one captured row, got {rows.shape[2]}. Pass row=0 to "
            f"{rows.shape[2] - 1}, or capture with rows='readout'."
        )
    return rows[:, :, 0]


def fuse_heads(maps: Tensor, heads: HeadsOption, block: str | None = None) -> Tensor:
    """Fuse `(batch, heads, ...)` to `(batch, ...)`; None returns a copy of all heads."""
    count, heads = maps.shape[1], checked_heads(heads)
    if heads is None:
        return maps.clone()  # not a view of the captured rows
    if isinstance(heads, int):
        if not -count <= heads < count:
            of_block = "" if block is None else f" of block {block!r}"
            raise IndexError(
                f"head {heads}{of_block} does not exist: expected -{count} to {count - 1}. Pass one of them, or 'mean', 'max' or 'min'."
            )
        return maps[:, heads].clone()
    if heads is HeadFusion.MEAN:
        return maps.mean(dim=1)
    return torch.amax(maps, dim=1) if heads is HeadFusion.MAX else torch.amin(maps, dim=1)


def received_attention(maps: AttentionMaps, block: int | str = -1, *, heads: HeadsOption = "mean") -> PatchMap:
    """The attention that each position of a block's key grid receives, averaged over all queries of the image.

    With A the block's attention matrix and q its queries (without the padding of windows), the map is `fuse_heads(mean_q A[:, :, q, j])` at the
    grid position of key j. Windows are put back in their place, with shifts undone. Attention on padding and special tokens is left out, so a
    map sums to 1 minus that. A position in several windows (halos) gets the sum of what it receives in each.

    Args:
        maps: Captured with `rows="all"`.
        block: Index (negative from the end) or name.
        heads: `"mean"`, `"max"` or `"min"` over heads, one head's index, or None to keep all heads.

    Returns:
        A map of `(batch, h, w)` float32 on the grid of the block's keys (`maps[block].layout.grid`), or of `(batch, heads, h, w)` for
        `heads=None`.

    Raises:
        RowsNotKeptError: Unless captured with `rows="all"`.
        TokenLayoutError: If the positions of the keys are unknown.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, received_attention
        >>> model = timm.create_model("swin_tiny_patch4_window7_224").eval()
        >>> with torch.inference_mode(), AttentionCapture(model, rows="all", blocks=[1]) as capture:
        ...     logits = model(torch.randn(1, 3, 224, 224))
        >>> capture.maps[0].layout.describe()
        '64 windows of 7x7 shifted by 3, 3 on a grid of 56x56'
        >>> received_attention(capture.maps, 0).shape
        torch.Size([1, 56, 56])
    """
    chosen, heads = maps[block], checked_heads(heads)
    layout, matrix = chosen.layout, chosen.matrix
    if isinstance(layout, WindowLayout):
        real = layout.real_queries(matrix.shape[2]).to(matrix.device)
        counted = real.repeat(matrix.shape[0] // len(real), 1)[:, None, None].double()
        received = layout.scatter(matrix.left_multiply(counted)[:, :, 0] / int(real.sum()))
        # Keys share the attention of their own window only: if it is uniform, every position of the grid receives the same.
        uniform = 1 / (layout.grid[0] * layout.grid[1])
    else:
        received = layout.patches(matrix.column_sums() / matrix.shape[2])
        uniform = 1 / matrix.shape[3]
    values = fuse_heads(received.float(), heads, chosen.name)
    return make_map(
        maps, values, [chosen], "received attention", heads=heads, row="all queries to patches", uniform=uniform
    )


def value_weighted_attention(maps: AttentionMaps, *, block: int | str = -1, heads: HeadsOption = "mean") -> PatchMap:
    """The readout's attention row of one block, each entry multiplied by the norm of its value vector.

    Kobayashi et al., Attention is Not Only a Weight: Analyzing Transformers with Vector Norms, 2020, arXiv 2004.10102. In each head the map is
    `||A[r, j] v_j|| = A[r, j] ||v_j||` for the readout r and the patches j; then heads are fused. The paper takes the vectors after the output
    projection, `v_j W_O`; here they are taken before it, as the kernel gets them. For a mean readout it is the mean over the patches' rows; for
    an attention pooling, over its queries.

    Args:
        maps: Captured with `values=True` (or `gradients=True`) and any `rows` that include the readout.
        block: Index (negative from the end) or name.
        heads: `"mean"`, `"max"` or `"min"` over heads, one head's index, or None to keep all heads.

    Returns:
        A map of `(batch, h, w)` float32, not negative, or of `(batch, heads, h, w)` for `heads=None`.

    Raises:
        GradientsNotKeptError: Unless captured with `values=True` or `gradients=True`, or if the model calls softmax itself.
        NoReadoutError: If the model's head reads no class token, pooling or mean in this block.
        TokenLayoutError: If the block's keys are not the tokens of one image.
        UnsupportedModelError: If the block does not multiply its values by softmax rows alone.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, value_weighted_attention
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with torch.inference_mode(), AttentionCapture(model, values=True) as capture:
        ...     logits = model(torch.randn(2, 3, 224, 224))
        >>> value_weighted_attention(capture.maps).shape
        torch.Size([2, 14, 14])
    """
    chosen, heads = maps[block], checked_heads(heads)
    require_softmax_weights(chosen, "value_weighted_attention")
    weights = readout_row(maps, chosen)
    values = chosen.values
    precise = values.dtype if values.dtype is torch.float64 else torch.float32
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=precise)
    norms = norms.repeat_interleave(weights.shape[1] // norms.shape[1], dim=1)  # grouped queries share a value head
    weighted = fuse_heads(chosen.layout.patches((weights * norms).float()), heads, chosen.name)
    return make_map(maps, weighted, [chosen], "value-weighted attention", heads=heads)
