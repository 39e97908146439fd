"""Figures for papers and reports: overlays with titles, a caption, and colours that say what they mean.

Plain `matplotlib.figure.Figure` objects with their own canvas: no pyplot, no global state, nothing shown or saved. A colour bar is drawn
where one range holds for all maps; where each map is stretched on its own, the figure says so instead.
"""

import math
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from attnhook.errors import GeometryError
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.overlays import UNIFORM_TOP, Heatmap, overlay, value_range
from attnhook.options import Scale, ScaleOption, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

Heatmaps: TypeAlias = "Heatmap | Sequence[Heatmap]"
"""Several heat maps of one photo: (maps, height, width), or a sequence of (height, width)."""

_PER_IMAGE = "Colours: min-max per image, not comparable between images."
_BAR_INCHES = 0.9
_BAR_WIDTH_INCHES = 0.12
_SHEET_ASPECT = 2.0  # width over height that a sheet aims at
_FEWEST_COLUMNS, _MOST_COLUMNS = 3, 7
_TITLE_INCHES = 0.24
_LINE_INCHES = 0.17
_CHARACTERS_PER_INCH = 13.0
_TITLE_POINTS, _TEXT_POINTS = 9, 8


def overlay_figure(
    image: ImageSource,
    heatmap: Heatmap,
    *,
    title: str | None = None,
    caption: str | None = None,
    colormap: Any = "viridis",
    alpha: float = 0.5,
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
    label: str = "attention",
    width: float = 5.0,
    dpi: int = 200,
) -> "Figure":
    """Draw one overlay with a colour bar and a caption.

    Args:
        image: The photo, as `read_image` takes it.
        heatmap: Values of shape (height, width), the photo's size.
        title: A title above the overlay; wrapped to the figure.
        caption: What the figure shows: model, block, head fusion, readout, scale, mass outside the patches. Wrapped to the figure.
        colormap: The name of a matplotlib colormap, or a `Colormap`.
        alpha: The heat map's opacity, 0 to 1. The colour bar shows the pure colours.
        scale: As in `overlay`.
        uniform: With scale="uniform": 1/N.
        label: What the values are, for the colour bar.
        width: The figure's width, in inches.
        dpi: Resolution, in dots per inch.

    Returns:
        The figure; `figure.savefig(path)` writes it.

    Example:
        >>> import torch
        >>> figure = overlay_figure(torch.zeros(3, 48, 64), torch.rand(48, 64), caption="ViT-S/16, block 12, mean over 6 heads")
        >>> len(figure.axes)  # the overlay and its colour bar
        2
    """
    photo = read_image(image)
    picture = overlay(photo, heatmap, colormap=colormap, alpha=alpha, scale=scale, uniform=uniform)
    lines = _wrapped(caption, width)
    photo_width = width - _BAR_INCHES
    photo_height = photo_width * photo.height / photo.width
    heading = _wrapped(title, width)
    height = photo_height + _LINE_INCHES * (len(lines) + 0.5) + _TITLE_INCHES * len(heading)
    figure = _new_figure(width, height, dpi)
    axes = figure.add_subplot()
    _show(axes, picture, "\n".join(heading))
    low, high = value_range(heatmap, scale, uniform=uniform)
    if high > low:
        stretched = isinstance(scale, str) and choose(Scale, scale, "scale") is Scale.MINMAX
        text = f"{label} (min-max of this image)" if stretched else label
        _add_colorbar(
            figure,
            [axes],
            [heatmap],
            size=(photo_width, photo_height),
            colormap=colormap,
            bounds=(low, high),
            uniform=uniform if _is_uniform(scale) else None,
            label=text,
        )
    else:
        lines.append(f"Flat map: every value is {low:.4g}.")
    _add_caption(figure, lines)
    return figure


