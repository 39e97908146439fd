"""The report's maps in a real browser: pixels, ranges and values are Python's; a row zooms as one."""

import re

import numpy as np
import pytest
from PIL import Image

from attnhook import ImageGeometry
from attnhook.imaging.drawing import heatmap, overlay
from tests.comparison.contents import find, shown_photo, unpacked

TIMES = "\u00d7"
PIXEL_TOLERANCE = 3  # as for the viewer: two JPEG decoders differ by up to 2, and each blend rounds once
COLOR_STEP = 4  # as for the viewer: a value on the border of two colours may fall to either side
WIDE = {"viewport": {"width": 1480, "height": 1000}}  # four models of 260 pixels side by side


def geometry(shown, one, size=None):
    """The geometry that the file states; for a photo of another size if asked."""
    photo = shown["photos"][one["photo"]]
    full = (photo["height"], photo["width"])
    size = size or full
    scale = tuple(s * f / n for s, f, n in zip(one["scale"], full, size, strict=True))
    area = tuple(one["area"])
    return ImageGeometry(size, area, scale, tuple(one["offset"]), tuple(one["valid"]))


def pixel_values(shown, view, model, photo, *, mode="bilinear", size=None):
    one = find(shown, view, model, photo)
    seen = geometry(shown, one, size)
    return heatmap(unpacked(one), seen, mode=mode, patch_area=seen.input_size)


# --- pictures -----------------------------------------------------------------------------------------------------------------


def own_range(shown, view, model, photo, *, mode="bilinear"):
    """Colours from the 1st to the 99th percentile of 160 x 160 points of the photo, opacity from their median on."""
    values = pixel_values(shown, view, model, photo, mode=mode, size=(160, 160)).numpy()
    low, floor, high = np.percentile(values[~np.isnan(values)], [1, 50, 99])
    return {"scale": (low, high), "floor": floor}


def expected_pixels(picture, values, **look):
    """What Python draws, without its frame; what the model did not see is two fifths of a light grey."""
    drawn, unseen = np.asarray(overlay(picture, values, fade=0, **look)).astype(int), values.isnan().numpy()
    drawn[unseen] = np.rint(np.asarray(picture)[unseen] * 0.6 + 222 * 0.4)
    return drawn


@pytest.mark.parametrize("model", [0, 1, 2])
def test_pixels_are_those_of_python(report, shown, model):
    page = report(shown, **WIDE)
    picture = shown_photo(shown, 0)
    smooth, flat = (pixel_values(shown, 0, model, 0, mode=mode) for mode in ("bilinear", "nearest"))
    uniform = find(shown, 0, model, 0)["uniform"]
    expected = expected_pixels(picture, smooth, scale="uniform", uniform=uniform)
    assert np.abs(page.pixels(model, 0) - expected).max() <= PIXEL_TOLERANCE + COLOR_STEP
    page.choose("scale", "own")
    for opacity in (0, 60, 100):
        page.slide("alpha", opacity)
        expected = expected_pixels(picture, smooth, alpha=opacity / 100, **own_range(shown, 0, model, 0))
        difference = np.abs(page.pixels(model, 0) - expected)
        assert difference.max() <= PIXEL_TOLERANCE + (COLOR_STEP if opacity else 0)
        assert difference.mean() < 1
    hottest = np.unravel_index(int(np.nanargmax(smooth.numpy())), smooth.shape)
    assert np.abs(page.pixels(model, 0)[hottest] - [240, 249, 33]).max() <= 2  # plasma's top
    page.check("weighted", False)
    look = {"alpha": 1.0, "weighted": False}
    expected = expected_pixels(picture, smooth, **look, **own_range(shown, 0, model, 0))
    assert np.abs(page.pixels(model, 0) - expected).max() <= COLOR_STEP
    page.check("smooth", False)
    expected = expected_pixels(picture, flat, **look, **own_range(shown, 0, model, 0, mode="nearest"))
    assert np.abs(page.pixels(model, 0) - expected).max() <= COLOR_STEP
    page.choose("scale", "uniform")
    page.choose("colormap", "magma")
    expected = expected_pixels(picture, flat, **look, scale="uniform", uniform=uniform, colormap="magma")
    assert np.abs(page.pixels(model, 0) - expected).max() <= COLOR_STEP
    page.choose("scale", "row")
    page.check("smooth", True)
    every = [own_range(shown, 0, one, 0)["scale"] for one in range(3)]
    bounds = min(low for low, _ in every), max(high for _, high in every)
    expected = expected_pixels(picture, smooth, **look, scale=bounds, colormap="magma")
    assert np.abs(page.pixels(model, 0) - expected).max() <= COLOR_STEP


