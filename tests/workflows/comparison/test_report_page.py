"""The report in a real browser: its pictures and values are Python's, its tables sort, its texts are texts."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook import ImageGeometry
from attnhook.imaging.heatmaps import heatmap
from attnhook.imaging.overlays import common_range, overlay, value_range
from attnhook.workflows.comparison.pages import report_html
from tests.workflows.comparison.contents import MODELS, NASTY, QUOTES, content, shown_photo, unpacked

PIXEL_TOLERANCE = 3  # as for the viewer: two JPEG decoders differ by up to 2, and each blend rounds once
COLOR_STEP = 4  # as for the viewer: a value on the border of two colours may fall to either side
PHONE = {"viewport": {"width": 375, "height": 720}, "has_touch": True}
WIDE = {"viewport": {"width": 1480, "height": 1000}}  # four models of 260 pixels side by side


class Page:
    """A report open in the browser, with what it complained about."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def settle(self):
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def choose(self, name, value):
        self.page.locator(f"#{name}").select_option(value)
        self.settle()

    def check(self, name, value):
        self.page.locator(f"#{name}").set_checked(value)
        self.settle()

    def slide(self, name, value):
        self.page.locator(f"#{name}").fill(str(value))
        self.settle()

    def cell(self, model, photo):
        """The place of a model's map; the photo itself is model -1."""
        return self.page.locator("#rows > tr").nth(photo).locator(":scope > *").nth(model + 1)

    def canvas(self, model, photo):
        canvas = self.cell(model, photo).locator("canvas")
        canvas.scroll_into_view_if_needed()
        self.cell(model, photo).locator("canvas[data-drawn]").wait_for(state="attached")
        return canvas

    def pixels(self, model, photo):
        code = (
            """(c) => [c.height, c.width, Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data)]"""
        )
        height, width, flat = self.canvas(model, photo).evaluate(code)
        return np.array(flat, np.uint8).reshape(height, width, 4)[..., :3].astype(int)

    def point(self, model, photo, y, x):
        """Move the pointer to a place relative to the picture."""
        box = self.canvas(model, photo).bounding_box()
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])

    def value(self, model, photo):
        return self.cell(model, photo).locator(".value")

    def column(self, table, place):
        rows = self.page.locator(f"#table-{table} tbody tr")
        return [row.locator(":scope > *").nth(place).inner_text() for row in rows.all()]


@pytest.fixture
def report(browser, tmp_path):
    opened = []

    def open_(shown, **options):
        path = tmp_path / "report.html"
        path.write_text(report_html(shown), encoding="utf-8")
        opened.append(Page(browser, path, **options))
        return opened[-1]

    yield open_
    for page in opened:
        page.context.close()
        assert page.complaints == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in page.requests)


@pytest.fixture(scope="module")
def shown():
    return content()


def find(shown, view, model, photo):
    return next(one for one in shown["maps"] if (one["view"], one["model"], one["photo"]) == (view, model, photo))


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
    return heatmap(unpacked(one), geometry(shown, one, size), mode=mode)


# --- pictures -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [0, 1, 2])
def test_pixels_are_those_of_python(report, shown, model):
    page = report(shown, **WIDE)
    picture = shown_photo(shown, 0)
    smooth, flat = (pixel_values(shown, 0, model, 0, mode=mode) for mode in ("bilinear", "nearest"))
    for opacity in (0, 60, 100):
        page.slide("alpha", opacity)
        difference = np.abs(
            page.pixels(model, 0) - np.asarray(overlay(picture, smooth, alpha=opacity / 100)).astype(int)
        )
        assert difference.max() <= PIXEL_TOLERANCE + (COLOR_STEP if opacity else 0)
        assert difference.mean() < 1
        unseen = smooth.isnan().numpy()
        assert not unseen.any() or difference[unseen].max() <= PIXEL_TOLERANCE
    hottest = np.unravel_index(int(np.nanargmax(smooth.numpy())), smooth.shape)
    assert np.abs(page.pixels(model, 0)[hottest] - [253, 231, 37]).max() <= 2  # viridis' top
    page.check("smooth", False)
    assert np.abs(page.pixels(model, 0) - np.asarray(overlay(picture, flat, alpha=1.0))).max() <= COLOR_STEP
    page.choose("scale", "uniform")
    page.choose("colormap", "magma")
    uniform = find(shown, 0, model, 0)["uniform"]
    expected = overlay(picture, flat, alpha=1.0, scale="uniform", uniform=uniform, colormap="magma")
    assert np.abs(page.pixels(model, 0) - np.asarray(expected)).max() <= COLOR_STEP
    page.choose("scale", "row")
    page.check("smooth", True)
    bounds = common_range([pixel_values(shown, 0, one, 0) for one in range(3)])
    expected = overlay(picture, smooth, alpha=1.0, scale=bounds, colormap="magma")
    assert np.abs(page.pixels(model, 0) - np.asarray(expected)).max() <= COLOR_STEP


