"""Raw attention: the row of the readout in one block, on the patch grid.

It does not measure importance: what a patch contributes also depends on its value vector and on all other blocks.
"""

import torch
from torch import Tensor

from attnhook.attribution.map_making import make_map, row_in_words
from attnhook.attribution.propagation import readout_queries
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.errors import RowsNotKeptError
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, HeadsOption, Rows, choose


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
    chosen = maps[block]
    weights = readout_row(maps, chosen, row=row)
    values = fuse_heads(chosen.layout.patches(weights), heads, chosen.name)
    shown = row_in_words(maps, row)
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
    count = maps.shape[1]
    if heads is None:
        return maps.clone()  # not a view of the captured rows
    if isinstance(heads, int):
        if not -count <= heads < count:
            of_block = "" if block is None else f" of block {block!r}"
            raise IndexError(
                f"head {heads} does not exist: expected -{count} to {count - 1}{of_block}. Pass one of them, or 'mean', 'max' or 'min'."
            )
        return maps[:, heads].clone()
    fusion = choose(HeadFusion, heads, "heads")
    if fusion is HeadFusion.MEAN:
        return maps.mean(dim=1)
    return torch.amax(maps, dim=1) if fusion is HeadFusion.MAX else torch.amin(maps, dim=1)
