"""Figures over the depth of a model: every head of every block in one picture, and statistics block by block."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.overlays import colorize, value_range
from attnhook.imaging.panels import (
    BAR_INCHES,
    HEADROOM,
    LINE_INCHES,
    LOWEST_BAR_INCHES,
    TEXT_POINTS,
    TITLE_INCHES,
    TITLE_POINTS,
    add_colorbar,
    cell_size,
    finish,
    is_scale,
    make_panels,
    plain,
    wrapped,
)
from attnhook.options import Scale, ScaleOption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 0.08  # of a cell's edge, between cells
_MOST_ROWS_IN_INCHES = 9.0
_LABEL_INCHES = 0.55
_DOT_COLOR, _MEAN_COLOR = "#0072b2", "black"  # a blue that colour-blind readers and printers tell from black
_PANELS_PER_ROW = 3


def map_grid(
    patch_maps: torch.Tensor | NDArray[Any],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    image: "ImageSource | None" = None,
    row_name: str = "block",
    column_name: str = "head",
    caption: str | None = None,
    colormap: Any = "viridis",
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
    label: str = "attention",
    cell_width: float = 0.6,
    dpi: int = 200,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw many small maps in rows and columns, all in one range of colours: blocks by heads.

    Example:
        >>> maps = torch.rand(4, 3, 14, 14)
        >>> figure = map_grid(maps, row_labels=list("0123"), column_labels=list("012"))
    """
    values = torch.as_tensor(patch_maps).detach().float().cpu().numpy()
    if values.ndim != 4 or 0 in values.shape or values.shape[:2] != (len(row_labels), len(column_labels)):
        raise GeometryError(
            f"cannot draw the grid of maps: expected (rows, columns, h, w) with {len(row_labels)} row labels and {len(column_labels)} column "
            f"labels, got shape {values.shape}."
        )
    rows, columns, height, width = values.shape
    bounds = value_range(values, scale, uniform=uniform)
    picture, step = _mosaic(values, colormap, bounds)
    cell_width, cell_height = cell_size((height, width), cell_width)
    shrink = min(1.0, _MOST_ROWS_IN_INCHES / (rows * cell_height))
    across, down = columns * cell_width * shrink, max(rows * cell_height * shrink, LOWEST_BAR_INCHES)
    with_photo = image is not None and ax is None
    thumb = max(1.2, min(1.6, across / 2)) if with_photo else 0.0
    total = across + thumb + _LABEL_INCHES + BAR_INCHES
    lines = wrapped(caption, total)
    extra = (_LABEL_INCHES + BAR_INCHES, _LABEL_INCHES + LINE_INCHES * (len(lines) + 0.5))
    panels = make_panels((1, 2 if with_photo else 1), (across + thumb, down), extra=extra, ax=ax, dpi=dpi)
    axes = panels.cells[-1]
    if ax is not None:
        lines = wrapped(caption, panels.size[0])
    if image is not None and with_photo:
        axes.get_gridspec().set_width_ratios([thumb, across])
        corner = panels.cells[0]
        corner.imshow(read_image(image), interpolation="antialiased")
        corner.set_axis_off()
        corner.set_anchor("N")
        corner.set_title("photo, as seen", fontsize=TITLE_POINTS, pad=3)
    axes.imshow(picture, interpolation="nearest", extent=(0, picture.width, picture.height, 0))
    _label_cells(axes, (row_labels, column_labels), (row_name, column_name), step, (height, width))
    if bounds[1] > bounds[0]:
        known = scale if is_scale(scale, Scale.UNIFORM) else bounds
        options: dict[str, Any] = {"colormap": colormap, "scale": known, "uniform": uniform, "label": label}
        add_colorbar(panels, [values], axes=[axes], width=across, **options)
    else:
        lines.append(f"Flat maps: every value is {bounds[0]:.4g}.")
    return finish(panels, lines)


