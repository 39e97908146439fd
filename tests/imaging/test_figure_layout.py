"""Where the parts of figures lie: nothing on anything else, at any number of panels and any shape of photo, and in any layout."""

from functools import cache
from itertools import product

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from attnhook.imaging.comparison_figures import curves_figure, photos_by_models
from attnhook.imaging.depth_figures import depth_figure, map_grid
from attnhook.imaging.figures import overlay_figure, sheet, triptych
from attnhook.imaging.picture_grids import LINE_INCHES
from tests.imaging.expected import bars, check_nothing_overlaps, said, shown

CAPTION = "vit_small_patch16, class-token row, raw attention of every head of block 12 of 12; outside: attention on tokens that are not patches."
SHAPES = {"photo": (300, 400), "panorama": (100, 800), "tower": (600, 45), "icon": (16, 16)}
ON_ONE_SCALE = {"scale": "uniform", "uniform": 1 / 50}


@cache
def of_shape(name, count=1):
    height, width = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(count, -(-height // 8), -(-width // 8), generator=generator).repeat_interleave(8, 1)
    maps = maps.repeat_interleave(8, 2)[:, :height, :width] / 10
    return Image.new("RGB", (width, height), (90, 120, 60)), maps


def panels_of(name, count, **options):
    """A figure of this many panels: the photo is the first of several."""
    photo, maps = of_shape(name, max(1, count - 1))
    if count == 1:
        return overlay_figure(photo, maps[0], **options)
    more = "" if "ax" in options and count > 12 else ", 12% outside"  # a small place has no room for many long titles
    titles = [f"head {number}{more}" for number in range(count - 1)]
    return sheet(photo, maps, titles, **options)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 5, 12, 24])
def test_nothing_overlaps_on_a_new_figure(name, count):
    texts = {"caption": CAPTION, "title": "What every head of the last block looks at"}
    for options in (texts | ON_ONE_SCALE, {"scale": "robust"}):
        figure = panels_of(name, count, dpi=80, **options)
        check_nothing_overlaps(figure)
        assert len(shown(figure)) == count
        assert max(figure.get_size_inches()) < 25
        for axes in shown(figure):
            picture = axes.images[0].get_window_extent()
            assert min(picture.size) >= 4, picture.size


@pytest.mark.parametrize(
    "name, count, layout",
    [
        *product(SHAPES, [1, 5, 24], [None]),  # inside the cell, whose place a layout changes
        *product(["photo", "tower"], [2, 24], ["tight", "constrained"]),
    ],
)
def test_nothing_overlaps_in_a_cell_of_somebody_elses_figure(name, count, layout):
    for look in (ON_ONE_SCALE, {"scale": "robust"}):
        host = Figure(figsize=(12, 9), dpi=80, layout=layout)
        FigureCanvasAgg(host)
        cells = host.subplots(2, 2)
        for axes, numbers in zip((cells[0, 0], cells[1, 0], cells[1, 1]), ([1, 2], [3, 1], [2, 2]), strict=True):
            axes.plot(numbers)
            axes.set_title("a curve")
            axes.set_ylabel("loss")
        assert panels_of(name, count, ax=cells[0, 1], title="heads", **look) is host
        check_nothing_overlaps(host)
        assert len(shown(host)) == count
        cell = cells[0, 1].get_window_extent()
        for axes in (*shown(host), *bars(host)):
            box = axes.get_window_extent()
            assert cell.x0 - 1 <= box.x0 <= box.x1 <= cell.x1 + 1
            assert cell.y0 - 1 <= box.y0 <= box.y1 <= cell.y1 + 1
        for axes in shown(host):
            assert min(axes.images[0].get_window_extent().size) >= 1.5  # a panorama of 24 is a line, but is there


