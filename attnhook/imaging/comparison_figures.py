"""Figures of several models: photos by models, and curves over relative depth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.looks import Look, stretch_in_words
from attnhook.imaging.overlays import Heatmap, blend
from attnhook.imaging.panels import (
    BAR_INCHES,
    HEADROOM,
    LINE_INCHES,
    TEXT_POINTS,
    TITLE_INCHES,
    TITLE_POINTS,
    add_colorbar,
    cell_size,
    finish,
    make_panels,
    make_plots,
    plain,
    show,
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
    colors = Look.of(look, photos_by_models)
    wide = len(model_names) + 1
    if not photos or len(photo_names) != len(photos) or any(len(row) != len(model_names) for row in heatmaps):
        raise GeometryError(
            f"cannot draw photos by models: expected {len(photos)} names and rows of {len(model_names)} maps for {len(photos)} photos, got "
            f"{len(photo_names)} names and rows of {sorted({len(row) for row in heatmaps})}."
        )
    stretch = stretch_in_words(colors)
    sizes = [cell_size((photo.height, photo.width), cell_width) for photo in photos]
    cell_width = min(width for width, _ in sizes)  # ribbons get wider, unless some photo is not one
    titles = [wrapped(name, cell_width, TITLE_POINTS) for name in ("photo", *model_names)]
    side = [wrapped(name, cell_width) for name in photo_names]
    names = LINE_INCHES * sum(len(one) + 0.6 for one in side)
    size = (wide * cell_width, sum(tall for _, tall in sizes))
    extra = (0.0 if stretch else BAR_INCHES, TITLE_INCHES * max(map(len, titles)) + names)
    own = f"Each map is stretched over its own range ({stretch}): colours do not compare between pictures."
    panels = make_panels((len(photos), wide), size, texts=[caption, stretch and own], extra=extra, dpi=160)
    drawn: list[Heatmap] = []
    for row, photo in enumerate(photos):
        first, *cells = panels.cells[row * wide : (row + 1) * wide]
        title, *heads = ["\n".join(title) for title in titles] if row == 0 else [""] * wide
        show(first, photo, title)
        first.text(0, -0.04, plain("\n".join(side[row])), transform=first.transAxes, fontsize=TEXT_POINTS, va="top")
        for column, (cell, head, values) in enumerate(zip(cells, heads, heatmaps[row], strict=True)):
            if values is None:
                show(cell, Image.new("RGB", photo.size, (236, 236, 236)), head)
                cell.text(0.5, 0.5, "no map", transform=cell.transAxes, ha="center", va="center")
                continue
            one = None if uniform is None else uniform[row][column]
            show(cell, blend(photo, values, replace(colors, uniform=one)), head)
            drawn.append(values / one if colors.has_scale(Scale.UNIFORM) and one else values)
    if drawn and not stretch:
        add_colorbar(panels, drawn, replace(colors, uniform=1.0), label)  # in multiples of 1/N
    return finish(panels)


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
    extra = (0.0, LINE_INCHES * (-(-len(names) // columns) + 1))  # the legend
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
    return finish(panels)