@pytest.mark.parametrize("model", [0, 1])
def test_a_smaller_jpeg_lies_under_the_same_map(report, shown, model):
    """The range is that of the whole photo, the place of each value that of the original."""
    page = report(shown, **WIDE)
    page.slide("alpha", 100)
    page.choose("scale", "own")
    page.check("weighted", False)
    found = page.pixels(model, 1)
    values = pixel_values(shown, 0, model, 1, size=found.shape[:2])
    bare = Image.new("RGB", found.shape[1::-1])
    expected = expected_pixels(bare, values, alpha=1.0, weighted=False, **own_range(shown, 0, model, 1))
    seen = ~values.isnan().numpy()
    assert found.shape[:2] == (260, 200)
    assert np.abs(found - expected)[seen].max() <= COLOR_STEP


def test_the_range_under_a_picture_is_that_of_its_pixels(report, shown):
    page = report(shown)

    def ends(model):
        page.canvas(model, 0)
        texts = page.cell(model, 0).locator(".bar span").all_inner_texts()
        return texts[0], texts[-1]

    assert [ends(model) for model in range(3)] == [("1/N", "16/N")] * 3
    page.choose("scale", "own")
    for model in range(3):
        assert [float(end) for end in ends(model)] == pytest.approx(own_range(shown, 0, model, 0)["scale"], rel=6e-3)


def test_every_control_changes_the_pictures(report, shown):
    page = report(shown)
    before = page.pixels(0, 0)

    def changed():
        nonlocal before
        after = page.pixels(0, 0)
        assert np.abs(after - before).max() > 8
        before = after

    for name, value in (
        ("scale", "own"),
        ("scale", "row"),
        ("scale", "uniform"),
        ("top", "2"),
        ("colormap", "cividis"),
    ):
        page.choose(name, value)
        changed()
    page.slide("alpha", 20)
    changed()
    page.check("weighted", False)
    changed()
    page.check("smooth", False)
    changed()
    assert page.page.locator("#top").is_visible()
    page.choose("view", "1")
    changed()
    assert page.page.locator("#scale").input_value() == "own"
    assert page.page.locator('#scale [value="uniform"]').is_disabled()
    assert not page.page.locator("#top").is_visible()
    framed = page.canvas(0, 0).screenshot()
    page.check("frame", False)
    assert page.canvas(0, 0).screenshot() != framed


def test_the_frame_is_what_all_models_saw(report, shown):
    page = report(shown)
    canvas, box = page.canvas(1, 0).bounding_box(), page.cell(1, 0).locator(".frame").bounding_box()
    photo = shown["photos"][0]
    zoom = canvas["width"] / photo["width"]
    top, left, bottom, right = photo["box"]
    assert box["x"] - canvas["x"] == pytest.approx(left * zoom, abs=1)
    assert box["y"] - canvas["y"] == pytest.approx(top * zoom, abs=1)
    assert box["width"] == pytest.approx((right - left) * zoom, abs=1)
    assert box["height"] == pytest.approx((bottom - top) * zoom, abs=1)


# --- pointing and zooming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_values_under_the_pointer_are_the_heat_maps(report, shown, mode):
    page = report(shown, **WIDE)
    page.check("smooth", mode == "bilinear")
    truth = [pixel_values(shown, 0, model, 0, mode=mode).numpy() for model in range(3)]
    height, width = truth[0].shape
    for row, column in ((87, 130), (30, 90), (150, 170), (40, 100), (3, 3)):
        page.point(1, 0, (row + 0.5) / height, (column + 0.5) / width)
        assert page.value(-1, 0).inner_text() == f"row {row}, column {column}"
        for model, values in enumerate(truth):
            found = page.value(model, 0).get_attribute("data-value")
            if np.isnan(values[row, column]):
                assert found is None
                assert re.match("not seen|no value", page.value(model, 0).inner_text())
            else:
                one = find(shown, 0, model, 0)
                bound = 1e-3 * (one["high"] - one["low"])  # the browser places the pointer to a fraction of a pixel
                assert float(found) == pytest.approx(float(values[row, column]), abs=bound)
                written = page.value(model, 0).inner_text().replace("\xa0", " ")
                times = float(re.fullmatch(rf"\S+ · (\S+) {TIMES} 1/N", written)[1])
                assert times == pytest.approx(float(values[row, column]) / one["uniform"], rel=6e-3, abs=1e-2)
    assert page.value(0, 1).inner_text() == ""  # the other photo
    page.page.mouse.move(2, 2)
    assert page.value(0, 0).inner_text() == ""


def look(page, photo):
    """Where the frame lies: it moves and grows with what is shown."""
    models = [model for model in range(3) if (model, photo) != (2, 1)]
    canvases = [page.canvas(model, photo).bounding_box() for model in models]
    boxes = [page.cell(model, photo).locator(".frame").bounding_box() for model in models]
    return [(round(b["x"] - c["x"], 1), round(b["width"], 1)) for b, c in zip(boxes, canvases, strict=True)]


