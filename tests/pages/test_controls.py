"""What the viewer lets people do, in a real browser: ask any patch, received attention, mask, zoom, photos, pictures as files."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from attnhook import AttentionMaps, Readout, raw_attention, received_attention
from attnhook.options import Rows
from tests.pages.scenes import MODELS, merged_scene, scene, windowed_scene
from tests.pages.test_browser import matrix, patch_of, ten_patches

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
ELONGATED = {"panorama": (50, 400), "tower": (600, 45)}


def test_any_patch_can_be_asked_in_any_block(viewer):
    one = scene("registers", depth=3)
    page = viewer(one)
    for block in range(3):
        page.slide("block", block)
        for query, target in zip(ten_patches((6, 6), block)[:3], ten_patches((6, 6), block + 7)[:3], strict=True):
            page.click(one, query)
            truth = patch_of(one, matrix(one, block)[:, one.maps.layout.token_of(query)].mean(0), target)
            value, bound, *_ = page.value(one, target)
            assert abs(value - truth) <= bound * (1 + 1e-5) + 1e-9
            assert f"Patch at row {query[0]}, column {query[1]}, block {block + 1} of 3" in page.text("query-text")


@pytest.mark.parametrize("make", [lambda: scene("registers"), windowed_scene], ids=["registers", "windows"])
def test_received_attention_is_that_of_python(viewer, make):
    one = make()
    page = viewer(one)
    page.source("received")
    for block, captured in enumerate(one.maps):
        page.slide("block", block)
        for head, heads in ((-1, "mean"), (1, 1)):
            page.slide("head", head)
            expected = received_attention(one.maps, captured.name, heads=heads).values[0]
            for patch in ten_patches(expected.shape, seed=block)[:4]:
                value, bound, *_ = page.value(one, patch, block)
                assert abs(value - float(expected[patch])) <= bound * (1 + 1e-5) + 1e-7
                assert bound < 1e-5


def test_blocks_of_one_grid_may_lie_differently(viewer):
    """The border between keys that were merged, which is where it is in Python, in the first stage and in the last."""
    one = merged_scene()
    page = viewer(one)
    box, (width, height) = page.page.locator("#canvas").bounding_box(), one.image.size
    borders = []
    for number, block in enumerate(one.maps):
        page.slide("block", number)
        ys, xs = received_attention(one.maps, block.name)[0].edges(one.geometry)
        borders.append(float(ys[1]))
        for off, patch in ((-2, ("0", "0")), (2, ("1", "1"))):
            place = {"x": (xs[1] + off) * box["width"] / width, "y": (ys[1] + off) * box["height"] / height}
            page.page.locator("#canvas").hover(position=place)
            facts = page.page.locator("#value").evaluate("(node) => ({...node.dataset})")
            assert (facts["row"], facts["column"]) == patch
    assert max(borders) - min(borders) > 10


def test_a_windowed_model_begins_with_received_attention(viewer):
    one = windowed_scene()
    page = viewer(one)
    assert page.text("query-text") == "All queries, block 4 of 4, mean of 3 heads, received attention"
    for name, off in (("raw", True), ("rollout", True), ("received", False)):
        assert page.page.locator(f'[name="source"][value="{name}"]').is_disabled() == off
    before = page.pixels()
    page.click(one, (2, 3))  # marks the patch: windows have no row over the whole photo
    assert "patch at row 2, column 3" in page.text("value")
    assert (page.pixels() == before).all()
    page.press("[")
    page.press("[")
    assert "block 2 of 4" in page.text("query-text")
    assert np.abs(page.pixels() - before).max() > 8


def test_asking_a_patch_leaves_received_attention(viewer):
    one = scene("square")
    page = viewer(one)
    page.source("received")
    assert page.text("query-text") == "All queries, block 2 of 2, mean of 4 heads, received attention"
    page.click(one, (1, 2))
    assert page.text("query-text") == "Patch at row 1, column 2, block 2 of 2, mean of 4 heads, raw attention"


def test_a_model_without_a_readout(viewer):
    """Its patches can be asked, and back is received attention. A block whose keys are anywhere is refused, and says so."""
    one = scene("square", depth=3)
    first, *others = one.maps
    words = "two images in one sequence"
    odd = [replace(first, token_layout=words), *others]
    maps = AttentionMaps(odd, rows=Rows.ALL, readout=Readout(None, "it has no head"), input_size=one.maps.input_size)
    page = viewer(replace(one, maps=maps))
    assert page.text("query-text") == "All queries, block 3 of 3, mean of 4 heads, received attention"
    for back in (page.page.locator("#back").click, lambda: page.press("Escape")):
        page.click(one, (1, 2))
        assert "Patch at row 1, column 2, block 3 of 3, mean of 4 heads, raw" in page.text("query-text")
        assert page.text("back") == "Back to received attention"
        back()
        page.settle()
        assert "All queries" in page.text("query-text")
    page.slide("block", 0)
    notice = f"This file has no map of block 1 of 3: it is not known where its keys lie in the photo ({words})."
    assert page.text("notice") == notice
    page.slide("block", 1)
    page.source("raw")
    assert (
        page.text("notice") == "Block 2 of 3 has no row of the model's readout. Choose another map, or click a patch."
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("keep", [60, 25])
def test_a_mask_is_that_of_python(viewer, kind, keep):
    one = scene(kind)
    page = viewer(one)
    page.check("mask", True)
    page.slide("keep", keep)
    expected = raw_attention(one.maps)[0].overlay(one.image, one.geometry, style="mask", keep=keep / 100, fade=0)
    shown, light = page.pixels(), 0
    grid, box = one.maps.layout.grid, page.page.locator("#canvas").bounding_box()
    for patch in np.ndindex(grid):
        at = page.position(one, patch)
        x, y = int(at["x"] * one.image.width / box["width"]), int(at["y"] * one.image.height / box["height"])
        assert (
            np.abs(shown[y, x] - np.asarray(expected).astype(int)[y, x]).max() <= 12
        )  # the page has a JPEG of the photo
        light += np.abs(shown[y, x] - np.asarray(one.image).astype(int)[y, x]).max() <= 12
    assert 0 < light < np.prod(grid)
    assert f"the {light} of {np.prod(grid)} patches that hold {keep} %" in page.text("bar-text")
    assert page.page.locator("#scale").is_disabled()
    page.press("m")
    assert "percentile" in page.text("bar-text")


def test_the_picture_can_be_saved(viewer, tmp_path):
    one = scene("square", name="my cat, <2>.jpg")
    page = viewer(one)

    def saved(act):
        with page.page.expect_download() as download:
            act()
        download.value.save_as(tmp_path / "saved.png")
        with Image.open(tmp_path / "saved.png") as picture:
            assert picture.format == "PNG"
            return download.value.suggested_filename, np.asarray(picture.convert("RGB")).astype(int)

    name, picture = saved(page.page.locator("#save").click)
    assert name == "my-cat-2-block-2.png"
    assert (picture == page.pixels()).all()
    page.slide("head", 3)
    page.click(one, (2, 2))
    name, picture = saved(lambda: page.page.keyboard.press("d"))
    assert name == "my-cat-2-block-2-head-3-patch-2-2.png"
    changed = np.abs(picture - page.pixels()).max(axis=-1) > 0
    assert 0 < changed.mean() < 0.1  # the patch that was asked is marked


def test_photos_by_button_and_key(viewer):
    page = viewer(*(scene("square", name=f"{name}.jpg") for name in "abc"))
    page.page.locator("details", has_text="About this file").locator("summary").click()

    def arrived(name):
        page.page.wait_for_function("(name) => document.getElementById('about').innerText.includes(name)", arg=name)
        assert page.page.locator("#photo option:checked").inner_text() == name

    assert page.page.locator("#before").is_disabled()
    page.page.locator("#after").click()
    arrived("b.jpg")
    page.press("n")
    arrived("c.jpg")
    assert page.page.locator("#after").is_disabled()
    page.press("n")
    arrived("c.jpg")
    page.press("p")
    arrived("b.jpg")
    page.page.locator("#before").click()
    arrived("a.jpg")


def canvas_box(page):
    page.settle()
    return page.page.locator("#canvas").bounding_box()


def test_zoom_and_pan(viewer):
    one = scene("square")
    page = viewer(one)
    whole, stage = canvas_box(page), page.page.locator("#stage").bounding_box()
    assert whole["width"] == pytest.approx(stage["width"], abs=1)
    page.page.locator("#closer").click()
    assert page.text("zoom-text") == "150 %"
    assert canvas_box(page)["width"] == pytest.approx(1.5 * whole["width"], rel=0.01)
    page.press("z")
    assert page.text("zoom-text") == "225 %"
    page.press("Z")
    page.page.locator("#farther").click()
    assert canvas_box(page) == whole

    x, y = stage["x"] + 0.7 * stage["width"], stage["y"] + 0.4 * stage["height"]
    page.page.mouse.move(x, y)
    before = page.text("value")
    assert "patch at row" in before
    page.page.mouse.wheel(0, -400)
    zoomed = canvas_box(page)
    assert zoomed["width"] > 2 * whole["width"]
    page.page.mouse.move(x + 1, y)
    assert page.text("value") == before  # what is under the pointer stays there
    page.page.mouse.down()
    page.page.mouse.move(x - 80, y + 30, steps=4)
    page.page.mouse.up()
    moved = canvas_box(page)
    assert (moved["x"] - zoomed["x"], moved["y"] - zoomed["y"]) == (pytest.approx(-81, abs=1), pytest.approx(30, abs=1))
    assert "Class token" in page.text("query-text")  # a drag is not a click
    page.page.locator("#stage").focus()
    page.press("Shift+ArrowLeft")
    assert canvas_box(page)["x"] > moved["x"]
    for _ in range(12):
        page.press("ArrowRight")
    mark = page.page.locator("#marks .cursor").bounding_box()  # the cursor stays in view
    assert stage["x"] - 1 <= mark["x"] <= mark["x"] + mark["width"] <= stage["x"] + stage["width"] + 3
    page.press("0")
    assert canvas_box(page) == whole
    page.page.mouse.click(x, y)
    page.settle()
    assert before.split(":")[0] in page.text("query-text").lower()


def test_pinching(viewer):
    page = viewer(scene("square"), options=PHONE)
    whole = canvas_box(page)
    x, y = whole["x"] + whole["width"] / 2, whole["y"] + whole["height"] / 2
    fingers = page.context.new_cdp_session(page.page)

    def touch(kind, *apart):
        points = [{"x": x + way * half, "y": y, "id": number} for half in apart for number, way in enumerate((-1, 1))]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 20)
    for half in (25, 30, 35, 40):
        touch("touchMove", half)
    touch("touchEnd")
    assert canvas_box(page)["width"] == pytest.approx(2 * whole["width"], rel=0.05)
    assert page.page.evaluate("window.visualViewport.scale") == 1
    assert "Class token" in page.text("query-text")


@pytest.mark.parametrize("kind", ELONGATED)
@pytest.mark.parametrize("options", [{"viewport": {"width": 1280, "height": 800}}, PHONE], ids=["1280", "390"])
def test_elongated_photos_are_usable(viewer, kind, options):
    one = scene("square", photo_size=ELONGATED[kind])
    page = viewer(one, options=options)
    stage, picture = page.page.locator("#stage").bounding_box(), canvas_box(page)
    assert min(stage["width"], stage["height"]) > 180
    assert min(picture["width"], picture["height"]) == pytest.approx(min(stage["width"], stage["height"]), abs=2)
    seen = page.page.locator("#marks .seen").bounding_box()  # in the middle, where the model looked
    assert stage["x"] - 2 <= seen["x"] <= seen["x"] + seen["width"] <= stage["x"] + stage["width"] + 2
    assert stage["y"] - 2 <= seen["y"] <= seen["y"] + seen["height"] <= stage["y"] + stage["height"] + 2
    page.click(one, (2, 3))
    assert "Patch at row 2, column 3" in page.text("query-text")
    page.page.locator("#whole").click()
    picture = canvas_box(page)
    assert picture["width"] <= stage["width"] + 1
    assert picture["height"] <= stage["height"] + 1
    assert page.page.evaluate("document.documentElement.scrollWidth") <= options["viewport"]["width"]


def test_a_phone_speaks_of_taps(viewer):
    one = scene("square")
    page = viewer(one, options=PHONE)
    assert page.text("keys-short").startswith("Tap a patch")
    assert page.text("value") == "Tap a patch to read its value."
    shown = page.page.locator("body").inner_text()
    assert not {word for word in ("Click", "click", "Esc", "Keys", "pointer") if word in shown}
    page.page.locator("#canvas").tap(position=page.position(one, (2, 3)))
    page.settle()
    assert "patch at row 2, column 3" in page.text("value")
    assert viewer(one).text("keys-short").startswith("Click a patch")
