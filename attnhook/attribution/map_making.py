"""From a method's values to a `PatchMap`: the position of the grid, the uniform share, and the caption."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from attnhook.capture.layout import TokenLayout, pixels_per_step
from attnhook.capture.patch_cells import overlap_of
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.sites import Queries
from attnhook.capture.windows import WindowLayout
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import NO_OVERLAP, HeadFusion, HeadsOption, Rows, Size

_ROWS = {Rows.CLS: "CLS", Rows.POOL: "pooling query", Rows.MEAN: "all patches (mean)"}


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
        placed(maps, values, last),
        uniform=uniform,
        adds_up=adds_up and not video,
        description=f"{method}, {shown_row}, {_blocks_in_words(blocks)}, {heads_in_words(heads, last.shape[1])}",
        quantity="attention" if method in ("raw attention", "received attention") else method,
    )


def placed(maps: AttentionMaps, values: Tensor, block: BlockAttention) -> PatchMap:
    """A `PatchMap` of a block's values `(..., h, w)` at their position in the model's input."""
    area, grid = maps.patch_area, (values.shape[-2], values.shape[-1])
    if maps.input_size is not None and _is_hierarchical(maps):
        steps = [pixels_per_step(*axis) for axis in zip(maps.input_size, grid, strict=True)]
        area = (steps[0] * grid[0], steps[1] * grid[1]) if all(steps) else None
    elif area is not None and any(pixels % patches for pixels, patches in zip(area, grid, strict=True)):
        area = None
    covered = area or maps.input_size
    # Keys may be merged inside the block: which embedding its tokens come from is seen in the queries, which are not.
    tokens = _query_grid(block) or grid
    overlap = (
        NO_OVERLAP if covered is None else overlap_of(maps.overlaps, (covered[0] / tokens[0], covered[1] / tokens[1]))
    )
    return PatchMap(values, input_size=maps.input_size, area=area, overlap=overlap)


def _query_grid(block: BlockAttention) -> Size | None:
    """The grid of a block's queries where it is not that of its keys."""
    layout = block.query_token_layout
    if isinstance(layout, WindowLayout):
        return layout.query_grid or layout.grid
    return layout.grid if isinstance(layout, TokenLayout) else None


def _is_hierarchical(maps: AttentionMaps) -> bool:
    """Whether the model is hierarchical: its grids may reach beyond the image, because odd sizes are padded before they are halved."""
    layouts = [block.token_layout for block in maps]
    grids = {layout.grid for layout in layouts if isinstance(layout, TokenLayout | WindowLayout)}
    return len(grids) > 1 or any(isinstance(layout, WindowLayout) for layout in layouts)


def heads_in_words(heads: HeadsOption, count: int) -> str:
    """How the heads were fused."""
    if heads is None:
        return f"each of {count} heads" if count > 1 else "1 head"
    if isinstance(heads, int):
        return f"head {heads % count}"
    return f"{heads} of {count} heads" if count > 1 else "1 head"


def block_in_words(block: BlockAttention) -> str:
    """A block's number, counted from 1, where the model has one."""
    if block.pooling:
        return "attention pooling"
    return f"block {block.name}" if block.number is None else f"block {block.number[0]} of {block.number[1]}"


def row_in_words(maps: AttentionMaps, row: int | None = None, block: BlockAttention | None = None) -> str:
    """Whose attention a map shows, and to what: `CLS to patches`."""
    query = query_in_words(maps, row)
    if row is not None and block is not None and maps.selected_rows is Rows.ALL and block.queries is Queries.OTHER:
        query = f"query {row % block.shape[2]}"
    return f"{query} to patches" if query else "no readout"


def query_in_words(maps: AttentionMaps, row: int | None = None) -> str:
    """Whose rows were captured, or are read of whole matrices; empty if there is no readout."""
    if not isinstance(maps.selected_rows, Rows):
        chosen = maps.selected_rows if row is None else [maps.selected_rows[row]]
        words = [f"patch {tuple(one)}" if isinstance(one, tuple | list) else f"token {one}" for one in chosen]
        return " or ".join(words)
    if row is not None:
        return f"{'token' if maps.selected_rows is Rows.ALL else 'query'} {row}"
    shown = maps.readout.rows if maps.selected_rows is Rows.ALL else maps.selected_rows
    return _ROWS.get(shown, "") if shown is not None else ""


def _blocks_in_words(blocks: Sequence[BlockAttention]) -> str:
    if len(blocks) == 1:
        return block_in_words(blocks[0])
    first, last = blocks[0], next((block for block in reversed(blocks) if not block.pooling), blocks[-1])
    pooled = " and attention pooling" if blocks[-1].pooling and last is not blocks[-1] else ""
    if first.number is not None and last.number is not None:
        return f"blocks {first.number[0]} to {last.number[0]} of {last.number[1]}{pooled}"
    return f"{len(blocks)} blocks from {first.name} to {last.name}{pooled}"
