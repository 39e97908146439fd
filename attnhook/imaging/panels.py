"""The parts of figures: pictures and curves in panels, marks, colour bars, captions.

Plain `matplotlib.figure.Figure` objects with their own canvas: no pyplot, no global state, nothing shown or saved.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from attnhook.imaging.geometry import Box
from attnhook.imaging.looks import UNIFORM_TOP, Look, palette, stretch_in_words
from attnhook.imaging.overlays import PAPER, Heatmap, color_scale, value_ends
from attnhook.imaging.picture_grids import (
    GAP_INCHES,
    LINE_INCHES,
    MARGIN_INCHES,
    NARROWEST_TEXT_INCHES,
    TEXT_POINTS,
    TICK_INCHES,
    TITLE_POINTS,
    PictureGrid,
    Place,
    inches,
    wrapped,
)
from attnhook.options import Scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADROOM = 1.06  # times the highest value, for an axis that begins at 0, so that no marker is cut off
_LAYOUTS = 10
_AXIS_INCHES = 0.6
_MOST_TICKS = 5
_DESCENT = 0.25  # of a line of text, below its baseline
_TICK_STEPS = (1, 2, 5, 10)  # between numbers of few digits
_TICK_MARK_INCHES = 0.15  # a tick, and the gaps before and behind its number
_TICK_STEP_INCHES = {True: 0.25, False: 0.5}  # from number to number, along an upright and along a lying bar
_WITH_ARROWS = 1.1  # times the length of the colours: matplotlib's arrows take a twentieth each
_ROUNDING = 1e-6  # relative to a range: values beyond its end by less get no arrow
_MARK_WIDTHS = (("black", 2.6), ("white", 1.2))  # a light line on a dark one is visible on any photo
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Panels:
    """The panels of a figure."""

    figure: Any
    cells: tuple[Any, ...]  # row by row
    bar: Any | None = None  # the axes of the colour bar


@dataclass(frozen=True)
class ColorBar:
    """What a colour bar shows: the colours as they appear over white paper, with arrows where values lie beyond them."""

    label: str
    low: float
    high: float
    colors: Any  # (256, 3), 0 to 1
    extend: str
    logarithmic: bool

    @property
    def ticks(self) -> float:
        """The room that numbers take beside the bar, in inches: values that differ little have many digits."""
        if self.logarithmic:
            return TICK_INCHES
        from matplotlib.ticker import MaxNLocator

        formatter = _formatter()
        formatter.create_dummy_axis()
        formatter.axis.set_view_interval(self.low, self.high)
        numbers = MaxNLocator(_MOST_TICKS, steps=_TICK_STEPS).tick_values(self.low, self.high)
        return max(
            TICK_INCHES, *(_TICK_MARK_INCHES + inches(text, TEXT_POINTS) for text in formatter.format_ticks(numbers))
        )


def bar_room(bar: ColorBar | None) -> dict[str, Any]:
    """What a `PictureGrid` has to know of the bar."""
    return {} if bar is None else {"bar": bar.label, "ticks": bar.ticks}


def _formatter() -> Any:
    from matplotlib.ticker import ScalarFormatter

    return ScalarFormatter(useOffset=False)  # an offset would stand alone above the bar


def color_bar(heatmaps: Sequence[Heatmap], look: Look, label: str) -> tuple[ColorBar | None, str | None]:
    """The colour bar of maps that share a range, or what the caption says of a map that has only one value."""
    scaled = color_scale(heatmaps[0], look)
    if scaled.flat:
        return None, f"Flat map: every value is {scaled.low:.4g}."
    ends, slack = [value_ends(one) for one in heatmaps], _ROUNDING * (scaled.high - scaled.low)
    below = any(one[0] < scaled.low - slack for one in ends)
    above = any(one[1] > scaled.high + slack for one in ends)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    opacity = scaled.opacities(look)[:, None]
    colors = palette(look.colormap) / 255 * opacity + np.array(PAPER) / 255 * (1 - opacity)
    low, high = scaled.low, scaled.high
    if look.has_scale(Scale.UNIFORM):
        return ColorBar(f"{label}, multiples of 1/N", 1.0, UNIFORM_TOP, colors, extend, True), None
    stretch = stretch_in_words(look)
    label = f"{label} ({stretch})" if stretch else label
    size = max(abs(low), abs(high))
    if not 1e-2 <= size < 1e4:  # a factor in the label takes less room than one at every tick
        power = math.floor(math.log10(size))
        label, low, high = f"{label}, 10{str(power).translate(_SUPERSCRIPTS)}", low / 10.0**power, high / 10.0**power
    return ColorBar(label, low, high, colors, extend, False), None


def figure_of(size: tuple[float, float], dpi: float, **options: Any) -> "Figure":
    """A new figure with a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from attnhook.imaging.notebook_figures import PaperFigure

    figure = PaperFigure(figsize=size, dpi=dpi, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def make_pictures(
    grid: PictureGrid,
    *,
    texts: Sequence[str | None] = (),
    title: str | None = None,
    bar: ColorBar | None = None,
    width: float | None = None,
    highest: float = math.inf,
    dpi: float = 200,
    ax: Any | None = None,
) -> Panels:
    """Make panels for pictures on a new figure, or inside axes, where there is no caption."""
    grid = replace(grid, **bar_room(bar))
    if ax is not None:
        grid = grid.settled_within(*inches_of(ax))
        ax.set_axis_off()
        if title:
            ax.set_title(plain(title), fontsize=TITLE_POINTS + 1)
        places = [Place(ax, grid, number) for number in range(len(grid.widths) * len(grid.heights))]
        cells = tuple(_inset(ax, place) for place in places)
        return _with_bar(
            Panels(ax.figure, cells, None if bar is None else _inset(ax, Place(ax, grid, None))),
            bar,
            grid,
            grid.within(*inches_of(ax)).bar_length,
        )
    grid = grid if width is None else grid.of_width(width, highest)
    narrowest = NARROWEST_TEXT_INCHES if title or any(texts) else 0.0
    room = max(grid.size()[0], narrowest) - 2 * MARGIN_INCHES
    lines = tuple(line for text in texts for line in wrapped(text, room))
    grid = replace(grid, lines=lines, title=tuple(wrapped(title, room, TITLE_POINTS + 1)))
    wide, tall = room + 2 * MARGIN_INCHES, grid.size()[1]
    figure = figure_of((wide, tall), dpi)
    rectangles, bar_place = grid.places(wide, tall)
    new = [figure.add_axes((x / wide, y / tall, w / wide, h / tall)) for x, y, w, h in rectangles]
    strip = None
    if bar is not None and bar_place is not None:
        x, y, w, h = bar_place
        strip = figure.add_axes((x / wide, y / tall, w / wide, h / tall))
    if grid.title:
        words = plain("\n".join(grid.title))
        figure.text(0.5, 1 - MARGIN_INCHES / tall, words, ha="center", va="top", fontsize=TITLE_POINTS + 1)
    for number, line in enumerate(lines, 1):  # one text each: Matplotlib 3.11 spaces the lines of one text unevenly
        height = MARGIN_INCHES + LINE_INCHES * (len(lines) - number + _DESCENT)
        figure.text(MARGIN_INCHES / wide, height / tall, plain(line), va="baseline", fontsize=TEXT_POINTS)
    return _with_bar(Panels(figure, tuple(new), strip), bar, grid, grid.bar_length)


def inches_of(axes: Any) -> tuple[float, float]:
    """Width and height of axes as they are now."""
    box, (width, height) = axes.get_position(), axes.figure.get_size_inches()
    return box.width * width, box.height * height


def _inset(host: Any, place: Place) -> Any:
    axes = host.inset_axes((0, 0, 1, 1))
    axes.set_axes_locator(place)
    return axes


def _with_bar(panels: Panels, bar: ColorBar | None, grid: PictureGrid, length: float) -> Panels:
    if bar is None or panels.bar is None:
        return panels
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    norm = (LogNorm if bar.logarithmic else Normalize)(bar.low, bar.high)
    drawn = panels.figure.colorbar(
        ScalarMappable(norm, ListedColormap(bar.colors)),
        cax=panels.bar,
        extend=bar.extend,
        orientation="vertical" if grid.upright else "horizontal",
    )
    drawn.set_label(plain("\n".join(grid.bar_label())), fontsize=TEXT_POINTS)
    drawn.ax.tick_params(labelsize=TEXT_POINTS)
    drawn.outline.set_linewidth(0.5)
    if bar.logarithmic:
        ticks = 2.0 ** np.arange(math.log2(UNIFORM_TOP) + 1)
        drawn.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        drawn.minorticks_off()
    else:
        most = min(_MOST_TICKS, int(length / _TICK_STEP_INCHES[grid.upright]))
        fewest = 2
        if (
            not grid.upright and bar.ticks > TICK_INCHES
        ):  # long numbers lie beside each other: one is better than two on each other
            number, colors = bar.ticks - _TICK_MARK_INCHES + GAP_INCHES, (length - bar.ticks) / _WITH_ARROWS
            most, fewest = min(most, int(colors / number)), 1
        drawn.locator = MaxNLocator(max(1, most), steps=_TICK_STEPS, min_n_ticks=fewest)
        drawn.formatter = _formatter()
        drawn.update_ticks()
    return panels


def show(axes: Any, picture: Image.Image, title: str = "", *, mark: Box | None = None) -> None:
    """Show a picture in a panel."""
    # Icons are enlarged pixel by pixel: smoothing would invent what the photo does not show.
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


def plain(text: str) -> str:
    """Keep matplotlib from reading a formula in a text."""
    return text.replace("$", r"\$")


def make_plots(
    titles: Sequence[str],
    columns: int,
    cell: tuple[float, float],
    *,
    texts: Sequence[str | None],
    extra: float = 0.0,
    dpi: float,
    title: str | None = None,
    ax: Any | None = None,
) -> Panels:
    """Make panels for curves, with a title, a quiet grid and two spines each; the last row may be filled in part."""
    rows = -(-len(titles) // columns)
    if ax is None:
        lines = [line for text in texts for line in wrapped(text, columns * cell[0] - 0.2)]
        size = columns * cell[0], rows * cell[1] + LINE_INCHES * (len(lines) + 0.5) + extra + (0.25 if title else 0.0)
        figure: Any = figure_of(size, dpi, layout="constrained")
        cells = tuple(figure.subplots(rows, columns, squeeze=False).flat)
        if lines:  # a figure label, unlike free text, is given room by the layout
            figure.supxlabel(plain("\n".join(lines)), x=0.01, ha="left", fontsize=TEXT_POINTS, linespacing=1.25)
        if title:
            figure.suptitle(plain(title), fontsize=TITLE_POINTS + 1)
    else:
        figure, place = ax.figure, ax.get_subplotspec()
        box = ax.get_window_extent()
        cell = max(box.width / figure.dpi, 0.5) / columns, cell[1]
        if len(titles) == 1:
            cells = (ax,)
        elif place is None:
            raise ValueError(
                "cannot draw several panels in these axes: expected axes on a grid, got axes placed by hand. "
                "Make them with figure.subplots() or figure.add_subplot(), or leave ax out."
            )
        else:
            ax.set_axis_off()
            cells = tuple(place.subgridspec(rows, columns).subplots(squeeze=False).flat)
        if title:
            ax.set_title(plain(title), fontsize=TITLE_POINTS + 1)
    for axes, name in zip_longest(cells, titles):
        if name is None:
            axes.set_axis_off()
            continue
        heading = plain("\n".join(wrapped(name, plot_width(cell[0]), TITLE_POINTS)))
        axes.set_title(heading, fontsize=TITLE_POINTS, loc="left")
        axes.tick_params(labelsize=TEXT_POINTS)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return Panels(figure, cells)


def plot_width(cell: float) -> float:
    """How wide the curves of a cell are, which is the room for their title: numbers and a label stand at their left."""
    return max(cell - _AXIS_INCHES, cell / 2)


def settle(figure: Any) -> None:
    """Repeat the layout of curves on a new figure until nothing moves and nothing is cut off.

    Constrained layout takes two steps at a time, too few around long texts, and leaves a text without room beyond the edge.
    """
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=MARGIN_INCHES, h_pad=MARGIN_INCHES)
    renderer: Any = figure.canvas.get_renderer()
    places: list[float] = []
    for step in range(_LAYOUTS):
        engine.execute(figure)
        before, places = places, [edge for axes in figure.axes for edge in axes.get_position().extents]
        box, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
        wider = max(0.0, MARGIN_INCHES - box.x0) + max(0.0, box.x1 + MARGIN_INCHES - width)
        higher = max(0.0, MARGIN_INCHES - box.y0) + max(0.0, box.y1 + MARGIN_INCHES - height)
        if max(wider, higher) > 0.001 and step > 0:
            figure.set_size_inches(width + wider, height + higher)
        elif before and max(abs(a - b) for a, b in zip(before, places, strict=True)) < 0.001:
            break


def rendered(figure: "Figure") -> Image.Image:
    """A figure of ours as an RGB picture; it has been laid out."""
    figure.set_layout_engine("none")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
