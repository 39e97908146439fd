"""Received attention: how much attention each position of a block receives from all queries.

It needs no readout, so windows and pooled keys have it, too. It says nothing about what a classifier reads.
"""

from attnhook.attribution.map_making import make_map
from attnhook.attribution.raw_maps import fuse_heads
from attnhook.capture.records import AttentionMaps
from attnhook.capture.windows import WindowLayout
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadsOption


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
    chosen = maps[block]
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
    return make_map(maps, values, [chosen], "received attention", heads=heads, row="all queries", uniform=uniform)
