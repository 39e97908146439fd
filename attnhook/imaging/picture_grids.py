"""Where the pictures, titles, colour bar and caption of a figure lie: worked out in inches, on a new figure or inside given axes.

No layout engine is needed: pictures have known shapes, and texts are measured. Inside axes, places follow the axes wherever a layout moves them.
"""

import math
import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from attnhook.options import Size

GAP_INCHES, MARGIN_INCHES = 0.07, 0.08
TITLE_INCHES, LINE_INCHES = 0.18, 0.145
TITLE_POINTS, TEXT_POINTS = 9, 8
BAR_INCHES = 0.12
TICK_INCHES = 0.38  # beside an upright bar, for short numbers
_LOWEST_BAR_INCHES, _LONGEST_BAR_INCHES = 1.0, 3.0
_LOWEST_CELL_INCHES, _HIGHEST_CELL_INCHES = 0.6, 4.0
_WIDEST_CELL = 3.0  # times the requested width, for a panorama
_NARROWEST_COLUMN_INCHES = 0.8  # a tall photo stands in a wider column, so that its title is no column of letters
_NARROWEST_PICTURE_INCHES = 0.05  # where given axes have no room
_RESOLUTIONS = (60, 80, 100, 150, 200)  # dots per inch: rounded to dots, letters take up to a tenth more
NARROWEST_TEXT_INCHES = 2.4  # of a figure with a caption or a title

Rectangle = tuple[float, float, float, float]
"""Left, bottom, width and height."""


def cell_size(photo: Size, width: float) -> tuple[float, float]:
    """Choose the size of a panel that shows a photo, in inches: wide panoramas get more width, tall photos no more height than a page has.

    Example:
        >>> cell_size((300, 450), 1.8), cell_size((100, 1000), 1.8)
        ((1.8, 1.2), (5.4, 0.54))
    """
    aspect = photo[0] / photo[1]
    wide = min(max(width, _LOWEST_CELL_INCHES / aspect), _WIDEST_CELL * width, _HIGHEST_CELL_INCHES / aspect)
    return round(wide, 6), round(wide * aspect, 6)


def column_width(cell: tuple[float, float], width: float) -> float:
    """How wide a column of pictures is."""
    return max(cell[0], min(_NARROWEST_COLUMN_INCHES, width))


