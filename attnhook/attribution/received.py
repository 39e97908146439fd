"""Received attention: how much every position of a block is looked at, whoever looks.

It needs no readout, so it is defined for models without a class token, for windows and for pooled keys. It says nothing about what a
classifier reads: do not call it the class token's map.
"""

from torch import Tensor

from attnhook.attribution.map_making import make_map
from attnhook.attribution.raw_maps import fuse_heads
from attnhook.capture.layout import TokenLayout
from attnhook.capture.packing import PackedLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.windows import WindowLayout
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadsOption


def received_attention(maps: AttentionMaps, block: int | str = -1, *, heads: HeadsOption = "mean") -> PatchMap:
    """The mass that each position of a block's key grid receives, averaged over all queries of the image.

    With A the block's attention matrix and q its queries (padding of windows left out), the map is `fuse_heads(mean_q A[:, :, q, j])` at the
    grid position of key j. Windows are put back where they were cut, shifts undone; what falls on padding and on special tokens is left out,
    so a map sums to 1 minus that. Positions that stand in several windows (halos) add up what they receive in each.

    Args:
        maps: Captured with `rows="all"`.
        block: Index (negative from the end) or name.
        heads: `"mean"`, `"max"` or `"min"` over heads, one head's index, or None to keep all heads.

    Returns:
        A map of `(batch, h, w)` float32 on the grid of the block's keys (`maps[block].layout.grid`), or of `(batch, heads, h, w)` for
        `heads=None`.

    Raises:
        RowsNotKeptError: Unless captured with `rows="all"`.
        TokenLayoutError: If the keys' positions are not known.

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
    layout = chosen.layout
    if isinstance(layout, WindowLayout):
        found = _unwindowed(chosen, layout)
        # A window's keys share the mass of its own queries alone: uniformly attended, every position of the grid receives the same.
        uniform = 1 / (layout.grid[0] * layout.grid[1])
    else:
        found, uniform = _global(chosen, layout), 1 / chosen.shape[-1]
    values = fuse_heads(found, heads, chosen.name)
    return make_map(maps, values, [chosen], "received attention", heads=heads, row="all queries", uniform=uniform)


def _global(block: BlockAttention, layout: TokenLayout | PackedLayout) -> Tensor:
    queries = block.matrix.shape[2]
    return layout.patches(_column_sums(block, None) / queries).float()


def _unwindowed(block: BlockAttention, layout: WindowLayout) -> Tensor:
    real = layout.real_queries(block.matrix.shape[2])
    return layout.scatter(_column_sums(block, real) / int(real.sum())).float()


def _column_sums(block: BlockAttention, real: Tensor | None) -> Tensor:
    """Sum over queries, `(batch * windows, heads, keys)` float64; only the real queries of `(windows, queries)`."""
    matrix = block.matrix
    if real is None:
        return matrix.column_sums()
    counted = real.to(matrix.device).repeat(matrix.shape[0] // real.shape[0], 1)
    return matrix.left_multiply(counted[:, None, None].double())[:, :, 0]