def test_all_pictures_of_a_row_zoom_at_the_pointer(report, shown):
    page = report(shown, **WIDE)
    (start, *_) = look(page, 0)
    page.point(1, 0, 0.3, 0.6)
    before = float(page.value(0, 0).get_attribute("data-value"))
    page.page.keyboard.down("Control")
    page.page.mouse.wheel(0, -60)
    page.page.keyboard.up("Control")
    page.settle()
    zoomed = look(page, 0)
    assert len(set(zoomed)) == 1
    factor = zoomed[0][1] / start[1]
    assert 1.4 < factor < 3
    assert float(page.value(0, 0).get_attribute("data-value")) == pytest.approx(before, rel=1e-6)
    assert zoomed[0][0] == pytest.approx(0.6 * 260 - (0.6 * 260 - start[0]) * factor, abs=1)
    sharper = page.pixels(1, 0)
    page.page.mouse.down()
    page.point(1, 0, 0.5, 0.5)
    page.page.mouse.up()
    page.settle()
    moved = look(page, 0)
    assert moved[0][0] == pytest.approx(zoomed[0][0] - 0.1 * 260, abs=1)
    assert moved[0][1] == zoomed[0][1]
    assert float(page.value(0, 0).get_attribute("data-value")) == pytest.approx(before, rel=0.05)
    assert np.abs(page.pixels(1, 0) - sharper).max() > 8
    page.canvas(2, 0).dblclick()
    page.settle()
    assert look(page, 0) == [start] * 3


def test_a_zoomed_picture_is_that_part_of_pythons(report, shown):
    page = report(shown, **WIDE)
    page.slide("alpha", 100)
    page.choose("scale", "own")
    for _ in range(2):
        page.cell(-1, 0).get_by_role("button", name="zoom in").click()
    page.settle()
    part, height, width = 1 / 1.5**2, 174, 260
    start = (1 - part) / 2
    one = find(shown, 0, 1, 0)
    whole = geometry(shown, one)
    scale = tuple(s * part for s in whole.scale)
    offset = tuple(o + s * start * n for o, s, n in zip(whole.offset, whole.scale, (height, width), strict=True))
    cropped = ImageGeometry((height, width), whole.input_size, scale, offset, whole.valid)
    values = heatmap(unpacked(one), cropped, patch_area=whole.input_size)
    page.check("weighted", False)
    bare = Image.new("RGB", (width, height))
    expected = expected_pixels(bare, values, alpha=1.0, weighted=False, **own_range(shown, 0, 1, 0))
    seen = ~values.isnan().numpy()
    assert np.abs(page.pixels(1, 0) - expected)[seen].max() <= COLOR_STEP


def test_keys_and_buttons(report, shown):
    page = report(shown)
    (start, *_) = look(page, 0)
    page.canvas(-1, 0).focus()
    for key in ("ArrowRight", "ArrowDown", "+", "+"):
        page.page.keyboard.press(key)
    page.settle()
    assert look(page, 0)[0][1] == pytest.approx(start[1] * 2.25, abs=1)
    assert page.value(1, 0).get_attribute("data-value")
    page.page.keyboard.press("-")
    page.settle()
    assert look(page, 0)[0][1] == pytest.approx(start[1] * 1.5, abs=1)
    assert f"1.5 {TIMES}" in page.cell(-1, 0).inner_text()
    before = look(page, 0)[0][0]
    for _ in range(30):
        page.page.keyboard.press("ArrowRight")
    page.settle()
    assert look(page, 0)[0][0] < before  # the part follows the point
    page.page.keyboard.press("0")
    page.settle()
    assert look(page, 0) == [start] * 3
    other = look(page, 1)
    page.check("together", True)
    page.cell(-1, 0).get_by_role("button", name="zoom in").click()
    page.settle()
    assert look(page, 1) != other
    page.cell(-1, 1).get_by_role("button", name="whole").click()
    page.settle()
    assert look(page, 0) == [start] * 3


def test_the_wheel_scrolls_the_page_until_a_picture_was_clicked(report, shown):
    page = report(shown)
    (start, *_) = look(page, 0)
    page.point(1, 0, 0.5, 0.5)
    page.page.mouse.wheel(0, -100)
    page.settle()
    assert look(page, 0)[0] == start
    page.canvas(1, 0).click()
    page.page.mouse.wheel(0, -200)
    page.settle()
    assert look(page, 0)[0][1] > start[1] * 1.2


def test_two_fingers_zoom_the_row(report, shown):
    page = report(shown, viewport={"width": 375, "height": 720}, has_touch=True)
    (start, *_) = look(page, 0)
    box = page.canvas(1, 0).bounding_box()
    middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    touch = page.context.new_cdp_session(page.page)

    def fingers(kind, apart):
        points = [{"x": middle["x"] + side * apart / 2, "y": middle["y"], "id": side + 1} for side in (-1, 1)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points if apart else []})

    fingers("touchStart", 40)
    for apart in (50, 60, 70, 80):
        fingers("touchMove", apart)
    fingers("touchEnd", 0)
    page.settle()
    zoomed = look(page, 0)
    assert len(set(zoomed)) == 1
    assert zoomed[0][1] == pytest.approx(2 * start[1], rel=0.05)
    assert page.page.evaluate("window.visualViewport.scale") == 1  # the picture's zoom, not the page's
    page.cell(-1, 0).get_by_role("button", name="whole").click()
    page.settle()
    assert look(page, 0)[0] == start
