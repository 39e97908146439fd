"""Figures for papers and reports: overlays with titles, a caption, and a colour bar.

Each function returns a `matplotlib.figure.Figure` of its own, or draws inside the axes given as `ax`, without a caption. There is a colour bar
if one range holds for all maps; if each map is stretched on its own, the figure says so instead. Photos and maps may be of the size at which
they are shown.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import Box, ImageGeometry
from attnhook.imaging.images import ImageSource, read_image
from attnhook.imaging.looks import Look, stretch_in_words
from attnhook.imaging.overlays import PAPER, Heatmap, blend, plane, seen_box, sized_like
from attnhook.imaging.panels import ColorBar, bar_room, color_bar, inches_of, make_pictures, show
from attnhook.imaging.picture_grids import (
    TITLE_POINTS,
    PictureGrid,
    cell_size,
    column_width,
    columns_for,
    inches,
    wrapped,
)
from attnhook.options import Crop, FigureStyle, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Panel: TypeAlias = tuple[Image.Image, str, Box | None]  # a picture, its title, and a box to mark in it
Heatmaps: TypeAlias = "Heatmap | Sequence[Heatmap]"
"""Several heat maps of one photo: (maps, height, width), or a sequence of (height, width)."""

FIGURE_OPTIONS = ("title", "width", "cell_width", "dpi", "ax")
_STYLES: Mapping[FigureStyle, Mapping[str, Any]] = {
    FigureStyle.PAPER: {"width": 6.75, "dpi": 300, "caption": ""},
    FigureStyle.SLIDES: {"width": 5.0, "dpi": 384, "caption": ""},  # 1920 pixels, in which 9 points are 48
}
_FEWEST_PIXELS = 8
_NARROWEST_CELL, _WORD = 0.02, 0.6  # inches: where there is no room, and of a word that may be broken
_RIBBON = 3.0  # width over height from which pictures stand below each other
_TALLEST = 1.6  # of a photo over the width of its figure: the overlay of a taller one gets less width than asked for


def overlay_figure(
    image: ImageSource,
    heatmap: Heatmap,
    *,
    caption: str | None = None,
    mark: Box | None = None,
    label: str = "attention",
    width: float = 5.0,
    **look: Any,
) -> "Figure":
    """Draw one overlay with a colour bar and a caption. `look` holds the fields of `Look` and what `make_pictures` takes."""
    colors, figure = split_look(look, overlay_figure)
    photo = read_image(image)
    bar, flat = color_bar([heatmap], colors, label)
    picture = blend(photo, heatmap, colors)
    panel = picture, "", shifted(mark, heatmap, colors)
    size: dict[str, Any] = {"width": width, "highest": _TALLEST * width}
    return draw_pictures([panel], 1, texts=[caption, flat], bar=bar, **size, **figure)


def triptych(
    image: ImageSource,
    heatmap: Heatmap,
    *,
    titles: Sequence[str] = ("photo", "map", "overlay"),
    caption: str | None = None,
    mark: Box | None = None,
    label: str = "attention",
    **look: Any,
) -> "Figure":
    """Draw the photo, the map alone, and the overlay, with a colour bar for the map."""
    colors, figure = split_look(look, triptych)
    if len(titles) != 3:
        raise GeometryError(f"cannot draw photo, map and overlay: expected three titles, got {len(titles)}.")
    photo = read_image(image)
    bar, flat = color_bar([heatmap], colors, label)
    pure = blend(Image.new("RGB", photo.size, PAPER), heatmap, colors)
    pictures = [seen_part(photo, heatmap, colors), pure, blend(photo, heatmap, colors)]
    panels = list(zip(pictures, titles, [shifted(mark, heatmap, colors)] * 3, strict=True))
    columns = 1 if photo.width > _RIBBON * photo.height else 3
    return draw_pictures(panels, columns, texts=[caption, flat], bar=bar, **({"cell_width": 2.2} | figure))


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
    **look: Any,
) -> "Figure":
    """Draw the photo and its overlays side by side: the heads of a block, the blocks of a model, several models, methods or queries.

    With scale="minmax" or "robust" each map is stretched on its own, and the figure says so; `common_look` stretches all of them together. A
    common range, also that of scale="uniform", comes with a colour bar.
    """
    colors, figure = split_look(look, sheet)
    photo, maps = read_image(image), list(heatmaps)
    boxes = [None] * len(maps) if marks is None else list(marks)
    if not maps or len(titles) != len(maps) or len(boxes) != len(maps):
        raise GeometryError(
            f"cannot draw the sheet: expected one title for each of at least one map, got {len(titles)} titles and "
            f"{len(maps)} maps ({len(boxes)} marks). Pass heatmaps of shape (maps, height, width)."
        )
    pictures: list[Panel] = [] if photo_title is None else [(seen_part(photo, maps[0], colors), photo_title, None)]
    for one, title, box in zip(maps, titles, boxes, strict=True):
        pictures.append((blend(photo, one, colors), title, shifted(box, one, colors)))
    if columns is not None and columns < 1:
        raise ValueError(f"cannot draw the sheet: expected at least one column, got columns={columns}.")
    stretch = stretch_in_words(colors)
    bar, flat = (None, None) if stretch else color_bar(maps, colors, label)
    texts = [caption, flat, stretch and f"Colours: {stretch} per map, not comparable between maps."]
    return draw_pictures(pictures, columns, texts=texts, bar=bar, **figure)


def draw_pictures(
    pictures: Sequence[Panel],
    columns: int | None,
    *,
    texts: Sequence[str | None],
    bar: ColorBar | None,
    cell_width: float = 1.8,
    width: float | None = None,
    highest: float = math.inf,
    **options: Any,
) -> "Figure":
    """Draw pictures of one shape in rows, with a colour bar and a caption; without `columns` in as many as suit the place."""
    first, ax = pictures[0][0], options.get("ax")
    cell = cell_size((first.height, first.width), cell_width)
    room = bar_room(bar)
    if ax is None:
        count = columns_for(len(pictures), first.height / first.width) if columns is None else columns
        wide = column_width(cell, cell_width)
        rows = _rows(pictures, count)
        grid = PictureGrid((wide,) * len(rows[0]), (cell[1],) * len(rows), (0,) * len(rows), **room)
        wide = wide if width is None else grid.of_width(width, highest).widths[0]
        titles = _wrapped(rows, wide)
        grid = replace(grid, heads=_heads(titles))
    else:
        counts = range(1, len(pictures) + 1) if columns is None else [columns]
        ways = [_in_place(_rows(pictures, count), cell, room, inches_of(ax)) for count in counts]
        _, grid, titles = max(ways, key=lambda way: way[0])
    panels = make_pictures(grid, texts=texts, bar=bar, width=width, highest=highest, **options)
    for axes in panels.cells[len(pictures) :]:
        axes.set_axis_off()
    lines = ["\n".join(title) for row in titles for title in row]
    for axes, (picture, _, box), title in zip(panels.cells, pictures, lines, strict=False):
        show(axes, picture, title, mark=box)
    figure: Figure = panels.figure
    return figure


def _rows(pictures: Sequence[Panel], columns: int) -> list[Sequence[Panel]]:
    return [pictures[start : start + columns] for start in range(0, len(pictures), columns)]


def _wrapped(rows: Sequence[Sequence[Panel]], width: float) -> list[list[list[str]]]:
    return [[wrapped(title, width, TITLE_POINTS) for _, title, _ in row] for row in rows]


def _heads(titles: list[list[list[str]]]) -> tuple[int, ...]:
    return tuple(max(map(len, row)) for row in titles)


def _in_place(
    rows: Sequence[Sequence[Panel]], cell: tuple[float, float], room: Mapping[str, Any], place: tuple[float, float]
) -> tuple[tuple[bool, bool, float], PictureGrid, list[list[list[str]]]]:
    """How good so many columns are inside a place (room for all, no broken words, large pictures), the grid, and its titles."""
    columns, count = len(rows[0]), len(rows)
    grid = PictureGrid((cell[0],) * columns, (cell[1],) * count, (0,) * count, **room)
    longest = max(
        (inches(word, TITLE_POINTS) for row in rows for _, title, _ in row for word in title.split()), default=0
    )
    for _ in range(3):  # titles and bar take room from pictures, whose size says how long titles and bar may be
        grid = grid.settled_within(*place)
        wide = max((place[0] - grid.fixed()[0]) / columns, _NARROWEST_CELL)
        titles = _wrapped(rows, wide)
        grid = replace(grid, heads=_heads(titles))
        scale = min(wide / cell[0], max((place[1] - grid.fixed()[1]) / count, _NARROWEST_CELL) / cell[1])
        lines = [inches(line, TITLE_POINTS) for row in titles for title in row for line in title]
        column = max(cell[0] * scale, min(wide, max(lines, default=0.0)))
        grid = replace(grid, widths=(column,) * columns, heights=(cell[1] * scale,) * count)
    fits = min(place[0] - grid.fixed()[0], place[1] - grid.fixed()[1]) > 0.0
    return (fits, wide >= min(longest, _WORD), scale), grid, titles


def styled(options: Mapping[str, Any]) -> dict[str, Any]:
    """A figure's options with what its `style` stands for; what was given as well wins."""
    given = dict(options)
    style = given.pop("style", None)
    return given if style is None else {**_STYLES[choose(FigureStyle, style, "style of a figure")], **given}