@pytest.mark.parametrize("model", [0, 1])
def test_a_smaller_jpeg_lies_under_the_same_map(report, shown, model):
    """The range is that of the whole photo's pixels, the place of each value that of the original."""
    page = report(shown, **WIDE)
    page.slide("alpha", 100)
    found = page.pixels(model, 1)
    bounds = value_range(pixel_values(shown, 0, model, 1))
    values = pixel_values(shown, 0, model, 1, size=found.shape[:2])
    expected = np.asarray(overlay(Image.new("RGB", found.shape[1::-1]), values, scale=bounds, alpha=1.0)).astype(int)
    seen = ~values.isnan().numpy()
    assert found.shape[:2] == (260, 200)
    assert np.abs(found - expected)[seen].max() <= COLOR_STEP


def test_the_range_under_a_picture_is_that_of_its_pixels(report, shown):
    page = report(shown)
    for model in range(3):
        page.canvas(model, 0)
        texts = page.cell(model, 0).locator(".bar span").all_inner_texts()
        assert [float(texts[0]), float(texts[-1])] == pytest.approx(
            value_range(pixel_values(shown, 0, model, 0)), rel=6e-3
        )


def test_every_control_changes_the_pictures(report, shown):
    page = report(shown)
    before = page.pixels(0, 0)

    def changed():
        nonlocal before
        after = page.pixels(0, 0)
        assert np.abs(after - before).max() > 8
        before = after

    for name, value in (("scale", "row"), ("scale", "uniform"), ("top", "32"), ("colormap", "cividis")):
        page.choose(name, value)
        changed()
    page.slide("alpha", 90)
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
    box, canvas = page.cell(1, 0).locator(".frame").bounding_box(), page.canvas(1, 0).bounding_box()
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
                times = float(re.fullmatch(r"\S+ · (\S+) × 1/N", written)[1])
                assert times == pytest.approx(float(values[row, column]) / one["uniform"], rel=6e-3, abs=1e-2)
    assert page.value(0, 1).inner_text() == ""  # the other photo
    page.page.mouse.move(2, 2)
    assert page.value(0, 0).inner_text() == ""


def look(page, photo):
    """Where the frame lies: it moves and grows with what is shown."""
    boxes = [page.cell(model, photo).locator(".frame").bounding_box() for model in range(3)]
    canvases = [page.canvas(model, photo).bounding_box() for model in range(3)]
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
    assert float(page.value(0, 0).get_attribute("data-value")) == pytest.approx(before, rel=0.02)
    assert np.abs(page.pixels(1, 0) - sharper).max() > 8
    page.canvas(2, 0).dblclick()
    page.settle()
    assert look(page, 0) == [start] * 3


def test_a_zoomed_picture_is_that_part_of_pythons(report, shown):
    page = report(shown, **WIDE)
    page.slide("alpha", 100)
    for _ in range(2):
        page.cell(-1, 0).get_by_role("button", name="zoom in").click()
    page.settle()
    part, height, width = 1 / 1.5**2, 174, 260
    start = (1 - part) / 2
    one = find(shown, 0, 1, 0)
    whole = geometry(shown, one)
    scale = tuple(s * part for s in whole.scale)
    offset = tuple(o + s * start * n for o, s, n in zip(whole.offset, whole.scale, (height, width), strict=True))
    values = heatmap(unpacked(one), ImageGeometry((height, width), whole.input_size, scale, offset, whole.valid))
    bounds = value_range(pixel_values(shown, 0, 1, 0))
    expected = overlay(Image.new("RGB", (width, height)), values, scale=bounds, alpha=1.0)
    assert np.abs(page.pixels(1, 0) - np.asarray(expected)).max() <= COLOR_STEP


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
    assert "1.5 ×" in page.cell(-1, 0).inner_text()
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