def sheet(
    image: ImageSource,
    heatmaps: Heatmaps,
    titles: Sequence[str],
    *,
    caption: str | None = None,
    columns: int | None = None,
    photo_title: str | None = "photo",
    colormap: Any = "viridis",
    alpha: float = 0.5,
    scale: ScaleOption = Scale.MINMAX,
    uniform: float | None = None,
    label: str = "attention",
    cell_width: float = 1.8,
    dpi: int = 200,
) -> "Figure":
    """Draw the photo and its overlays side by side: the heads of a block, the blocks of a model, several models.

    With scale="minmax" each map is stretched on its own, and the figure says so. To stretch all of them together, pass the common range:
    `scale=value_range(heatmaps)`. Any common range, like scale="uniform", comes with a colour bar.

    Args:
        image: The photo, as `read_image` takes it. It comes first.
        heatmaps: The maps, (maps, height, width) at the photo's size, or a sequence of (height, width).
        titles: One title per map; wrapped to the picture.
        caption: What the figure shows: model, block, head fusion, readout, scale, mass outside the patches. Wrapped to the figure.
        columns: Pictures per row, the photo included. Default: few cells empty, the sheet about twice as wide as high.
        photo_title: The title of the photo; None leaves the photo out.
        colormap: The name of a matplotlib colormap, or a `Colormap`.
        alpha: The heat maps' opacity, 0 to 1.
        scale: As in `overlay`.
        uniform: With scale="uniform": 1/N.
        label: What the values are, for the colour bar.
        cell_width: The width of one picture, in inches.
        dpi: Resolution, in dots per inch.

    Returns:
        The figure; `figure.savefig(path)` writes it.

    Raises:
        GeometryError: If there is no map, or the number of titles differs from the number of maps.
        ValueError: If `columns` is not positive.
    """
    photo = read_image(image)
    maps = list(heatmaps)
    if not maps or len(titles) != len(maps):
        raise GeometryError(
            f"cannot draw the sheet: expected one title for each of at least one map, got {len(titles)} titles and "
            f"{len(maps)} maps. Pass heatmaps of shape (maps, height, width)."
        )
    pictures: list[tuple[Image.Image, str]] = [] if photo_title is None else [(photo, photo_title)]
    pictures += [
        (
            overlay(photo, one, colormap=colormap, alpha=alpha, scale=scale, uniform=uniform),
            "\n".join(_wrapped(title, cell_width)),
        )
        for one, title in zip(maps, titles, strict=True)
    ]
    wide = _columns(len(pictures), photo.height / photo.width) if columns is None else columns
    if wide < 1:
        raise ValueError(f"cannot draw the sheet: expected at least one column, got columns={columns}.")
    wide = min(wide, len(pictures))
    tall = -(-len(pictures) // wide)

    shared = not (isinstance(scale, str) and choose(Scale, scale, "scale") is Scale.MINMAX)
    width = wide * cell_width + (_BAR_INCHES if shared else 0)
    notes = [] if shared else [_PER_IMAGE]
    lines = _wrapped(caption, width) + [line for note in notes for line in _wrapped(note, width)]
    title_lines = max(len(title.splitlines()) for _, title in pictures) or 1
    row = cell_width * photo.height / photo.width + _TITLE_INCHES * title_lines
    figure = _new_figure(width, tall * row + _LINE_INCHES * (len(lines) + 0.5), dpi)

    grid = figure.subplots(tall, wide, squeeze=False)
    cells = [cell for cells in grid for cell in cells]
    for cell in cells[len(pictures) :]:
        cell.set_axis_off()
    for cell, (picture, title) in zip(cells, pictures, strict=False):
        _show(cell, picture, title)
    if shared:
        bounds = value_range(maps[0], scale, uniform=uniform)
        _add_colorbar(
            figure,
            cells,
            maps,
            size=(wide * cell_width, tall * row),
            colormap=colormap,
            bounds=bounds,
            uniform=uniform if _is_uniform(scale) else None,
            label=label,
        )
    _add_caption(figure, lines)
    return figure


def _is_uniform(scale: ScaleOption) -> bool:
    return isinstance(scale, str) and choose(Scale, scale, "scale") is Scale.UNIFORM


def _columns(pictures: int, aspect: float) -> int:
    """Choose the columns that leave few cells empty and the sheet neither a tower nor a ribbon."""

    def cost(columns: int) -> float:
        rows = -(-pictures // columns)
        return 2 * (rows * columns - pictures) / pictures + abs(math.log(columns / (rows * aspect) / _SHEET_ASPECT)) / 2

    return min(range(min(pictures, _FEWEST_COLUMNS), min(pictures, _MOST_COLUMNS) + 1), key=cost)


def _new_figure(width: float, height: float, dpi: int) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _show(axes: Any, picture: "Image.Image", title: str) -> None:
    axes.imshow(picture, interpolation="antialiased")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=_TITLE_POINTS, pad=3)


def _add_colorbar(
    figure: "Figure",
    axes: Sequence[Any],
    heatmaps: Sequence[Heatmap],
    *,
    size: tuple[float, float],
    colormap: Any,
    bounds: tuple[float, float],
    uniform: float | None,
    label: str,
) -> None:
    """Draw the colours of one range; arrows at its ends where values lie beyond it, multiples of 1/N where `uniform` is given.

    `size` is the width and height, in inches, of the pictures beside it.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import ScalarFormatter

    low, high = bounds
    ranges = [value_range(one) for one in heatmaps]
    below, above = min(one[0] for one in ranges) < low, max(one[1] for one in ranges) > high
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    if uniform is not None:
        low, high, label = 0.0, UNIFORM_TOP, f"{label}, multiples of 1/N"
    bar = figure.colorbar(
        ScalarMappable(Normalize(low, high), colormap),
        ax=list(axes),
        extend=extend,
        extendfrac=_BAR_WIDTH_INCHES / size[1],
        fraction=_BAR_WIDTH_INCHES / size[0],
        pad=0.08 / size[0],
        aspect=size[1] / _BAR_WIDTH_INCHES,
    )
    bar.set_label(label, fontsize=_TEXT_POINTS)
    bar.ax.tick_params(labelsize=_TEXT_POINTS)
    bar.ax.yaxis.get_offset_text().set_fontsize(_TEXT_POINTS)
    bar.outline.set_linewidth(0.5)
    if isinstance(bar.formatter, ScalarFormatter):
        bar.formatter.set_powerlimits((-3, 4))


def _wrapped(text: str | None, width: float) -> list[str]:
    columns = max(10, int(width * _CHARACTERS_PER_INCH))
    unbroken = re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text or "")
    return [line for part in unbroken.splitlines() for line in textwrap.wrap(part, columns)]


def _add_caption(figure: "Figure", lines: Sequence[str]) -> None:
    if lines:
        # A figure label, unlike free text, is given room by the layout, so it can never be cut off. A "$" would start a formula.
        text = "\n".join(lines).replace("$", r"\$")
        figure.supxlabel(text, fontsize=_TEXT_POINTS, x=0.01, ha="left", linespacing=1.25)
