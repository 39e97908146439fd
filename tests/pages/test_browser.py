"""The viewer in a real browser: what it shows is what the tensors say."""

import random
import re

import numpy as np
import pytest
import torch

from attnhook import raw_attention
from attnhook.imaging.drawing import overlay
from attnhook.imaging.looks import UNIFORM_TOP
from attnhook.imaging.overlays import value_range
from attnhook.results.scenes import pack_scene
from tests.pages.scenes import MODELS, photo_of, scene
from tests.pages.test_pages import NASTY

PIXEL_TOLERANCE = 3  # two JPEG decoders differ by up to 2, and each blend rounds once


@pytest.fixture(scope="module")
def scenes():
    return {kind: scene(kind) for kind in MODELS}


def ten_patches(grid, seed=0):
    cells = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    return random.Random(seed).sample(cells, 10)  # noqa: S311 (places to look, no secrets)


def matrix(one, block):
    return one.maps[block].weights()[0].double()


def patch_of(one, row, patch):
    return float(one.maps[-1].layout.patches(row)[patch])


@pytest.mark.parametrize("kind", MODELS)
def test_values_under_the_pointer_are_the_tensors(viewer, scenes, kind):
    one = scenes[kind]
    page = viewer(one)
    for block, head in ((1, -1), (1, 2), (0, 3)):
        page.slide("block", block)
        page.slide("head", head)
        heads = matrix(one, block)[:, 0]
        row = heads.mean(0) if head < 0 else heads[head]
        for patch in ten_patches(one.maps.layout.grid, seed=block + head):
            value, bound, written, shown = page.value(one, patch)
            truth = patch_of(one, row, patch)
            assert abs(value - truth) <= bound * (1 + 1e-5) + 1e-9
            assert abs(written - truth) <= shown
            assert bound < 2e-5  # 16 bits


@pytest.mark.parametrize("kind", MODELS)
def test_a_clicked_patch_shows_where_it_looks(viewer, scenes, kind):
    one = scenes[kind]
    page = viewer(one)
    page.slide("head", 1)
    patches = ten_patches(one.maps.layout.grid, seed=3)
    for query, target in zip(patches, patches[::-1], strict=True):
        page.click(one, query)
        row = matrix(one, -1)[1, one.maps.layout.token_of(query)]
        value, bound, written, shown = page.value(one, target)
        truth = patch_of(one, row, target)
        assert abs(value - truth) <= bound * (1 + 1e-5) + 1e-9
        assert abs(written - truth) <= shown
        assert f"Patch at row {query[0]}, column {query[1]}" in page.text("query-text")


def test_registers_and_the_class_token_can_be_asked(viewer, scenes):
    one = scenes["registers"]
    page = viewer(one)
    for token, label in ((2, "register 2"), (4, "register 4")):
        page.choose("query", f"token {token}")
        assert label.capitalize() in page.text("query-text")
        row = matrix(one, -1)[:, token].mean(0)
        for patch in ten_patches((6, 6))[:3]:
            value, bound, *_ = page.value(one, patch)
            assert abs(value - patch_of(one, row, patch)) <= bound * (1 + 1e-5) + 1e-9
    assert "4 registers" in page.text("masses")
    page.choose("query", "row 0")
    assert "Class token" in page.text("query-text")


def rolled(one, upto):
    """Abnar and Zuidema (2020), slowly, in float64."""
    product = torch.eye(one.maps[0].shape[-1], dtype=torch.float64)
    for block in range(upto + 1):
        mixed = 0.5 * matrix(one, block).mean(0) + 0.5 * torch.eye(len(product), dtype=torch.float64)
        product = torch.stack([sum(mixed[i, j] * product[j] for j in range(len(product))) for i in range(len(product))])
    return product