# --- tables and texts ---------------------------------------------------------------------------------------------------------


def test_cells_are_rounded_and_their_titles_whole(report, shown):
    page = report(shown)
    assert page.column(0, 1) == ["0.62 ±\xa00.03", "0.00 ±\xa00.10", "–", "0.30 ±\xa00.02"]
    assert page.column(0, 2) == ["10.500 (9.250–11.125)", "9.000", "–", "−2.250"]
    first = page.page.locator("#table-0 tbody tr").first.locator("td")
    assert first.nth(0).get_attribute("title") == "0.61849 ± 0.0312, n = 50"
    assert first.nth(1).get_attribute("title") == "10.5, from 9.25 to 11.125, n = 50"
    assert page.page.locator("#table-0 thead button").nth(1).get_attribute("title").startswith("Overlap")
    page.page.locator("#table-0 summary").click()
    assert "Overlap with the object" in page.page.locator("#table-0 dl").inner_text()


@pytest.mark.parametrize("way", ["mouse", "keyboard"])
def test_tables_sort(report, shown, way):
    page = report(shown)
    heads = page.page.locator("#table-0 thead th")
    own = page.column(0, 3)

    def sort(place):
        button = heads.nth(place).locator("button")
        if way == "mouse":
            button.click()
        else:
            button.focus()
            page.page.keyboard.press("Enter")

    for place, up in ((3, ["6", "12", "24", "100"]), (2, ["−2.250", "9.000", "10.500 (9.250–11.125)", "–"])):
        sort(place)
        assert heads.nth(place).get_attribute("aria-sort") == "ascending"
        assert page.column(0, place) == up
        sort(place)
        assert heads.nth(place).get_attribute("aria-sort") == "descending"
        known = [text for text in up if text != "–"]
        assert page.column(0, place) == known[::-1] + ["–"] * (4 - len(known))
    sort(2)
    assert page.page.locator("#table-0 [aria-sort]").count() == 0
    assert page.column(0, 3) == own
    sort(4)
    assert page.column(0, 4) == [QUOTES, "class token", "mean", "–"]


def test_notes_and_failures(report, shown):
    page = report(shown)
    notes = page.page.locator("#notes li")
    assert [text.split(".")[0].split("\n")[-1] for text in notes.all_inner_texts()] == ["Warning", "Passed", "Note"]
    assert page.page.locator("#failures-title").inner_text() == "2 failures"
    failed = page.page.locator("#failures li").all_inner_texts()
    assert f"{MODELS[2]}, photo astronaut.jpg" in failed[0]
    assert "broken_model, every photo" in failed[1]
    assert "in line 2 <b>of</b> it" in failed[1]
    page.canvas(2, 1)
    assert page.cell(2, 1).locator(".none").inner_text().startswith("no map")
    assert "expected finite values" in page.cell(2, 1).inner_text()
    assert "no such weights" in page.cell(3, 0).inner_text()
    assert not page.cell(3, 0).locator(".frame").is_visible()
    quiet = report({**shown, "notes": [], "failures": [], "photos": [], "maps": []})
    for name in ("notes", "failures", "maps"):
        assert not quiet.page.locator(f"#{name}").is_visible()