@pytest.mark.parametrize("name", SHAPES)
def test_nothing_overlaps_in_other_figures(name):
    photo, maps = of_shape(name, 4)
    options = {"caption": CAPTION, "dpi": 80}
    rows = {"photo_names": ["chelsea.png", "2.png"], "model_names": ["vit_small_patch16", "deit3_base_patch16_224.fb"]}
    for look in (ON_ONE_SCALE, {"scale": "robust"}):
        uniform = {"uniform": [[1 / 50] * 2] * 2, "scale": "uniform"} if look is ON_ONE_SCALE else look
        check_nothing_overlaps(triptych(photo, maps[0], **look, **options))
        check_nothing_overlaps(photos_by_models([photo] * 2, [maps[:2], maps[2:]], **rows, **uniform, **options))
    for blocks, heads in ((12, 12), (2, 3)):
        grid = torch.rand(blocks, heads, 9, 9) / 9
        names = {"row_labels": list(map(str, range(blocks))), "column_labels": list(map(str, range(heads)))}
        check_nothing_overlaps(map_grid(grid, image=photo, **names, **ON_ONE_SCALE, **options))


def test_hosts_move_and_pictures_follow():
    host = Figure(figsize=(8, 6), dpi=80)
    FigureCanvasAgg(host)
    axes = host.add_axes((0.1, 0.5, 0.4, 0.4))
    panels_of("photo", 5, ax=axes, **ON_ONE_SCALE)
    for place in ((0.1, 0.5, 0.4, 0.4), (0.5, 0.05, 0.45, 0.6)):
        axes.set_position(place)
        check_nothing_overlaps(host)
        cell = axes.get_window_extent()
        for inner in (*shown(host), *bars(host)):
            box = inner.get_window_extent()
            assert cell.x0 - 1 <= box.x0 <= box.x1 <= cell.x1 + 1
            assert cell.y0 - 1 <= box.y0 <= box.y1 <= cell.y1 + 1
    assert axes in host.axes
    assert shown(host)[0] in axes.child_axes
    assert said(host) == ""


def each_figure(**options):
    """One of each kind of figure, with a formula's signs and a power of ten in its texts."""
    photo, maps = of_shape("icon", 3)
    texts = {"caption": "5 $ and 10⁻³ of 1/N"} | options
    names = {"row_labels": ["1"], "column_labels": ["0", "1", "2"]}
    few = {"photo_names": ["a"], "model_names": ["b"]}
    return {
        "overlay": overlay_figure(photo, maps[0], **texts),
        "triptych": triptych(photo, maps[0] / 1000, scale="minmax", **texts),
        "sheet": sheet(photo, maps, ["a", "b", "c"], **ON_ONE_SCALE, **texts),
        "grid": map_grid(maps[None], image=photo, **names, **texts),
        "models": photos_by_models([photo], [maps[:1]], **few, **texts),
        "depth": depth_figure({"entropy": [[1.0, 2.0], [2.0, 3.0]]}, **texts),
        "curves": curves_figure({"a": {"m": ([0.5, 1.0], [1.0, 2.0])}}, horizontal="depth", caption=texts["caption"]),
    }


@pytest.mark.parametrize("kind", ["pdf", "svg", "eps"])
def test_text_in_vector_files_is_text(tmp_path, kind):
    for name, figure in each_figure(dpi=60).items():
        path = tmp_path / f"{name}.{kind}"
        with mpl.rc_context({"pdf.compression": 0}):
            figure.savefig(path)
        data = path.read_bytes()
        if kind == "svg":
            assert data.count(b"<text") >= 3, name
            assert b"1/N" in data
        elif kind == "pdf":
            assert b"/Type3" not in data, name
            assert b"/Subtype /Type3" not in data
            assert b"/FontFile2" in data  # TrueType
            assert b"/BaseFont" in data
        else:
            assert b"FontType 3" not in data
            assert b"/FontType 42" in data, name
    assert mpl.rcParams["pdf.fonttype"] == mpl.rcParamsDefault["pdf.fonttype"]  # nobody else's setting has changed


