"""Figures of several models: photos by models, and curves over relative depth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.figures import seen_part, split_look
from attnhook.imaging.looks import stretch_in_words
from attnhook.imaging.overlays import Heatmap, blend
from attnhook.imaging.panels import HEADROOM, color_bar, make_pictures, make_plots, plain, settle, show
from attnhook.imaging.picture_grids import (
    LINE_INCHES,
    TEXT_POINTS,
    TITLE_INCHES,
    TITLE_POINTS,
    PictureGrid,
    cell_size,
    column_width,
    wrapped,
)
from attnhook.options import Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; dashes and marks tell lines apart in grey print, too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_PANELS_PER_ROW = 2
_CURVES_INCHES = 3.2


def photos_by_models(
    photos: Sequence[Image.Image],
    heatmaps: "Sequence[Sequence[Heatmap | None]]",
    *,
    photo_names: Sequence[str],
    model_names: Sequence[str],
    uniform: "Sequence[Sequence[float | None]] | None" = None,
    caption: str | None = None,
    label: str = "attention",
    cell_width: float = 1.8,
    **look: Any,
) -> "Figure":
    """Draw one row per photo and one column per model; `uniform` holds 1/N of every map."""
    colors, figure = split_look(look, photos_by_models)
    wide = len(model_names) + 1
    if not photos or len(photo_names) != len(photos) or any(len(row) != len(model_names) for row in heatmaps):
        raise GeometryError(
            f"cannot draw photos by models: expected {len(photos)} names and rows of {len(model_names)} maps for {len(photos)} photos, got "
            f"{len(photo_names)} names and rows of {sorted({len(row) for row in heatmaps})}."
        )
    stretch = stretch_in_words(colors)
    pictures, drawn = [], []
    for row, photo in enumerate(photos):
        line: list[Any] = []
        for column, values in enumerate(heatmaps[row]):
            one = None if uniform is None else uniform[row][column]
            line.append(None if values is None else blend(photo, values, replace(colors, uniform=one)))
            if values is not None:
                drawn.append(values / one if colors.has_scale(Scale.UNIFORM) and one else values)
        pictures.append(
            [next((seen_part(photo, one, colors) for one in heatmaps[row] if one is not None), photo), *line]
        )
    shapes = [(row[0].height, row[0].width) for row in pictures]
    widest = min(cell_size(shape, cell_width)[0] for shape in shapes)  # ribbons get wider, unless some photo is not one
    across = column_width((widest, 0.0), cell_width)
    titles = [wrapped(name, across, TITLE_POINTS) for name in ("photo", *model_names)]
    side = [wrapped(name, wide * across) for name in photo_names]
    heights = tuple(widest * height / width for height, width in shapes)
    heads = (max(map(len, titles)), *(0,) * (len(photos) - 1))
    grid = PictureGrid((across,) * wide, heights, heads, tuple(map(len, side)))
    # In multiples of 1/N, so that maps of different models share it.
    bar, flat = color_bar(drawn, replace(colors, uniform=1.0), label) if drawn and not stretch else (None, None)
    own = f"Each map is stretched over its own range ({stretch}): you cannot compare colours between pictures."
    panels = make_pictures(grid, texts=[caption, flat, stretch and own], bar=bar, **({"dpi": 160} | figure))
    for row, several in enumerate(pictures):
        cells = panels.cells[row * wide : (row + 1) * wide]
        for cell, picture, title in zip(cells, several, titles, strict=True):
            show(cell, picture or Image.new("RGB", several[0].size, (236, 236, 236)), "" if row else "\n".join(title))
            if picture is None:
                cell.text(0.5, 0.5, "no map", transform=cell.transAxes, ha="center", va="center")
        text = plain("\n".join(side[row]))
        low = cells[0].annotate(text, (0, 0), (0, -3), "axes fraction", "offset points", va="top", fontsize=TEXT_POINTS)
        low.set_linespacing(1.2)
    finished: Figure = panels.figure
    return finished


def curves_figure(
    curves: "Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]",
    *,
    horizontal: str,
    caption: str | None = None,
) -> "Figure":
    """Draw one panel per statistic and one line per model."""
    names = list(dict.fromkeys(model for lines in curves.values() for model in lines))
    if not names:
        raise GeometryError("cannot draw curves: expected at least one line, got none.")
    columns = min(_PANELS_PER_ROW, len(curves))
    extra = LINE_INCHES * (-(-len(names) // columns) + 1)  # the legend
    size = (_CURVES_INCHES, _CURVES_INCHES * 0.7 + TITLE_INCHES * 1.5)
    panels = make_plots(list(curves), columns, size, texts=[caption], extra=extra, dpi=200)
    looks = cycle((color, dash, mark) for dash in _DASHES for color, mark in zip(_COLORS, _MARKS, strict=True))
    styles = dict(zip(names, looks, strict=False))
    for cell, several in zip(panels.cells, curves.values(), strict=False):
        for name, (color, dash, mark) in styles.items():
            if name in several:
                style = {"color": color, "linestyle": dash, "marker": mark, "markersize": 3, "linewidth": 1.2}
                cell.plot(*several[name], label=plain(name), clip_on=False, **style)
        cell.set_xlabel(horizontal, fontsize=TEXT_POINTS)
        cell.set_xlim(0, 1.02)
        cell.set_ylim(0, HEADROOM * cell.get_ylim()[1])
    handles = {handle.get_label(): handle for cell in panels.cells[: len(curves)] for handle in cell.get_lines()}
    look: dict[str, Any] = {"ncols": columns, "fontsize": TEXT_POINTS, "frameon": False}
    panels.figure.legend(handles.values(), handles.keys(), loc="outside upper left", **look)
    settle(panels.figure)
    finished: Figure = panels.figure
    return finished