def nasty():
    shown = content(names=(NASTY, QUOTES), models=(NASTY, QUOTES, "{{script}}"), title=f"{QUOTES} {NASTY}")
    shown["notes"][0]["text"] = shown["photos"][0]["label"] = shown["tables"][0]["note"] = QUOTES
    shown["tables"][0]["columns"][1] |= {"label": NASTY, "help": QUOTES}
    shown["views"] = [{**view, "label": NASTY} for view in shown["views"]]
    shown["failures"][0]["error"] = NASTY
    return shown


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def test_nothing_in_a_text_is_markup(report, shown):
    pages = [report_html(nasty()), report_html(shown)]
    parsers = [Elements(), Elements()]
    for parser, text in zip(parsers, pages, strict=True):
        parser.feed(text)
    assert parsers[0].tags == parsers[1].tags
    page = report(nasty())
    assert page.page.locator("h1").inner_text() == f"{QUOTES} {NASTY}"
    assert page.page.title() == f"{QUOTES} {NASTY}"
    assert page.page.locator("#names th").all_inner_texts()[1:] == [NASTY, QUOTES, "{{script}}", "broken_model"]
    assert page.cell(-1, 0).locator(".name").inner_text() == NASTY
    page.canvas(2, 1)
    assert NASTY in page.cell(2, 1).inner_text()
    assert page.page.locator("img, script[src], link, b[onclick]").count() == 0


def test_the_file_knows_its_size(report, shown):
    text = report_html(shown)
    header = json.loads(re.search(r'id="header">(.*?)</script>', text, flags=re.DOTALL)[1])
    assert int(header["bytes"]) == len(text.encode())
    page = report(shown)
    page.page.locator("summary", has_text="About this file").click()
    about = page.page.locator("#about").inner_text()
    assert f"{round(len(text) / 1e3)} KB" in about
    assert "attnhook 0.1.0" in about
    assert "4 models, 2 photos, 2 views, 10 maps" in about


def test_what_json_does_not_have_is_refused(shown):
    with pytest.raises(ValueError, match="JSON"):
        report_html({**shown, "photos": [{**shown["photos"][0], "shared": float("nan")}]})


# --- screens ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(report, scheme):
    page = report(nasty(), **PHONE, color_scheme=scheme)
    page.canvas(1, 1)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 375
    for model in (-1, 0, 1):
        box = page.canvas(model, 0).bounding_box()
        assert 0 <= box["x"]
        assert box["x"] + box["width"] <= 375
        assert box["width"] > 150
    page.canvas(1, 0).tap()
    assert page.value(0, 0).get_attribute("data-value")
    assert not page.page.locator("#scale").is_visible()
    page.page.locator("#controls > summary").click()
    assert page.page.locator("#scale").is_visible()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 375
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")


def test_a_wide_table_scrolls_in_its_own_box(report, shown):
    page = report(shown, **PHONE)
    scroll = page.page.locator("#table-0 .scroll")
    first = scroll.locator("tbody th").first
    before = first.bounding_box()["x"]
    scroll.evaluate("(box) => { box.scrollLeft = 200; }")
    assert scroll.evaluate("(box) => box.scrollLeft") == 200
    assert first.bounding_box()["x"] == before
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 375


def many(shown, models=10, photos=100):
    """As many models and photos as anyone compares, of the small ones' maps."""
    one = [find(shown, 0, 0, 0), find(shown, 0, 0, 1)]
    maps = [{**one[p % 2], "model": m, "photo": p} for m in range(models) for p in range(photos)]
    entries = [{**shown["photos"][p % 2], "name": f"{p}.jpg"} for p in range(photos)]
    return {**shown, "models": [{"name": f"model {m}"} for m in range(models)], "photos": entries, "maps": maps}


def test_many_maps_are_drawn_as_they_come_into_view(report, shown):
    page = report(many(shown))
    page.canvas(0, 0)
    page.settle()
    assert page.page.locator("canvas[data-drawn]").count() < 200
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 1280
    box = page.page.locator("#matrix")
    page.canvas(9, 60)
    photo = page.canvas(-1, 60).bounding_box()
    box.evaluate("(box) => { box.scrollLeft = 300; }")
    assert page.canvas(-1, 60).bounding_box()["x"] == photo["x"]
    assert page.page.locator("canvas[data-drawn]").count() < 200


def test_torch_maps_and_the_file_agree(shown):
    """The maker's own check: what the page reads is the map to half a step of its range."""
    one = find(shown, 0, 2, 0)
    values = unpacked(one)
    assert np.isnan(values).sum() == 2
    assert torch.as_tensor(values).nan_to_num(one["low"]).min() >= one["low"]