@dataclass(frozen=True)
class PictureGrid:
    """Pictures in rows and columns, in inches; the pictures' sizes may be scaled, those of texts may not."""

    widths: tuple[float, ...]  # of the columns
    heights: tuple[float, ...]  # of the rows
    heads: tuple[int, ...] = ()  # lines of title above each row
    feet: tuple[int, ...] = ()  # lines below each row
    bar: str | None = None  # the label of the colour bar, if there is one
    ticks: float = TICK_INCHES  # the room for its numbers
    lines: tuple[str, ...] = ()  # the caption
    title: tuple[str, ...] = ()
    lying: bool | None = None  # the bar, where that is settled; so are the lines of its label
    bar_lines: tuple[str, ...] = ()

    @property
    def upright(self) -> bool:
        """Whether the bar stands beside the pictures: below a low ribbon of pictures it lies."""
        if self.lying is not None:
            return not self.lying
        return sum(self.heights) + sum(self.heads) * TITLE_INCHES >= _LOWEST_BAR_INCHES

    @property
    def bar_length(self) -> float:
        """The length of the bar."""
        pictures = sum(self.widths)
        if self.upright:  # from the top of the first row to the bottom of the last
            pictures = sum(self.heights) + TITLE_INCHES * sum(self.heads[1:]) + GAP_INCHES * (len(self.heights) - 1)
        return max(min(pictures, _LONGEST_BAR_INCHES), _LOWEST_BAR_INCHES if not self.upright else 0.0)

    def bar_label(self) -> list[str]:
        """The lines of the bar's label."""
        return list(self.bar_lines) or wrapped(self.bar, max(self.bar_length, _LOWEST_CELL_INCHES))

    def fixed(self) -> tuple[float, float]:
        """Width and height of all that is no picture, without caption and title."""
        across = 2 * MARGIN_INCHES + GAP_INCHES * (len(self.widths) - 1)
        down = 2 * MARGIN_INCHES + GAP_INCHES * (len(self.heights) - 1)
        down += TITLE_INCHES * sum(self.heads) + LINE_INCHES * (sum(self.feet) + 0.4 * len(self.feet))
        if self.bar is not None:
            lines = LINE_INCHES * len(self.bar_label())
            across += GAP_INCHES + BAR_INCHES + self.ticks + lines if self.upright else 0.0
            down += 0.0 if self.upright else GAP_INCHES + BAR_INCHES + 1.3 * LINE_INCHES + lines
        return across, down

    def size(self) -> tuple[float, float]:
        """Width and height of the figure."""
        across, down = self.fixed()
        texts = LINE_INCHES * (len(self.lines) + 0.4) if self.lines else 0.0
        texts += TITLE_INCHES * (len(self.title) + 0.3) if self.title else 0.0
        wide = across + sum(self.widths)
        if self.bar is not None and not self.upright:
            wide = max(wide, self.bar_length + 2 * MARGIN_INCHES)
        return wide, down + sum(self.heights) + texts

    def scaled(self, factor: float) -> "PictureGrid":
        """The same grid with larger or smaller pictures."""
        return replace(
            self, widths=tuple(factor * one for one in self.widths), heights=tuple(factor * one for one in self.heights)
        )

    def of_width(self, width: float, highest: float = math.inf) -> "PictureGrid":
        """The same grid in a figure of a given width, or narrower if its pictures would be higher than they may be."""
        grid = self
        for settled in (False, False, False, True):  # the bar's label takes more lines beside lower pictures
            if settled:
                grid = grid.settled(lying=not grid.upright)
            factor = min((width - grid.fixed()[0]) / sum(grid.widths), highest / sum(grid.heights))
            grid = grid.scaled(max(_NARROWEST_PICTURE_INCHES / max(grid.widths), factor))
        return grid

    def settled(self, *, lying: bool) -> "PictureGrid":
        """The same grid, whose bar no longer changes as the pictures get larger or smaller."""
        grid = replace(self, lying=lying)
        return replace(grid, bar_lines=tuple(grid.bar_label()))

    def settled_within(self, width: float, height: float) -> "PictureGrid":
        """The same grid with the bar where it leaves the pictures more room in a place."""
        if self.bar is None:
            return self
        ways = []
        for lying in (False, True):
            grid = self.settled(lying=lying)
            for _ in range(2):
                lines = replace(grid.within(width, height), bar_lines=()).settled(lying=lying).bar_lines
                grid = replace(grid, bar_lines=lines)
            ways.append(grid)
        return max(ways, key=lambda grid: grid.within(width, height).widths[0])

    def within(self, width: float, height: float) -> "PictureGrid":
        """The same grid as large as fits a place, without caption and title."""
        across, down = self.fixed()
        factor = min((width - across) / sum(self.widths), (height - down) / sum(self.heights))
        grid = replace(self, lines=(), title=())
        return grid.scaled(max(_NARROWEST_PICTURE_INCHES / max(self.widths), factor))

    def places(self, width: float, height: float) -> tuple[list[Rectangle], Rectangle | None]:
        """Where the pictures, row by row, and the bar lie on a figure or in a place of this size."""
        own_width, own_height = self.size()
        top = height - max(0.0, height - own_height) / 2 - MARGIN_INCHES  # centred in a place that is larger
        left = max(0.0, width - own_width) / 2 + MARGIN_INCHES
        top -= TITLE_INCHES * (len(self.title) + 0.3) if self.title else 0.0
        first, rectangles = top, []
        for row, tall in enumerate(self.heights):
            top -= TITLE_INCHES * self.heads[row] if self.heads else 0.0
            across = left
            for wide in self.widths:
                rectangles.append((across, top - tall, wide, tall))
                across += wide + GAP_INCHES
            top -= tall + GAP_INCHES + (LINE_INCHES * (self.feet[row] + 0.4) if self.feet else 0.0)
        if self.bar is None:
            return rectangles, None
        if self.upright:
            highest = first - (TITLE_INCHES * self.heads[0] if self.heads else 0.0)
            return rectangles, (across, highest - self.bar_length, BAR_INCHES, self.bar_length)
        # Half of the first and of the last tick's number lies beyond the bar.
        return rectangles, (left + self.ticks / 2, top - BAR_INCHES, self.bar_length - self.ticks, BAR_INCHES)


