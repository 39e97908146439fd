"""The parts of figures: panels on a new figure or inside given axes, pictures, marks, colour bars, captions.

Plain `matplotlib.figure.Figure` objects with their own canvas: no pyplot, no global state, nothing shown or saved.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from PIL import Image

from attnhook.imaging.geometry import Box
from attnhook.imaging.looks import UNIFORM_TOP, Look, stretch_in_words
from attnhook.imaging.overlays import Heatmap, value_ends, value_range
from attnhook.options import Scale, Size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR_INCHES = 0.9
TITLE_INCHES = 0.24
LINE_INCHES = 0.17
TITLE_POINTS, TEXT_POINTS = 9, 8
_BAR_WIDTH_INCHES = 0.12
LOWEST_BAR_INCHES = 1.0
HEADROOM = 1.06  # times the highest value, for an axis that begins at 0, so that no marker is cut off
_LOWEST_CELL_INCHES, _HIGHEST_CELL_INCHES = 0.7, 4.0
_WIDEST_CELL = 3.0  # times the requested width, for a panorama
_MARGIN_INCHES = 0.03
_LAYOUTS = 10
_BAR_FRACTION = 1.5  # room for the bar, relative to its width: so its aspect decides how wide it is, not its room
_ROUNDING = 1e-6  # relative to a range: values beyond its end by less get no arrow
_CHARACTERS = 120.0  # per inch, times points: DejaVu Sans, mixed text
_MARK_WIDTHS = (("black", 2.6), ("white", 1.2))  # a light line on a dark one is visible on any photo


@dataclass(frozen=True)
class Panels:
    """The panels of a figure."""

    figure: Any  # or the sub-figure that holds the axes given
    cells: tuple[Any, ...]  # row by row
    host: Any | None  # the axes given, in whose place the panels are; None on a new figure
    size: tuple[float, float]  # width and height of all panels together, in inches
    lines: list[str]  # the caption, to which lines may be added until `finish` writes it


def cell_size(photo: Size, width: float) -> tuple[float, float]:
    """Choose the size of a panel that shows a photo, in inches: wide panoramas get more width, tall photos no more height than a page has.

    Example:
        >>> cell_size((300, 450), 1.8), cell_size((100, 1000), 1.8)
        ((1.8, 1.2), (5.4, 0.54))
    """
    aspect = photo[0] / photo[1]
    wide = min(max(width, _LOWEST_CELL_INCHES / aspect), _WIDEST_CELL * width)
    return round(wide, 6), round(min(wide * aspect, _HIGHEST_CELL_INCHES), 6)


def make_panels(
    shape: Size,
    size: tuple[float, float],
    *,
    texts: Sequence[str | None],
    extra: tuple[float, float] = (0.0, 0.0),
    ax: Any | None = None,
    dpi: int,
) -> Panels:
    """Make panels on a new figure with room for the texts below and for `extra` inches, or inside axes."""
    if ax is None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        width = size[0] + extra[0]
        lines = _caption_lines(texts, width)
        height = size[1] + (LINE_INCHES * (len(lines) + 0.5) + extra[1])
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        return Panels(figure, tuple(figure.subplots(*shape, squeeze=False).flat), None, size, lines)
    box = ax.get_window_extent()
    inches = (max(box.width / ax.figure.dpi, 0.5), max(box.height / ax.figure.dpi, 0.5))
    lines = _caption_lines(texts, inches[0])
    if shape == (1, 1):
        return Panels(ax.figure, (ax,), ax, inches, lines)
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            "cannot draw several panels in these axes: expected axes on a grid, got axes placed by hand. "
            "Make them with figure.subplots() or figure.add_subplot(), or leave ax out."
        )
    ax.set_axis_off()
    cells = place.subgridspec(*shape).subplots(squeeze=False)
    return Panels(ax.figure, tuple(cells.flat), ax, inches, lines)


def _caption_lines(texts: Sequence[str | None], width: float) -> list[str]:
    return [line for text in texts for line in wrapped(text, width)]


def show(axes: Any, picture: "Image.Image", title: str = "", *, mark: Box | None = None) -> None:
    """Show a picture in a panel."""
    axes.imshow(picture, interpolation="antialiased")
    axes.set_axis_off()
    if title:
        axes.set_title(plain(title), fontsize=TITLE_POINTS, pad=3)
    if mark is not None:
        from matplotlib.patches import Rectangle

        top, left, bottom, right = mark
        corner = left - 0.5, top - 0.5  # imshow puts pixel centres at whole numbers
        for color, width in _MARK_WIDTHS:
            line: Any = {"edgecolor": color, "linewidth": width, "label": "query"}
            axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, **line))


def add_range(panels: Panels, heatmap: Heatmap, look: Look, label: str, of_what: str = "") -> None:
    """Say which values one map's colours stand for: with a colour bar, or in the caption if the map is flat."""
    low, high = value_range(heatmap, look.scale, uniform=look.uniform)
    if high > low:
        stretch = stretch_in_words(look)
        add_colorbar(panels, [heatmap], look, f"{label} ({stretch}{of_what})" if stretch else label)
    else:
        panels.lines.append(f"Flat map: every value is {low:.4g}.")


