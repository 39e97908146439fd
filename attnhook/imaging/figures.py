"""Figures for papers and reports: overlays with titles, a caption, and colours that say what they mean.

Each returns a `matplotlib.figure.Figure` of its own, or draws inside the axes given as `ax`. A colour bar is drawn where one range holds for all
maps; where each map is stretched on its own, the figure says so instead.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import Box
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.overlays import Heatmap, blend, sized_like, value_range
from attnhook.imaging.panels import (
    BAR_INCHES,
    LINE_INCHES,
    LOWEST_BAR_INCHES,
    TITLE_INCHES,
    TITLE_POINTS,
    add_colorbar,
    cell_size,
    finish,
    make_panels,
    show,
    stretch_in_words,
    wrapped,
)
from attnhook.options import Scale, ScaleOption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    colormap: Any = "viridis",
    alpha: float = 0.5,
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
    label: str = "attention",
    width: float = 5.0,
    dpi: int = 200,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw one overlay with a colour bar and a caption.

    Example:
        >>> import torch
        >>> figure = overlay_figure(torch.zeros(3, 48, 64), torch.rand(48, 64), caption="ViT-S/16, block 12, mean over 6 heads")
        >>> len(figure.axes)  # the overlay and its colour bar
        2
    """
    photo = read_image(image)
    picture = blend(photo, heatmap, colormap=colormap, alpha=alpha, scale=scale, uniform=uniform)
    tall = min((width - BAR_INCHES) * photo.height / photo.width, _HIGHEST_OVERLAY_INCHES)
    inner = max(tall * photo.width / photo.height, _NARROWEST_OVERLAY_INCHES)
    tall = max(tall, LOWEST_BAR_INCHES)
    width = inner + BAR_INCHES
    lines, heading = wrapped(caption, width), wrapped(title, inner, TITLE_POINTS)
    extra = (BAR_INCHES, LINE_INCHES * (len(lines) + 0.5) + TITLE_INCHES * len(heading))
    panels = make_panels((1, 1), (inner, tall), extra=extra, ax=ax, dpi=dpi)
    if ax is not None:
        lines, heading = wrapped(caption, panels.size[0]), wrapped(title, panels.size[0], TITLE_POINTS)
    show(panels.cells[0], picture, "\n".join(heading), mark=mark)
    low, high = value_range(heatmap, scale, uniform=uniform)
    if high > low:
        stretch = stretch_in_words(scale)
        text = f"{label} ({stretch} of this image)" if stretch else label
        add_colorbar(panels, [heatmap], colormap=colormap, scale=scale, uniform=uniform, label=text)
    else:
        lines.append(f"Flat map: every value is {low:.4g}.")
    return finish(panels, lines)