@pytest.mark.parametrize("block", [0, 1])
def test_rollout(viewer, scenes, block):
    one = scenes["registers"]
    page = viewer(one, matrices=None)
    page.slide("block", block)
    page.source("rollout")
    truth = rolled(one, block)
    for patch in ten_patches((6, 6))[:4]:
        value, bound, *_ = page.value(one, patch)
        assert abs(value - patch_of(one, truth[0], patch)) <= bound + 1e-6  # the product itself is float32
    page.click(one, (2, 3))
    row = truth[one.maps.layout.token_of((2, 3))]
    value, bound, *_ = page.value(one, (2, 3))
    assert abs(value - patch_of(one, row, (2, 3))) <= bound + 1e-6
    assert page.page.locator("#head").is_disabled()


def expected_pixels(one, values, **options):
    header, _ = pack_scene(one, matrices=(), matrix_heads="auto", longest=1280)
    photo, unseen = photo_of(header), values.isnan().numpy()
    drawn = np.asarray(overlay(photo, values, fade=0, **options)).astype(int)
    drawn[unseen] = np.rint(np.asarray(photo)[unseen] * 0.6 + 222 * 0.4)  # Python's frame is drawn as a mark here
    return drawn


def readout_heatmap(one, mode="bilinear"):
    """Of the class token's row in the last block, where `raw_attention` places it."""
    patches = one.maps.layout.patches(matrix(one, -1)[:, 0].mean(0).float())
    return raw_attention(one.maps)[0].like(patches).heatmap(one.geometry, mode=mode)


@pytest.mark.parametrize("kind", MODELS)
def test_pixels_are_those_of_python(viewer, scenes, kind):
    one = scenes[kind]
    page = viewer(one)
    smooth, bare = (readout_heatmap(one, mode) for mode in ("bilinear", "nearest"))
    unseen = smooth.isnan().numpy()
    for alpha in (0, 60, 100):
        page.slide("alpha", alpha)
        expected = expected_pixels(one, smooth, alpha=alpha / 100)
        difference = np.abs(page.pixels() - expected)
        steps = 4 if alpha else 0  # a value on the border of two colours may fall to either side
        assert difference.max() <= PIXEL_TOLERANCE + steps
        assert difference.mean() < 1
        assert not unseen.any() or difference[unseen].max() <= PIXEL_TOLERANCE
    hottest = np.unravel_index(int(np.nanargmax(smooth.numpy())), smooth.shape)
    assert np.abs(page.pixels()[hottest] - [240, 249, 33]).max() <= 2  # plasma's top
    page.page.locator("#smooth").uncheck()
    page.settle()
    assert np.abs(page.pixels() - expected_pixels(one, bare, alpha=1.0)).max() <= 5
    page.choose("scale", "minmax")
    assert np.abs(page.pixels() - expected_pixels(one, bare, alpha=1.0, scale="minmax")).max() <= 5
    page.page.locator("#weighted").uncheck()
    page.settle()
    film = expected_pixels(one, bare, alpha=1.0, scale="minmax", weighted=False)
    assert np.abs(page.pixels() - film).max() <= 5
    page.choose("scale", "uniform")
    page.choose("colormap", "magma")
    page.slide("top", np.log2(UNIFORM_TOP))
    uniform = 1 / one.maps[-1].shape[-1]
    look = {"scale": "uniform", "uniform": uniform, "colormap": "magma", "weighted": False}
    expected = expected_pixels(one, bare, alpha=1.0, **look)
    assert np.abs(page.pixels() - expected).max() <= 5


@pytest.mark.parametrize("kind", MODELS)
def test_a_robust_scale_is_that_of_python(viewer, scenes, kind):
    one = scenes[kind]
    page = viewer(one)
    page.choose("scale", "robust")
    page.slide("alpha", 100)
    values = readout_heatmap(one)
    expected = expected_pixels(one, values, alpha=1.0, scale="robust")
    assert np.abs(page.pixels() - expected).max() <= 5
    low, high = value_range(values, "robust")
    for name, sign, end in (("low", "\u2264", low), ("high", "\u2265", high)):
        assert page.text(name)[:2] == f"{sign} "
        assert float(page.text(name)[2:]) == pytest.approx(end, rel=6e-3)
    assert "1st to 99th percentile: not comparable" in page.text("bar-text")
    page.page.locator("#smooth").uncheck()
    page.settle()
    bare = readout_heatmap(one, "nearest")
    assert np.abs(page.pixels() - expected_pixels(one, bare, alpha=1.0, scale="robust")).max() <= 5


