"""From a method's values to a `PatchMap`: the position of the grid, the uniform share, and the caption."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from attnhook.capture.layout import TokenLayout, pixels_per_step
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.windows import WindowLayout
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, HeadsOption, Rows

_ROWS = {Rows.CLS: "class-token row", Rows.POOL: "pooling-query row", Rows.MEAN: "mean of the patches' rows"}


def make_map(
    maps: AttentionMaps,
    values: Tensor,
    blocks: Sequence[BlockAttention],
    method: str,
    *,
    heads: HeadsOption = HeadFusion.MEAN,
    row: str | None = None,
    uniform: float | None = None,
    adds_up: bool | None = None,
) -> PatchMap:
    """Make a `PatchMap` of a method's values, `(batch, [heads,] h, w)`.

    With the mass outside the patches, a map that `adds_up` sums to 1; None: if values are softmax weights of one head or the mean of all.
    """
    last = blocks[-1]
    if adds_up is None:
        adds_up = uniform is not None and (isinstance(heads, int) or heads in (None, HeadFusion.MEAN))
    video = getattr(last.token_layout, "frames", 1) > 1
    shown_row = row_in_words(maps) if row is None else row
    return replace(
        placed(maps, values),
        uniform=uniform,
        adds_up=adds_up and not video,
        description=f"{method} {_blocks_in_words(blocks)}, {heads_in_words(heads, last.shape[1])}, {shown_row}",
        quantity="attention" if method in ("raw attention", "received attention") else method,
    )


def placed(maps: AttentionMaps, values: Tensor) -> PatchMap:
    """A `PatchMap` of values `(..., h, w)` at their position in the model's input."""
    area, grid = maps.patch_area, (values.shape[-2], values.shape[-1])
    if maps.input_size is not None and _is_hierarchical(maps):
        steps = [pixels_per_step(*axis) for axis in zip(maps.input_size, grid, strict=True)]
        area = (steps[0] * grid[0], steps[1] * grid[1]) if all(steps) else None
    elif area is not None and any(pixels % patches for pixels, patches in zip(area, grid, strict=True)):
        area = None
    return PatchMap(values, input_size=maps.input_size, area=area)


def _is_hierarchical(maps: AttentionMaps) -> bool:
    """Whether the model is hierarchical: its grids may reach beyond the image, because odd sizes are padded before they are halved."""
    layouts = [block.token_layout for block in maps]
    grids = {layout.grid for layout in layouts if isinstance(layout, TokenLayout | WindowLayout)}
    return len(grids) > 1 or any(isinstance(layout, WindowLayout) for layout in layouts)


def heads_in_words(heads: HeadsOption, count: int) -> str:
    """How the heads were fused."""
    if heads is None:
        return f"each of {count} heads"
    return f"head {heads % count}" if isinstance(heads, int) else f"{heads} over {count} heads"


def block_in_words(block: BlockAttention) -> str:
    """A block's number, counted from 1, and its name: `block 12 of 12 (blocks.11.attn)`."""
    if block.pooling:
        return f"the attention pooling ({block.name})"
    if block.number is None:
        return f"block {block.name}"
    return f"block {block.number[0]} of {block.number[1]} ({block.name})"


def row_in_words(maps: AttentionMaps, row: int | None = None) -> str:
    """Whose attention a map shows."""
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
