"""From a method's values to a `PatchMap`: where the grid lies, what uniform attention would be, and the caption's words."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from attnhook.capture.layout import TokenLayout, pixels_per_step
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.windows import WindowLayout
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, HeadsOption, Rows

_ROWS = {
    Rows.CLS: "class-token row",
    Rows.POOL: "pooling-query row",
    Rows.MEAN: "mean of the patches' rows",
}


def make_map(
    maps: AttentionMaps,
    values: Tensor,
    blocks: Sequence[BlockAttention],
    method: str,
    *,
    heads: HeadsOption = HeadFusion.MEAN,
    row: str | None = None,
    uniform: float | None = None,
) -> PatchMap:
    """Make a `PatchMap` from what a method computed.

    Args:
        values: `(batch, [heads,] h, w)`.
    """
    last = blocks[-1]
    framed = getattr(last.token_layout, "frames", 1) > 1
    whole = isinstance(heads, int) or heads in (
        None,
        HeadFusion.MEAN,
    )  # the maximum or minimum over heads does not add up to 1
    words = [
        f"{method} {_blocks_in_words(blocks)}",
        heads_in_words(heads, last.shape[1]),
        row_in_words(maps) if row is None else row,
    ]
    return replace(
        placed(maps, values),
        uniform=uniform,
        adds_up=uniform is not None and whole and not framed,
        description=", ".join(words),
        quantity="attention" if method in ("raw attention", "received attention") else method,
    )


def placed(maps: AttentionMaps, values: Tensor) -> PatchMap:
    """Place values on a patch grid in the model's input.

    Args:
        values: `(..., h, w)`.
    """
    area, grid = maps.patch_area, (values.shape[-2], values.shape[-1])
    if maps.input_size is not None and _in_stages(maps):
        steps = [pixels_per_step(*axis) for axis in zip(maps.input_size, grid, strict=True)]
        area = (steps[0] * grid[0], steps[1] * grid[1]) if all(steps) else None
    elif area is not None and any(pixels % patches for pixels, patches in zip(area, grid, strict=True)):
        area = None
    return PatchMap(values, input_size=maps.input_size, area=area)


def _in_stages(maps: AttentionMaps) -> bool:
    """Whether the image shrinks from block to block, so that a grid may reach beyond it: an odd number of positions is padded to be halved."""
    layouts = [block.token_layout for block in maps]
    grids = {layout.grid for layout in layouts if isinstance(layout, TokenLayout | WindowLayout)}
    return len(grids) > 1 or any(isinstance(layout, WindowLayout) for layout in layouts)


def heads_in_words(heads: HeadsOption, count: int) -> str:
    """Say how the heads became one map."""
    if heads is None:
        return f"each of {count} heads"
    return f"head {heads % count}" if isinstance(heads, int) else f"{heads} over {count} heads"


def block_in_words(block: BlockAttention) -> str:
    """Name a block, counting from 1: `block 12 of 12 (blocks.11.attn)`."""
    if block.pooling:
        return f"the attention pooling ({block.name})"
    return (
        f"block {block.name}"
        if block.number is None
        else f"block {block.number[0]} of {block.number[1]} ({block.name})"
    )


def row_in_words(maps: AttentionMaps, row: int | None = None) -> str:
    """Say whose row a map shows."""
    if not isinstance(maps.selected_rows, Rows):
        chosen = maps.selected_rows if row is None else [maps.selected_rows[row]]
        words = [f"patch {tuple(one)}" if isinstance(one, tuple | list) else f"token {one}" for one in chosen]
        return f"row of {' or '.join(words)}"
    if row is not None:
        return f"row of {'token' if maps.selected_rows is Rows.ALL else 'query'} {row}"
    shown = maps.readout.rows if maps.selected_rows is Rows.ALL else maps.selected_rows
    return _ROWS.get(shown, "no readout") if shown is not None else "no readout"


def _blocks_in_words(blocks: Sequence[BlockAttention]) -> str:
    if len(blocks) == 1:
        return f"of {block_in_words(blocks[0])}"
    first, last = blocks[0], next((block for block in reversed(blocks) if not block.pooling), blocks[-1])
    pooled = " and the attention pooling" if blocks[-1].pooling and last is not blocks[-1] else ""
    if first.number is not None and last.number is not None:
        return f"through blocks {first.number[0]} to {last.number[0]} of {last.number[1]}{pooled}"
    return f"through {len(blocks)} blocks, {first.name} to {last.name}{pooled}"