def _mosaic(
    values: NDArray[np.float32], colormap: Any, bounds: tuple[float, float]
) -> tuple[Image.Image, tuple[int, int]]:
    """Lay out all maps on white, patches as whole pixels; the step from one map to the next, (down, across)."""
    rows, columns, height, width = values.shape
    zoom = max(1, -(-40 // max(height, width)))
    gap = max(1, round(_GAP * max(height, width) * zoom))
    down, across = height * zoom + gap, width * zoom + gap
    canvas = np.full((rows * down - gap, columns * across - gap, 3), 255, np.uint8)
    scale: ScaleOption = bounds if bounds[1] > bounds[0] else Scale.MINMAX
    for row in range(rows):
        for column in range(columns):
            cell = colorize(values[row, column], colormap=colormap, scale=scale).repeat(zoom, 0).repeat(zoom, 1)
            canvas[row * down : row * down + height * zoom, column * across : column * across + width * zoom] = cell
    return Image.fromarray(canvas), (down, across)


def _label_cells(
    axes: Any,
    labels: tuple[Sequence[str], Sequence[str]],
    names: tuple[str, str],
    step: tuple[int, int],
    cell: tuple[int, int],
) -> None:
    down, across = step
    zoom = down // cell[0]
    row_at = [number * down + cell[0] * zoom / 2 for number in range(len(labels[0]))]
    column_at = [number * across + cell[1] * zoom / 2 for number in range(len(labels[1]))]
    axes.set_yticks(row_at, [plain(label) for label in labels[0]], fontsize=TEXT_POINTS)
    axes.set_xticks(column_at, [plain(label) for label in labels[1]], fontsize=TEXT_POINTS)
    if max(map(len, labels[1])) > 6:
        axes.tick_params(axis="x", rotation=60)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_ylabel(plain(names[0]), fontsize=TITLE_POINTS)
    axes.set_xlabel(plain(names[1]), fontsize=TITLE_POINTS)
    axes.tick_params(length=0, pad=2)
    for side in axes.spines.values():
        side.set_visible(False)


def depth_figure(
    statistics: Mapping[str, torch.Tensor | NDArray[Any] | Sequence[float]],
    *,
    caption: str | None = None,
    references: Mapping[str, float] | None = None,
    cell_width: float = 2.6,
    dpi: int = 200,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw statistics over depth: one panel each, a dot for every head, a line through their means.

    Example:
        >>> figure = depth_figure({"entropy (nats)": torch.rand(12, 6), "mass on special tokens": torch.rand(12)})
        >>> len(figure.axes)
        2
    """
    tables = {name: _table(name, values) for name, values in statistics.items()}
    if not tables:
        raise GeometryError("cannot draw statistics: expected at least one, got none.")
    columns = min(_PANELS_PER_ROW, len(tables))
    rows = -(-len(tables) // columns)
    lines = wrapped(caption, columns * cell_width)
    title_lines = max(len(wrapped(name, cell_width * 0.9)) for name in tables)
    size = (columns * cell_width, rows * (cell_width * 0.72 + TITLE_INCHES * title_lines))
    panels = make_panels((rows, columns), size, extra=(0, LINE_INCHES * (len(lines) + 0.5)), ax=ax, dpi=dpi)
    if ax is not None:
        lines = wrapped(caption, panels.size[0])
    for cell in panels.cells[len(tables) :]:
        cell.set_axis_off()
    for cell, (name, values) in zip(panels.cells, tables.items(), strict=False):
        _draw_depth(cell, values, (references or {}).get(name))
        title = "\n".join(wrapped(name, panels.size[0] / columns * 0.9, TITLE_POINTS))
        cell.set_title(plain(title), fontsize=TITLE_POINTS, loc="left")
    return finish(panels, lines)


def _table(name: str, values: Any) -> NDArray[np.float64]:
    table = (
        torch.as_tensor(values).detach().cpu().double().numpy()
        if isinstance(values, torch.Tensor)
        else np.asarray(values, float)
    )
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or 0 in table.shape:
        raise GeometryError(f"cannot draw {name!r}: expected shape (blocks, heads) or (blocks,), got {table.shape}.")
    return table


def _draw_depth(axes: Any, values: NDArray[np.float64], reference: float | None) -> None:
    from matplotlib.ticker import MaxNLocator

    blocks = np.arange(len(values))
    if values.shape[1] > 1:
        axes.plot(blocks, values, linestyle="none", marker="o", markersize=3, color=_DOT_COLOR, alpha=0.6, mew=0)
    known = np.ma.masked_invalid(values)
    axes.plot(blocks, known.mean(axis=1).filled(np.nan), color=_MEAN_COLOR, linewidth=1.4, marker="_", markersize=5)
    if reference is not None:
        axes.axhline(reference, color="0.45", linewidth=0.8, linestyle="--")
    axes.set_xlabel("block", fontsize=TEXT_POINTS)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(-0.5, len(values) - 0.5)
    if known.count() and known.min() >= 0:
        axes.set_ylim(0.0, HEADROOM * axes.get_ylim()[1])
    axes.tick_params(labelsize=TEXT_POINTS)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