class Place:
    """Where a panel lies inside given axes; matplotlib asks whenever it draws, so it follows the axes through every layout."""

    def __init__(self, host: Any, grid: PictureGrid, number: int | None) -> None:
        self._host, self._grid, self._number = host, grid, number

    def __call__(self, axes: Any, renderer: Any) -> Any:
        """The place, in fractions of the figure."""
        from matplotlib.transforms import Bbox

        box, figure = self._host.get_position(), self._host.figure
        width, height = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
        inches = box.width * width, box.height * height
        panels, bar = self._grid.within(*inches).places(*inches)
        left, bottom, wide, tall = panels[self._number] if self._number is not None else bar or panels[0]
        return Bbox.from_bounds(box.x0 + left / width, box.y0 + bottom / height, wide / width, tall / height)


class RightOf:
    """Where axes lie inside a panel, with `room` inches for labels at their left."""

    def __init__(self, panel: Any, room: float) -> None:
        self._panel, self._room = panel, room

    def __call__(self, axes: Any, renderer: Any) -> Any:
        """The place, in fractions of the figure."""
        from matplotlib.transforms import Bbox

        outer, figure = self._panel.get_axes_locator(), self._panel.figure
        box = self._panel.get_position() if outer is None else outer(self._panel, renderer)
        return Bbox.from_extents(box.x0 + self._room * figure.dpi / figure.bbox.width, box.y0, box.x1, box.y1)


def columns_for(pictures: int, aspect: float) -> int:
    """Choose the number of columns that leaves few cells empty and makes a sheet neither too tall nor too wide; aspect is height over width."""

    def cost(columns: int) -> float:
        rows = -(-pictures // columns)
        return 2 * (rows * columns - pictures) / pictures + abs(math.log(columns / (rows * aspect) / 2.0)) / 2

    fewest = 1 if aspect < 0.3 else min(pictures, 3)
    return min(range(fewest, min(pictures, 7) + 1), key=cost)


def wrapped(text: str | None, width: float, points: float = TEXT_POINTS) -> list[str]:
    """Break a text into lines of at most `width` inches; long names break after a dot, a slash or an underscore."""
    unbroken = re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text or "")
    lines = []
    for part in unbroken.splitlines():
        line = ""
        for word in (piece for name in part.split() for piece in _pieces(name, width, points)):
            longer = f"{line} {word}" if line else word
            if line and inches(longer, points) > width:
                lines.append(line)
                longer = word
            line = longer
        lines += [line] if line else []
    return lines


def _pieces(word: str, width: float, points: float) -> list[str]:
    pieces = []
    while len(word) > 1 and inches(word, points) > width:
        end = bisect_right(range(2, len(word)), width, key=lambda n: inches(word[:n], points)) + 1
        mark = max(word.rfind(sign, 0, end) for sign in "._/") + 1
        end = mark if mark > end // 3 else end
        pieces.append(word[:end])
        word = word[end:]
    return [*pieces, word]


@lru_cache(maxsize=4096)
def inches(text: str, points: float) -> float:
    """The width of a text in matplotlib's font, at whatever resolution it takes the most room."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=points)
    widest = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72
    for dpi in _RESOLUTIONS:
        width, _, _ = RendererAgg(1, 1, dpi).get_text_width_height_descent(text, font, ismath=False)
        widest = max(widest, width / dpi)
    return float(widest)