def triptych(
    image: ImageSource,
    heatmap: Heatmap,
    *,
    titles: Sequence[str] = ("photo", "map", "overlay"),
    caption: str | None = None,
    mark: Box | None = None,
    colormap: Any = "viridis",
    alpha: float = 0.5,
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
    label: str = "attention",
    cell_width: float = 2.2,
    dpi: int = 200,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw the photo, the map in pure colours, and the overlay, with a colour bar that is true of the map."""
    if len(titles) != 3:
        raise GeometryError(f"cannot draw photo, map and overlay: expected three titles, got {len(titles)}.")
    photo = read_image(image)
    options: dict[str, Any] = {"colormap": colormap, "scale": scale, "uniform": uniform}
    unseen = np.isnan(sized_like(photo, heatmap))[..., None]
    pure = np.where(unseen, np.array(_UNSEEN, np.uint8), np.asarray(blend(photo, heatmap, alpha=1.0, **options)))
    pictures = [photo, Image.fromarray(pure), blend(photo, heatmap, alpha=alpha, **options)]
    wide, tall = cell_size((photo.height, photo.width), cell_width)
    width, height = 3 * wide, max(tall, LOWEST_BAR_INCHES) + TITLE_INCHES
    lines = wrapped(caption, width + BAR_INCHES)
    extra = (BAR_INCHES, LINE_INCHES * (len(lines) + 0.5))
    panels = make_panels((1, 3), (width, height), extra=extra, ax=ax, dpi=dpi)
    if ax is not None:
        lines = wrapped(caption, panels.size[0])
    for cell, picture, title in zip(panels.cells, pictures, titles, strict=True):
        show(cell, picture, title, mark=mark)
    low, high = value_range(heatmap, scale, uniform=uniform)
    if high > low:
        stretch = stretch_in_words(scale)
        text = f"{label} ({stretch})" if stretch else label
        add_colorbar(panels, [heatmap], label=text, **options)
    else:
        lines.append(f"Flat map: every value is {low:.4g}.")
    return finish(panels, lines)


def sheet(
    image: ImageSource,
    heatmaps: Heatmaps,
    titles: Sequence[str],
    *,
    caption: str | None = None,
    marks: Sequence[Box | None] | None = None,
    columns: int | None = None,
    photo_title: str | None = "photo",
    colormap: Any = "viridis",
    alpha: float = 0.5,
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
    label: str = "attention",
    cell_width: float = 1.8,
    dpi: int = 200,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw the photo and its overlays side by side: the heads of a block, the blocks of a model, several models, methods or queries.

    With scale="minmax" or "robust" each map is stretched on its own, and the figure says so. To stretch all of them together, pass the
    range that `common_range(heatmaps)` of `attnhook.imaging.overlays` gives. Any common range, like scale="uniform", comes with a colour bar.
    """
    photo = read_image(image)
    maps = list(heatmaps)
    boxes = [None] * len(maps) if marks is None else list(marks)
    if not maps or len(titles) != len(maps) or len(boxes) != len(maps):
        raise GeometryError(
            f"cannot draw the sheet: expected one title for each of at least one map, got {len(titles)} titles and "
            f"{len(maps)} maps ({len(boxes)} marks). Pass heatmaps of shape (maps, height, width)."
        )
    cell = cell_size((photo.height, photo.width), cell_width)
    pictures: list[tuple[Image.Image, str, Box | None]] = [] if photo_title is None else [(photo, photo_title, None)]
    pictures += [
        (
            blend(photo, one, colormap=colormap, alpha=alpha, scale=scale, uniform=uniform),
            "\n".join(wrapped(title, cell[0], TITLE_POINTS)),
            box,
        )
        for one, title, box in zip(maps, titles, boxes, strict=True)
    ]
    wide = _columns(len(pictures), cell[1] / cell[0]) if columns is None else columns
    if wide < 1:
        raise ValueError(f"cannot draw the sheet: expected at least one column, got columns={columns}.")
    wide = min(wide, len(pictures))
    tall = -(-len(pictures) // wide)

    stretch = stretch_in_words(scale)
    shared = stretch is None
    width = wide * cell[0] + (BAR_INCHES if shared else 0)
    texts = [caption, None if shared else f"Colours: {stretch} per image, not comparable between images."]
    lines = [line for text in texts for line in wrapped(text, width)]
    heads = [len(title.splitlines()) for _, title, _ in pictures]
    title_lines = sum(max(heads[first : first + wide]) for first in range(0, len(heads), wide))
    height = max(tall * cell[1], LOWEST_BAR_INCHES) + TITLE_INCHES * title_lines
    extra = (width - wide * cell[0], LINE_INCHES * (len(lines) + 0.5))
    panels = make_panels((tall, wide), (wide * cell[0], height), extra=extra, ax=ax, dpi=dpi)
    if ax is not None:
        lines = [line for text in texts for line in wrapped(text, panels.size[0])]
    for axes in panels.cells[len(pictures) :]:
        axes.set_axis_off()
    for axes, (picture, title, box) in zip(panels.cells, pictures, strict=False):
        show(axes, picture, title, mark=box)
    if shared:
        add_colorbar(panels, maps, colormap=colormap, scale=scale, uniform=uniform, label=label)
    return finish(panels, lines)


def _columns(pictures: int, aspect: float) -> int:
    """Choose the columns that leave few cells empty and the sheet neither a tower nor a ribbon."""

    def cost(columns: int) -> float:
        rows = -(-pictures // columns)
        return 2 * (rows * columns - pictures) / pictures + abs(math.log(columns / (rows * aspect) / _SHEET_ASPECT)) / 2

    fewest = 1 if aspect < _RIBBON else min(pictures, _FEWEST_COLUMNS)
    return min(range(fewest, min(pictures, _MOST_COLUMNS) + 1), key=cost)