def test_every_control_changes_the_picture(viewer, scenes):
    page = viewer(scenes["square"], scene("wide", name="second.jpg"), matrices=None)
    before = page.pixels()
    seen = [page.text("query-text")]

    def changed(text=None):
        nonlocal before
        after = page.pixels()
        assert after.shape != before.shape or np.abs(after - before).max() > 8
        before = after
        if text:
            assert page.text("query-text") not in seen
            seen.append(page.text("query-text"))

    page.slide("block", 0)
    changed("block 1")
    page.slide("head", 2)
    changed("head 2")
    page.slide("alpha", 90)
    changed()
    page.choose("scale", "uniform")
    changed()
    page.slide("top", 1)
    changed()
    assert "2 \u00d7 1/N" in page.text("top-text")
    page.choose("colormap", "cividis")
    changed()
    page.page.locator("#smooth").uncheck()
    page.settle()
    changed()
    page.source("rollout")
    changed("rollout")
    page.choose("photo", "1")
    page.page.wait_for_function("() => !document.getElementById('stage').hasAttribute('aria-busy')")
    page.settle()
    changed()


def test_the_keyboard(viewer, scenes):
    one = scenes["square"]
    page = viewer(one, matrices=None)
    press = page.page.keyboard.press
    for key, name, text in (
        ("[", "block-text", "1 of 2"),
        ("]", "block-text", "2 of 2"),
        (".", "head-text", "0 of 3"),
        (",", "head-text", "mean"),
        ("+", "alpha-text", "95 %"),
        ("-", "alpha-text", "85 %"),
    ):
        press(key)
        page.settle()
        assert page.text(name) == text
    assert "1st to 99th percentile" in page.text("bar-text")
    press("u")
    page.settle()
    assert "this view's own range" in page.text("bar-text")
    press("u")
    page.settle()
    assert "times uniform attention" in page.text("bar-text")
    for name in ("rollout", "received", "raw"):
        press("r")
        page.settle()
        assert f"{name} attention" in page.text("query-text").replace("rollout up to here", "rollout attention")
    page.page.locator("#stage").focus()
    press("ArrowRight")
    press("ArrowDown")
    assert "row 4, column 4" in page.text("value")
    press("Enter")
    page.settle()
    assert "Patch at row 4, column 4" in page.text("query-text")
    press("Escape")
    page.settle()
    assert "Class token" in page.text("query-text")
    press("f")
    page.hover(one, (1, 2))
    page.settle()
    assert "Patch at row 1, column 2" in page.text("query-text")


def test_what_the_file_does_not_hold_is_said(viewer, scenes):
    one = scenes["square"]
    page = viewer(one, matrices=[-1])
    page.click(one, (1, 1))
    page.slide("block", 0)
    assert "only for block 2 of 2." in page.text("notice")
    assert page.page.locator("#save").is_disabled()
    header, _ = pack_scene(one, matrices=(), matrix_heads="auto", longest=1280)
    assert np.abs(page.pixels() - np.asarray(photo_of(header)).astype(int)).max() <= PIXEL_TOLERANCE
    page.page.keyboard.press("Escape")
    page.settle()
    assert page.text("notice") == ""

    page.slide("block", 1)
    page.source("rollout")
    page.click(one, (1, 1))
    assert "Rollout from a patch needs the matrices of all blocks up to this one" in page.text("notice")

    fused = viewer(one, matrix_heads="mean")
    fused.slide("head", 2)
    fused.click(one, (1, 1))
    assert "block 2 of 2, mean of 4 heads" in fused.text("query-text")
    assert "this file has only the mean over heads" in fused.text("module")
    assert fused.page.locator("#head").is_disabled()
    fused.page.keyboard.press("Escape")
    fused.settle()
    assert "block 2 of 2, head 2" in fused.text("query-text")

    rows = viewer(scene("square", rows="readout"))
    rows.click(one, (1, 1))
    assert "Class token" in rows.text("query-text")
    assert rows.page.locator('[name="source"][value="rollout"]').is_disabled()
    assert "rollout needs whole matrices" in rows.page.locator("#sources").get_attribute("title")


