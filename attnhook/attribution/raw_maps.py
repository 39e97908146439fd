"""Raw attention: the row of what the model reads out, on the patch grid.

It says where a readout's attention went in one block. It is no gradient saliency and not importance: what a patch contributes also
depends on its value vector and on every other block.
"""

import torch
from torch import Tensor

from attnhook.attribution.map_making import make_map, row_in_words
from attnhook.attribution.readouts import readout_queries
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.errors import RowsNotKeptError
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, HeadsOption, Rows, choose


def raw_attention(
    maps: AttentionMaps, *, block: int | str = -1, heads: HeadsOption = "mean", row: int | None = None
) -> PatchMap:
    """The readout's attention row of one block, on the patch grid.

    With A the block's attention matrix `(batch, heads, queries, keys)` and r the readout (class token, pooling query, or the mean over the
    patches' rows; of a pooling with several queries, the mean over them), the map is `fuse_heads(A[:, :, r, patches])`. Values are softmax
    weights: with `heads="mean"` they sum to 1 minus the attention that goes to special tokens.

    Args:
        maps: What was captured; any `rows`.
        block: Index (negative from the end) or name.
        heads: `"mean"`, `"max"` or `"min"` over heads, one head's index, or None to keep all heads.
        row: Which of several kept rows; needed only if `rows` chose several tokens.

    Returns:
        A map of `(batch, h, w)` float32, or of `(batch, heads, h, w)` for `heads=None`.

    Raises:
        RowsNotKeptError: If several rows were kept and `row` does not say which.

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
    """One row a head of a block: the readout's, or the one that was chosen when capturing.

    Returns:
        `(batch, heads, keys)` float32.
    """
    if row is None:
        return _readout(maps, block)
    count = block.shape[2]
    if not -count <= row < count:
        raise RowsNotKeptError(f"row {row} was not kept: expected -{count} to {count - 1} of block {block.name!r}.")
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
            f"block {block.name!r} keeps {rows.shape[2]} rows: expected one. Say which with row=0 to {rows.shape[2] - 1}, or capture with "
            "rows='readout'."
        )
    return rows[:, :, 0]


def fuse_heads(maps: Tensor, heads: HeadsOption, block: str | None = None) -> Tensor:
    """Make one map of the heads' maps.

    Args:
        maps: `(batch, heads, ...)`.

    Returns:
        `(batch, ...)`, or a copy of `maps` for None.
    """
    count = maps.shape[1]
    if heads is None:
        return maps.clone()  # never a view of what was captured
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
