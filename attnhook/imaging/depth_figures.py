"""Figures over the depth of a model: all heads of all blocks in one picture, and statistics block by block."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.figures import split_look
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.looks import Look, check_options, keywords
from attnhook.imaging.overlays import PAPER, blend, common_look
from attnhook.imaging.panels import HEADROOM, color_bar, make_pictures, make_plots, plain, plot_width, settle, show
from attnhook.imaging.picture_grids import (
    TEXT_POINTS,
    TITLE_INCHES,
    TITLE_POINTS,
    PictureGrid,
    RightOf,
    cell_size,
    inches,
    wrapped,
)
from attnhook.options import Size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP = 0.08  # of a cell's edge, between cells
_MOST_ROWS_IN_INCHES = 9.0
_LABEL_INCHES = 0.5
_DOT_COLOR, _MEAN_COLOR = "#0072b2", "black"  # a blue that colour-blind readers and printers tell from black
_PANELS_PER_ROW = 3
_ASPECT = 0.6  # of curves
_PHOTO_TITLE = "photo, as seen"


def map_grid(
    patch_maps: torch.Tensor | NDArray[Any],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    image: "ImageSource | None" = None,
    caption: str | None = None,
    label: str = "attention",
    cell_width: float = 0.6,
    **look: Any,
) -> "Figure":
    """Draw many small maps `(rows, columns, h, w)`, all in one range of colours: blocks by heads."""
    colors, figure = split_look(look, map_grid)
    values = _array(patch_maps).astype(np.float32)
    if values.ndim != 4 or 0 in values.shape or values.shape[:2] != (len(row_labels), len(column_labels)):
        raise GeometryError(
            f"cannot draw the grid of maps: expected (rows, columns, h, w) with {len(row_labels)} row labels and {len(column_labels)} column "
            f"labels, got shape {values.shape}."
        )
    rows, columns, height, width = values.shape
    bar, flat = color_bar([values], common_look([values], colors), label)
    picture, step = _mosaic(values, common_look([values], colors))
    wide, tall = cell_size((height, width), cell_width)
    shrink = min(1.0, _MOST_ROWS_IN_INCHES / (rows * tall))
    across, down = columns * wide * shrink, rows * tall * shrink
    photo = None if image is None or figure.get("ax") is not None else read_image(image)
    thumb: tuple[float, ...] = ()
    if photo is not None:
        fitting = min(max(1.2, min(1.6, across / 2)), down * photo.width / photo.height)
        thumb = (max(fitting, inches(_PHOTO_TITLE, TITLE_POINTS)),)
    turned = max(map(len, column_labels)) > 6
    grid = PictureGrid((*thumb, across + _LABEL_INCHES), (down,), heads=(4 if turned else 2,))
    panels = make_pictures(grid, texts=[caption, flat], bar=bar, **figure)
    if photo is not None:
        show(panels.cells[0], photo, _PHOTO_TITLE)
        panels.cells[0].set_anchor("N")
    panels.cells[-1].set_axis_off()
    axes = panels.cells[-1].inset_axes((0, 0, 1, 1))
    axes.set_axes_locator(RightOf(panels.cells[-1], _LABEL_INCHES))
    axes.imshow(picture, interpolation="nearest", extent=(0, picture.width, picture.height, 0))
    _label_cells(axes, row_labels, column_labels, step, (height, width), turned=turned)
    drawn: Figure = panels.figure
    return drawn


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _mosaic(values: NDArray[np.float32], look: Look) -> tuple[Image.Image, Size]:
    """Arrange all maps on white; also returns the step from one map to the next, (down, across), in pixels."""
    rows, columns, height, width = values.shape
    zoom = max(1, -(-40 // max(height, width)))
    gap = max(1, round(_GAP * max(height, width) * zoom))
    down, across = height * zoom + gap, width * zoom + gap
    canvas = np.full((rows * down - gap, columns * across - gap, 3), 255, np.uint8)
    paper = Image.new("RGB", (width, height), PAPER)
    for row in range(rows):
        for column in range(columns):
            cell = np.asarray(blend(paper, values[row, column], look)).repeat(zoom, 0).repeat(zoom, 1)
            canvas[row * down : row * down + height * zoom, column * across : column * across + width * zoom] = cell
    return Image.fromarray(canvas), (down, across)


def _label_cells(
    axes: Any, blocks: Sequence[str], heads: Sequence[str], step: Size, cell: Size, *, turned: bool
) -> None:
    down, across = step
    zoom = down // cell[0]
    row_at = [number * down + cell[0] * zoom / 2 for number in range(len(blocks))]
    column_at = [number * across + cell[1] * zoom / 2 for number in range(len(heads))]
    axes.set_yticks(row_at, list(map(plain, blocks)), fontsize=TEXT_POINTS)
    axes.set_xticks(column_at, list(map(plain, heads)), fontsize=TEXT_POINTS)
    if turned:
        axes.tick_params(axis="x", rotation=60)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("block", fontsize=TITLE_POINTS)
    axes.set_xlabel("head", fontsize=TITLE_POINTS)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)


def depth_figure(
    statistics: Mapping[str, torch.Tensor | NDArray[Any] | Sequence[float]],
    *,
    caption: str | None = None,
    references: Mapping[str, float] | None = None,
    of: str = "block",
    cell_width: float = 2.6,
    dpi: float = 200,
    **figure: Any,
) -> "Figure":
    """Draw statistics over depth, `(blocks, heads)` each, with a dot for every head and a line through their means."""
    tables = {name: _table(name, values) for name, values in statistics.items()}
    if not tables:
        raise GeometryError("cannot draw statistics: expected at least one, got none.")
    check_options(figure, ("title", "width", "ax"), listed=keywords(depth_figure))
    columns = min(_PANELS_PER_ROW, len(tables))
    wide = (figure.pop("width", None) or columns * cell_width) / columns
    title_lines = max(len(wrapped(name, plot_width(wide))) for name in tables)
    cell = wide, wide * _ASPECT + TITLE_INCHES * (title_lines + 2)
    panels = make_plots(list(tables), columns, cell, texts=[caption], dpi=dpi, **figure)
    for axes, (name, values) in zip(panels.cells, tables.items(), strict=False):
        _draw_depth(axes, values, (references or {}).get(name), of)
    if figure.get("ax") is None:
        settle(panels.figure)
    drawn: Figure = panels.figure
    return drawn


def _table(name: str, values: Any) -> NDArray[np.float64]:
    table: NDArray[np.float64] = _array(values).astype(np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or 0 in table.shape:
        raise GeometryError(f"cannot draw {name!r}: expected shape (blocks, heads) or (blocks,), got {table.shape}.")
    return table


def _draw_depth(axes: Any, values: NDArray[np.float64], reference: float | None, of: str) -> None:
    from matplotlib.ticker import MaxNLocator

    blocks = np.arange(1, len(values) + 1)
    if values.shape[1] > 1:
        axes.plot(blocks, values, linestyle="none", marker="o", markersize=3, color=_DOT_COLOR, alpha=0.6, mew=0)
    known = np.ma.masked_invalid(values)
    axes.plot(blocks, known.mean(axis=1).filled(np.nan), color=_MEAN_COLOR, linewidth=1.4, marker="_", markersize=5)
    if reference is not None:
        axes.axhline(reference, color="0.45", linewidth=0.8, linestyle="--")
    axes.set_xlabel(of, fontsize=TEXT_POINTS)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, len(values) + 0.5)
    if known.count() and known.min() >= 0:
        axes.set_ylim(0.0, HEADROOM * axes.get_ylim()[1])