def test_beyond_the_crop(viewer, scenes):
    page = viewer(scenes["square"])
    page.page.locator("#canvas").hover(position={"x": 4, "y": 4})
    assert "did not see" in page.text("value")


def test_the_photo_asked_for_last_is_shown(viewer):
    """Whichever is unpacked first; one that cannot be leaves nothing busy."""
    page = viewer(*(scene("square", name=name) for name in ("first", "slow", "quick", "broken")))
    page.page.locator("details", has_text="About this file").locator("summary").click()
    page.page.evaluate("""() => {
        const decode = HTMLImageElement.prototype.decode, acts = [
            function () { return new Promise((go) => { window.go = go; }).then(() => decode.call(this)); },
            function () { return decode.call(this); },
            () => Promise.reject(new Error("no such photo")),
        ];
        HTMLImageElement.prototype.decode = function () { return acts.shift().call(this); };
    }""")
    page.choose("photo", "1")
    page.page.wait_for_function("() => window.go")
    assert page.page.locator("#stage").get_attribute("aria-busy") == "true"
    page.choose("photo", "2")
    page.page.wait_for_function("() => document.getElementById('about').innerText.includes('quick')")
    page.page.evaluate("() => window.go()")
    page.page.wait_for_timeout(200)
    assert "quick" in page.text("about")
    page.choose("photo", "3")
    page.page.wait_for_function("() => document.getElementById('notice').innerText.includes('no such photo')")
    assert page.page.locator("#stage").get_attribute("aria-busy") is None


def test_names_are_shown_as_text(viewer):
    label = "\"quoted\" 'label' </script><script>alert(2)</script>"
    page = viewer(scene("square", name=NASTY), scene("wide", name=label), model=NASTY)
    assert page.text("model") == NASTY
    assert page.page.locator("#photo option").all_inner_texts() == [NASTY, label]
    assert page.page.locator("img, script[src], link").count() == 0
    page.page.locator("details", has_text="About this file").locator("summary").click()
    assert NASTY in page.text("about")
    assert NASTY in page.page.title()


def test_the_file_says_its_size_and_what_it_holds(viewer, scenes, tmp_path):
    page = viewer(scenes["registers"])
    page.page.locator("details", has_text="About this file").locator("summary").click()
    said = page.text("about")
    size = (tmp_path / "view.html").stat().st_size
    assert f"{round(size / 1000)} KB in all" in said
    assert "cat.jpg, 160 \u00d7 96 pixels, as JPEG" in said
    assert "6 \u00d7 6 patches, class token, register 1, register 2, register 3, register 4" in said
    assert "class token of blocks 1 to 2 of 2, every head, 16 bits" in said
    assert "blocks 1 to 2 of 2, mean over heads; every head of block 2 of 2, 8 bits" in said


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(viewer, scenes, scheme):
    phone = {"viewport": {"width": 375, "height": 667}, "color_scheme": scheme, "has_touch": True}
    page = viewer(scenes["registers"], options=phone)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 375
    box = page.page.locator("#canvas").bounding_box()
    assert box["width"] > 250
    assert box["y"] + box["height"] < 667
    position = page.position(scenes["registers"], (2, 3))
    page.page.locator("#canvas").tap(position=position)
    page.settle()
    assert "Patch at row 2, column 3" in page.text("query-text")
    low = page.page.evaluate(
        """() => [...document.querySelectorAll("select, summary, button, .choice label, input[type=range]")]
            .filter((node) => node.offsetParent && node.getBoundingClientRect().height < 44).map((node) => node.outerHTML)"""
    )
    assert low == []
    page.page.locator("#back").tap()  # a phone has no Esc
    page.settle()
    assert "Class token" in page.text("query-text")
    assert page.page.locator("#back").is_hidden()
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
