"""Figures for papers and reports: overlays with titles, a caption, and a colour bar.

Each is a figure of its own, or inside the axes `ax`. Where each map is stretched on its own, words replace the bar.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import Box
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.looks import Look, stretch_in_words
from attnhook.imaging.overlays import Heatmap, blend, sized_like
from attnhook.imaging.panels import (
    BAR_INCHES,
    LOWEST_BAR_INCHES,
    TITLE_INCHES,
    TITLE_POINTS,
    Panels,
    add_colorbar,
    add_range,
    cell_size,
    finish,
    make_panels,
    show,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Panel: TypeAlias = tuple[Image.Image, str, Box | None]  # a picture, its title, and a box to mark in it
Heatmaps: TypeAlias = "Heatmap | Sequence[Heatmap]"
"""Several heat maps of one photo: (maps, height, width), or a sequence of (height, width)."""

_SHEET_ASPECT = 2.0  # width over height that a sheet aims at
_FEWEST_COLUMNS, _MOST_COLUMNS = 3, 7
_RIBBON = 0.3  # height over width below which a sheet may have a single column
_HIGHEST_OVERLAY_INCHES, _NARROWEST_OVERLAY_INCHES = 8.0, 2.0
_UNSEEN = (230, 230, 230)


def overlay_figure(
    image: ImageSource,
    heatmap: Heatmap,
    *,
    title: str | None = None,
    caption: str | None = None,
    mark: Box | None = None,
    label: str = "attention",
    width: float = 5.0,
    dpi: int = 200,
    ax: "Axes | None" = None,
    **look: Any,
) -> "Figure":
    """Draw one overlay with a colour bar and a caption. `look` holds the fields of `Look`, such as `alpha`."""
    colors = Look.of(look, overlay_figure)
    photo = read_image(image)
    tall = min((width - BAR_INCHES) * photo.height / photo.width, _HIGHEST_OVERLAY_INCHES)
    inner = max(tall * photo.width / photo.height, _NARROWEST_OVERLAY_INCHES)
    extra = (BAR_INCHES, TITLE_INCHES * len(wrapped(title, inner, TITLE_POINTS)))
    size = (inner, max(tall, LOWEST_BAR_INCHES))
    panels = make_panels((1, 1), size, texts=[caption], extra=extra, ax=ax, dpi=dpi)
    heading = wrapped(title, panels.size[0], TITLE_POINTS)
    show(panels.cells[0], blend(photo, heatmap, colors), "\n".join(heading), mark=mark)
    add_range(panels, heatmap, colors, label, " of this image")
    return finish(panels)


def triptych(
    image: ImageSource,
    heatmap: Heatmap,
    *,
    titles: Sequence[str] = ("photo", "map", "overlay"),
    caption: str | None = None,
    mark: Box | None = None,
    label: str = "attention",
    cell_width: float = 2.2,
    dpi: int = 200,
    ax: "Axes | None" = None,
    **look: Any,
) -> "Figure":
    """Draw the photo, the map in pure colours, and the overlay, with a colour bar for the map."""
    colors = Look.of(look, triptych)
    if len(titles) != 3:
        raise GeometryError(f"cannot draw photo, map and overlay: expected three titles, got {len(titles)}.")
    photo = read_image(image)
    unseen = np.isnan(sized_like(photo, heatmap))[..., None]
    opaque = np.asarray(blend(photo, heatmap, replace(colors, alpha=1.0)))
    pure = Image.fromarray(np.where(unseen, np.array(_UNSEEN, np.uint8), opaque))
    pictures = zip((photo, pure, blend(photo, heatmap, colors)), titles, [mark] * 3, strict=True)
    cell = cell_size((photo.height, photo.width), cell_width)
    panels = _draw_panels(list(pictures), 3, cell, texts=[caption], bar=True, ax=ax, dpi=dpi)
    add_range(panels, heatmap, colors, label)
    return finish(panels)


def sheet(
    image: ImageSource,
    heatmaps: Heatmaps,
    titles: Sequence[str],
    *,
    caption: str | None = None,
    marks: Sequence[Box | None] | None = None,
    columns: int | None = None,
    photo_title: str | None = "photo",
    label: str = "attention",
    cell_width: float = 1.8,
    dpi: int = 200,
    ax: "Axes | None" = None,
    **look: Any,
) -> "Figure":
    """Draw the photo and its overlays side by side: the heads of a block, the blocks of a model, several models, methods or queries.

    With scale="minmax" or "robust" each map is stretched on its own, and the figure says so. To stretch all of them together, pass
    `scale=common_range(heatmaps)`. A common range, also that of scale="uniform", comes with a colour bar.
    """
    colors = Look.of(look, sheet)
    photo = read_image(image)
    maps = list(heatmaps)
    boxes = [None] * len(maps) if marks is None else list(marks)
    if not maps or len(titles) != len(maps) or len(boxes) != len(maps):
        raise GeometryError(
            f"cannot draw the sheet: expected one title for each of at least one map, got {len(titles)} titles and "
            f"{len(maps)} maps ({len(boxes)} marks). Pass heatmaps of shape (maps, height, width)."
        )
    cell = cell_size((photo.height, photo.width), cell_width)
    pictures: list[_Panel] = [] if photo_title is None else [(photo, photo_title, None)]
    for one, title, box in zip(maps, titles, boxes, strict=True):
        pictures.append((blend(photo, one, colors), "\n".join(wrapped(title, cell[0], TITLE_POINTS)), box))
    wide = _columns(len(pictures), cell[1] / cell[0]) if columns is None else columns
    if wide < 1:
        raise ValueError(f"cannot draw the sheet: expected at least one column, got columns={columns}.")
    stretch = stretch_in_words(colors)
    texts = [caption, stretch and f"Colours: {stretch} per image, not comparable between images."]
    panels = _draw_panels(pictures, min(wide, len(pictures)), cell, texts=texts, bar=not stretch, ax=ax, dpi=dpi)
    if not stretch:
        add_colorbar(panels, maps, colors, label)
    return finish(panels)


def _draw_panels(
    pictures: Sequence[_Panel], columns: int, cell: tuple[float, float], *, bar: bool, **room: Any
) -> Panels:
    """Draw pictures in rows, with room for a colour bar."""
    rows = -(-len(pictures) // columns)
    heads = [len(title.splitlines()) for _, title, _ in pictures]
    title_lines = sum(max(heads[first : first + columns]) for first in range(0, len(heads), columns))
    size = (columns * cell[0], max(rows * cell[1], LOWEST_BAR_INCHES) + TITLE_INCHES * title_lines)
    extra = (BAR_INCHES if bar else 0.0, 0.0)
    panels = make_panels((rows, columns), size, extra=extra, **room)
    for axes in panels.cells[len(pictures) :]:
        axes.set_axis_off()
    for axes, (picture, title, box) in zip(panels.cells, pictures, strict=False):
        show(axes, picture, title, mark=box)
    return panels


def _columns(pictures: int, aspect: float) -> int:
    """Choose the number of columns that leaves few cells empty and makes the sheet neither too tall nor too wide."""

    def cost(columns: int) -> float:
        rows = -(-pictures // columns)
        return 2 * (rows * columns - pictures) / pictures + abs(math.log(columns / (rows * aspect) / _SHEET_ASPECT)) / 2

    fewest = 1 if aspect < _RIBBON else min(pictures, _FEWEST_COLUMNS)
    return min(range(fewest, min(pictures, _MOST_COLUMNS) + 1), key=cost)