def test_widths_are_as_asked_for():
    photo, maps = of_shape("photo", 5)
    for width in (3.3, 6.8):
        for figure in (
            overlay_figure(photo, maps[0], width=width),
            triptych(photo, maps[0], width=width),
            sheet(photo, maps, list("abcde"), width=width, **ON_ONE_SCALE),
        ):
            assert figure.get_size_inches()[0] == pytest.approx(width, abs=0.01)
            check_nothing_overlaps(figure)
    wide, narrow = (sheet(photo, maps, list("abcde"), columns=3, cell_width=cell) for cell in (2.0, 1.0))
    sizes = [shown(figure)[0].get_window_extent().width / figure.dpi for figure in (wide, narrow)]
    assert sizes == pytest.approx([2.0, 1.0])


def test_a_title_stands_above_and_a_caption_below():
    photo, maps = of_shape("photo", 2)
    figure = sheet(photo, maps, ["a", "b"], title="costs $5", caption="and $6", dpi=80)
    check_nothing_overlaps(figure)
    top, *below = (text.get_window_extent() for text in figure.texts)
    pictures = [axes.get_window_extent() for axes in shown(figure)]
    assert figure.texts[0].get_text() == r"costs \$5"
    assert figure.texts[1].get_text().startswith(r"and \$6")
    assert top.y0 > max(box.y1 for box in pictures)
    assert max(line.y1 for line in below) < min(box.y0 for box in pictures)


def test_lines_of_a_caption_are_evenly_spaced():
    photo, maps = of_shape("photo", 2)
    caption = "a line with letters that go below: gjpqy, " * 3 + "tokens."
    figure = sheet(photo, maps, ["a", "b"], caption=caption, width=3.0)
    heights = sorted(text.get_position()[1] * figure.get_size_inches()[1] for text in figure.texts)
    assert len(heights) > 3
    assert np.diff(heights) == pytest.approx(LINE_INCHES)


def test_marks_follow_a_crop():
    photo, maps = of_shape("photo", 2)
    maps = maps.clone()
    maps[:, :40] = maps[:, :, :100] = float("nan")
    mark = (60, 120, 80, 150)
    for crop, (top, left) in (("photo", (0, 0)), ("seen", (40, 100))):
        figures = [
            overlay_figure(photo, maps[0], mark=mark, crop=crop),
            triptych(photo, maps[0], mark=mark, crop=crop),
            sheet(photo, maps, ["a", "b"], marks=[mark, None], crop=crop),
        ]
        for figure in figures:
            marked = [axes for axes in shown(figure) if axes.patches]
            assert len(marked) == {1: 1, 3: 3 if figure is figures[1] else 1}[len(shown(figure))]
            for axes in marked:
                for patch in axes.patches:
                    assert patch.get_bbox().bounds == (120 - left - 0.5, 60 - top - 0.5, 30, 20)
            sizes = {axes.images[0].get_array().shape[:2] for axes in shown(figure)}
            assert sizes == {(300 - top, 400 - left)}
    cropped = np.asarray(shown(figures[1])[0].images[0].get_array())
    assert (cropped == np.asarray(photo)[40:, 100:]).all()  # the photo beside an overlay is cropped alike


@pytest.mark.parametrize("middle, spread", [(0.0155, 1e-3), (0.02, 1e-4), (5e-3, 1e-6), (-0.0155, 1e-3), (9000.0, 0.1)])
@pytest.mark.parametrize("name", SHAPES)
def test_numbers_of_many_digits_have_room_beside_the_bar(name, middle, spread):
    photo, maps = of_shape(name)
    maps = middle + (maps[0].double() * 10 - 0.5) * spread
    host = Figure(figsize=(6, 4))
    FigureCanvasAgg(host)
    for options in ({}, {"width": 3.3}, {"ax": host.subplots()}):
        figure = overlay_figure(photo, maps, dpi=80, **options)
        check_nothing_overlaps(figure)
        (bar,) = bars(figure)
        assert not bar.yaxis.get_offset_text().get_text()
        assert not bar.xaxis.get_offset_text().get_text()