def add_colorbar(
    panels: Panels,
    heatmaps: Sequence[Heatmap],
    look: Look,
    label: str,
    *,
    axes: Sequence[Any] | None = None,
    width: float | None = None,
) -> None:
    """Draw the colours of one range, with arrows where values lie beyond its ends; multiples of 1/N under "uniform"."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import ScalarFormatter

    low, high = value_range(heatmaps[0], look.scale, uniform=look.uniform)
    ends, slack = [value_ends(one) for one in heatmaps], _ROUNDING * (high - low)
    below, above = any(one[0] < low - slack for one in ends), any(one[1] > high + slack for one in ends)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    if look.has_scale(Scale.UNIFORM):
        low, high, label = 0.0, UNIFORM_TOP, f"{label}, multiples of 1/N"
    height = panels.size[1]
    across = panels.size[0] if width is None else width
    bar = panels.figure.colorbar(
        ScalarMappable(Normalize(low, high), look.colormap),
        ax=list(panels.cells if axes is None else axes),
        extend=extend,
        extendfrac=_BAR_WIDTH_INCHES / height,
        fraction=_BAR_FRACTION * _BAR_WIDTH_INCHES / across,
        pad=0.08 / across,
        aspect=height / _BAR_WIDTH_INCHES,
    )
    bar.set_label(plain("\n".join(wrapped(label, max(height, LOWEST_BAR_INCHES)))), fontsize=TEXT_POINTS)
    bar.ax.tick_params(labelsize=TEXT_POINTS)
    bar.ax.yaxis.get_offset_text().set_fontsize(TEXT_POINTS)
    bar.outline.set_linewidth(0.5)
    if isinstance(bar.formatter, ScalarFormatter):
        bar.formatter.set_powerlimits((-3, 4))
        bar.formatter.set_useMathText(True)  # 10 to a power, not 1e-3


def wrapped(text: str | None, width: float, points: float = TEXT_POINTS) -> list[str]:
    """Break a text into lines."""
    columns = max(10, int(width * _CHARACTERS / points))
    unbroken = re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text or "")
    unbroken = re.sub(rf"\S{{{columns + 1},}}", lambda name: _parted(name[0], columns), unbroken)
    return [line for part in unbroken.splitlines() for line in textwrap.wrap(part, columns)]


def _parted(name: str, columns: int) -> str:
    parts = []
    while len(name) > columns:
        end = max(name.rfind(mark, 0, columns) for mark in "._/") + 1
        end = end if end > columns // 3 else columns
        parts.append(name[:end])
        name = name[end:]
    return " ".join([*parts, name])


def plain(text: str) -> str:
    """Keep matplotlib from reading a formula in a text."""
    return text.replace("$", r"\$")


def make_plots(titles: Sequence[str], columns: int, cell: tuple[float, float], **room: Any) -> Panels:
    """Make panels for curves, with a title, a quiet grid and two spines each; the last row may be filled in part."""
    rows = -(-len(titles) // columns)
    panels = make_panels((rows, columns), (columns * cell[0], rows * cell[1]), **room)
    for axes, title in zip_longest(panels.cells, titles):
        if title is None:
            axes.set_axis_off()
            continue
        lines = wrapped(title, panels.size[0] / columns * 0.9, TITLE_POINTS)
        axes.set_title(plain("\n".join(lines)), fontsize=TITLE_POINTS, loc="left")
        axes.tick_params(labelsize=TEXT_POINTS)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return panels


def finish(panels: Panels) -> "Figure":
    """Write the caption below the panels, and make sure that everything lies inside a new figure."""
    text = plain("\n".join(panels.lines))
    font: dict[str, Any] = {"fontsize": TEXT_POINTS, "linespacing": 1.25}
    if text and panels.host is not None:
        panels.host.text(0, -0.03, text, transform=panels.host.transAxes, va="top", **font)
    elif text:
        # A figure label, unlike free text, is given room by the layout, so it can never be cut off.
        panels.figure.supxlabel(text, x=0.01, ha="left", **font)
    if panels.host is None:
        _settle(panels.figure)
    figure: Figure = panels.figure
    return figure


def _settle(figure: "Figure") -> None:
    """Repeat the layout until nothing moves and nothing is cut off.

    Constrained layout takes two steps at a time, too few around pictures of a fixed aspect, and leaves a text without room beyond the edge.
    """
    engine: Any = figure.get_layout_engine()
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]  # Agg's
    places: list[float] = []
    for step in range(_LAYOUTS):
        engine.execute(figure)
        before, places = places, [edge for axes in figure.axes for edge in axes.get_position().extents]
        box, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
        wider = max(0.0, _MARGIN_INCHES - box.x0) + max(0.0, box.x1 + _MARGIN_INCHES - width)
        higher = max(0.0, _MARGIN_INCHES - box.y0) + max(0.0, box.y1 + _MARGIN_INCHES - height)
        if max(wider, higher) > 0.001 and step > 0:
            figure.set_size_inches(width + wider, height + higher)
        elif before and max(abs(a - b) for a, b in zip(before, places, strict=True)) < 0.001:
            break


def rendered(figure: "Figure") -> Image.Image:
    """A figure of ours as an RGB picture; `finish` has laid it out, and saving it would do so twice more."""
    figure.set_layout_engine("none")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
