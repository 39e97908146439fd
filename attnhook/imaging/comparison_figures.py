"""Figures of several models: photos by models, and curves over relative depth."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from attnhook.errors import GeometryError
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
    is_scale,
    make_panels,
    plain,
    show,
    stretch_in_words,
    wrapped,
)
from attnhook.options import Scale, ScaleOption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; dashes and marks tell lines apart in grey print, too.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_PANELS_PER_ROW = 2


def photos_by_models(
    photos: Sequence[Image.Image],
    heatmaps: "Sequence[Sequence[Heatmap | None]]",
    *,
    photo_names: Sequence[str],
    model_names: Sequence[str],
    uniform: "Sequence[Sequence[float | None]] | None" = None,
    caption: str | None = None,
    colormap: Any = "viridis",
    alpha: float = 0.5,
    scale: ScaleOption = Scale.MINMAX,
    label: str = "attention",
    cell_width: float = 1.8,
    dpi: int = 160,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw a row a photo and a column a model."""
    wide = len(model_names) + 1
    if not photos or len(photo_names) != len(photos) or any(len(row) != len(model_names) for row in heatmaps):
        raise GeometryError(
            f"cannot draw photos by models: expected {len(photos)} names and rows of {len(model_names)} maps for {len(photos)} photos, got "
            f"{len(photo_names)} names and rows of {sorted({len(row) for row in heatmaps})}."
        )
    stretch = stretch_in_words(scale)
    shared = stretch is None
    per_image = f"Each map is stretched over its own range ({stretch}): colours do not compare between pictures."
    sizes = [cell_size((photo.height, photo.width), cell_width) for photo in photos]
    cell_width = min(width for width, _ in sizes)  # ribbons get wider, unless a photo is none
    titles = [wrapped(name, cell_width, TITLE_POINTS) for name in ("photo", *model_names)]
    side = [wrapped(name, cell_width) for name in photo_names]
    width = wide * cell_width + (BAR_INCHES if shared else 0)
    lines = [line for text in (caption, None if shared else per_image) for line in wrapped(text, width)]
    names = LINE_INCHES * sum(len(one) + 0.6 for one in side)
    extra = (
        width - wide * cell_width,
        LINE_INCHES * (len(lines) + 0.5) + TITLE_INCHES * max(map(len, titles)) + names,
    )
    panels = make_panels(
        (len(photos), wide), (wide * cell_width, sum(tall for _, tall in sizes)), extra=extra, ax=ax, dpi=dpi
    )
    drawn: list[Heatmap] = []
    for row, photo in enumerate(photos):
        cells = panels.cells[row * wide : (row + 1) * wide]
        head = ["\n".join(title) for title in titles] if row == 0 else [""] * wide
        show(cells[0], photo, head[0])
        cells[0].text(
            0, -0.04, plain("\n".join(side[row])), transform=cells[0].transAxes, fontsize=TEXT_POINTS, va="top"
        )
        for column, values in enumerate(heatmaps[row]):
            if values is None:
                show(cells[column + 1], Image.new("RGB", photo.size, (236, 236, 236)), head[column + 1])
                cells[column + 1].text(
                    0.5, 0.5, "no map", transform=cells[column + 1].transAxes, ha="center", va="center"
                )
                continue
            one = None if uniform is None else uniform[row][column]
            picture = blend(photo, values, colormap=colormap, alpha=alpha, scale=scale, uniform=one)
            show(cells[column + 1], picture, head[column + 1])
            drawn.append(values / one if is_scale(scale, Scale.UNIFORM) and one else values)
    if shared and drawn:
        add_colorbar(panels, drawn, colormap=colormap, scale=scale, uniform=1.0, label=label)  # in multiples of 1/N
    return finish(panels, lines)


def curves_figure(
    curves: "Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]",
    *,
    horizontal: str,
    caption: str | None = None,
    cell_width: float = 3.2,
    dpi: int = 200,
    ax: "Axes | None" = None,
) -> "Figure":
    """Draw a panel a statistic and a line a model."""
    names = list(dict.fromkeys(model for lines in curves.values() for model in lines))
    if not names:
        raise GeometryError("cannot draw curves: expected at least one line, got none.")
    columns = min(_PANELS_PER_ROW, len(curves))
    rows = -(-len(curves) // columns)
    lines = wrapped(caption, columns * cell_width)
    legend_rows = -(-len(names) // columns)
    size = (columns * cell_width, rows * (cell_width * 0.7 + TITLE_INCHES * 1.5))
    extra = (0.0, LINE_INCHES * (len(lines) + 0.5) + LINE_INCHES * (legend_rows + 1))
    panels = make_panels((rows, columns), size, extra=extra, ax=ax, dpi=dpi)
    for cell in panels.cells[len(curves) :]:
        cell.set_axis_off()
    for cell, (statistic, several) in zip(panels.cells, curves.items(), strict=False):
        for number, name in enumerate(names):
            if name in several:
                _draw_curve(cell, *several[name], number, name)
        cell.set_title(
            plain("\n".join(wrapped(statistic, cell_width * 0.9, TITLE_POINTS))), fontsize=TITLE_POINTS, loc="left"
        )
        cell.set_xlabel(horizontal, fontsize=TEXT_POINTS)
        cell.set_xlim(0, 1.02)
        cell.set_ylim(0, HEADROOM * cell.get_ylim()[1])
        cell.tick_params(labelsize=TEXT_POINTS)
        cell.grid(axis="y", color="0.9", linewidth=0.6)
        cell.set_axisbelow(True)
        for side in ("top", "right"):
            cell.spines[side].set_visible(False)
    handles = {handle.get_label(): handle for cell in panels.cells[: len(curves)] for handle in cell.get_lines()}
    place = "outside upper left" if ax is None else "best"
    holder = panels.figure if ax is None else panels.cells[0]
    holder.legend(handles.values(), handles.keys(), loc=place, ncols=columns, fontsize=TEXT_POINTS, frameon=False)
    return finish(panels, lines)


def _draw_curve(axes: Any, positions: Sequence[float], values: Sequence[float], number: int, name: str) -> None:
    axes.plot(
        positions,
        values,
        label=plain(name),
        color=_COLORS[number % len(_COLORS)],
        linestyle=_DASHES[number // len(_COLORS) % len(_DASHES)],
        marker=_MARKS[number % len(_MARKS)],
        markersize=3,
        linewidth=1.2,
        clip_on=False,
    )