def split_look(options: dict[str, Any], function: Any) -> tuple[Look, dict[str, Any]]:
    """The look among a figure's options, and what is left for `make_pictures`: title, width, dpi, ax."""
    figure: dict[str, Any] = {name: options.pop(name) for name in FIGURE_OPTIONS if name in options}
    return Look.of(options, function), figure


def seen_part(photo: Image.Image, heatmap: Heatmap, look: Look) -> Image.Image:
    """The photo as beside an overlay: cropped if that is."""
    if look.crop != Crop.SEEN:
        sized_like(photo, heatmap)
        return photo
    return blend(photo, heatmap, replace(look, alpha=0.0, fade=0.0))


def shifted(mark: Box | None, heatmap: Heatmap, look: Look) -> Box | None:
    """A box of the photo in its overlay, which may be cropped."""
    if mark is None or look.crop != Crop.SEEN:
        return mark
    left, top, _, _ = seen_box(plane(heatmap))
    return mark[0] - top, mark[1] - left, mark[2] - top, mark[3] - left


def shown_at(photo: Image.Image, geometry: ImageGeometry, width: float) -> tuple[Image.Image, ImageGeometry]:
    """The photo at the size at which it is shown, `width` pixels at most (never enlarged), and the place of the input in it.

    Drawing a panel then costs what its own pixels cost, whatever the photo's size.
    """
    small = shrunk(photo, width, geometry)
    return small, geometry if small is photo else geometry.with_photo_size((small.height, small.width))


def shrunk(photo: Image.Image, width: float, *inputs: ImageGeometry) -> Image.Image:
    """The photo, at most `width` pixels wide; as it is if little would be left of the photo, or of what some input shows of it."""
    edges = [photo.height, *(edge for one in inputs for edge in np.subtract(one.visible[2:], one.visible[:2]))]
    if photo.width <= width or min(edges) * width / photo.width < _FEWEST_PIXELS:
        return photo
    size = max(1, round(width)), max(1, round(photo.height * width / photo.width))
    return photo.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
