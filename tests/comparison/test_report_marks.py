"""What the report marks: objects' outlines, maps' peaks, scores as dots, and tables that go on beyond their box."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from attnhook import compare
from attnhook.comparison import reports
from tests.comparison.contents import MODELS, find
from tests.comparison.test_report_page import DASH, MINUS, PHONE
from tests.comparison.zoo import disc, hf_dinov2, photo, timm_vit

# --- from maps and masks to the page's data -------------------------------------------------------------------------------------


def edges_of(outline):
    """Every unit edge that the path draws."""
    found = set()
    for x, y, way, length in re.findall(r"M(\d+) (\d+)([hv])(\d+)", outline["path"]):
        for step in range(int(length)):
            at = (int(y), int(x) + step) if way == "h" else (int(y) + step, int(x))
            assert (at, way) not in found
            found.add((at, way))
    return found


def test_outlines_are_the_edges_of_the_mask() -> None:
    """Against one pixel at a time."""
    mask = np.zeros((90, 120), np.uint8)
    mask[20:50, 30:80] = mask[60:, 100:] = 255  # the second reaches the photo's corner, where there is no edge
    mask[30:35, 40:45] = 0
    mask[10:20, 30:80] = 128
    found = compare(timm_vit(), [photo(), photo()], masks=[mask, None], cache=None, progress=False)
    (first, second), _ = reports._photos(found)
    assert second["outline"] is None
    assert first["outline"]["size"] == [90, 120]
    expected = {
        ((y, x), "h") for y in range(1, 90) for x in range(120) if (mask[y, x] == 255) != (mask[y - 1, x] == 255)
    }
    expected |= {
        ((y, x), "v") for y in range(90) for x in range(1, 120) if (mask[y, x] == 255) != (mask[y, x - 1] == 255)
    }
    assert edges_of(first["outline"]) == expected
    large = compare(timm_vit(), photo(1800, 2400), masks=[disc(1800, 2400)], cache=None, progress=False)
    assert reports._photos(large)[0][0]["outline"]["size"] == [240, 320]


def test_peaks_are_the_centres_of_the_highest_patches() -> None:
    found = compare([timm_vit(), hf_dinov2(size=70)], [photo(), photo(130, 80)], cache=None, progress=False)
    for one in reports._maps(found):
        measurement = found.measurements[one["model"], one["photo"]]
        values, geometry = measurement.maps["raw_attention"].values, measurement.geometry
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        patch = geometry.input_size[0] / values.shape[0]
        expected = [
            ((place + 0.5) * patch - geometry.offset[axis]) / geometry.scale[axis]
            for axis, place in enumerate((row, column))
        ]
        assert one["peak"] == pytest.approx(expected)
        height, width = found.photos[one["photo"]].size
        assert 0 < one["peak"][0] < height
        assert 0 < one["peak"][1] < width
    flat = measurement.maps["raw_attention"].like(torch.ones_like(values))
    assert reports._peak(flat, geometry) is None


def test_pictures_are_jpegs_of_limited_size(tmp_path) -> None:
    found = compare(timm_vit(), photo(900, 2400), cache=None, statistics=False, progress=False)
    page = found.save(tmp_path)
    (overlay,) = (tmp_path / "overlays").iterdir()
    with Image.open(overlay) as picture:
        assert (picture.format, picture.size) == ("JPEG", (1024, 384))
    assert page.stat().st_size < 1e6


def test_a_report_of_twelve_photos_is_small(tmp_path) -> None:
    """Three models, two methods: every file together."""
    scenes = [Image.fromarray(one()).convert("RGB") for one in (data.chelsea, data.coffee, data.astronaut, data.rocket)]
    photos = [scene.resize((640, 480)).rotate(turn) for scene in scenes for turn in (0, 7, 180)]
    models = [timm_vit("a"), timm_vit("b", depth=2), hf_dinov2()]
    asked = {"methods": ["raw_attention", "rollout"], "masks": [disc(480, 640)] * 12, "statistics": False}
    compare(models, photos, cache=None, progress=False, **asked).save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 12 * 3 * 2 + 2 + 4
    assert sum(path.stat().st_size for path in files) < 15e6


# --- on the page ----------------------------------------------------------------------------------------------------------------


def place(page, locator, model, photo):
    """Where something lies on a picture: top, left, bottom, right, relative to it."""
    picture = page.canvas(model, photo).bounding_box()
    box = page.cell(model, photo).locator(locator).bounding_box()
    top, left = (box["y"] - picture["y"]) / picture["height"], (box["x"] - picture["x"]) / picture["width"]
    return top, left, top + box["height"] / picture["height"], left + box["width"] / picture["width"]


def test_outlines_and_peaks_lie_in_place_and_zoom_with_the_photo(report, shown) -> None:
    page = report(shown, viewport={"width": 1480, "height": 1000})
    bound = 4 / 174  # half of a stroke
    for view in (0, 1):
        page.choose("view", str(view))
        for model in (-1, 0, 1, 2):
            page.canvas(model, 0)
        peak = find(shown, view, 1, 0)["peak"]
        at = place(page, ".peak", 1, 0)
        middle = [(at[0] + at[2]) / 2, (at[1] + at[3]) / 2]
        assert middle == pytest.approx([peak[0] / 174, peak[1] / 260], abs=bound)
    line = ".outline .line"
    assert place(page, line, 1, 0) == pytest.approx((0.2, 0.25, 0.8, 0.75), abs=bound)
    assert place(page, line, -1, 0) == pytest.approx((0.2, 0.25, 0.8, 0.75), abs=bound)
    page.cell(-1, 0).get_by_role("button", name="zoom in").click()
    page.settle()
    middle = [0.5 + 1.5 * (edge - 0.5) for edge in (0.2, 0.25, 0.8, 0.75)]
    assert place(page, line, 1, 0) == pytest.approx(middle, abs=1.5 * bound)


def test_outlines_and_peaks_can_be_switched_off(report, shown) -> None:
    page = report(shown)
    page.canvas(0, 0)
    cell = page.cell(0, 0)
    assert not page.cell(-1, 0).locator(".peak").is_visible()
    assert not page.cell(0, 1).locator(".outline").is_visible()  # no mask
    for name in ("outline", "peak"):
        assert cell.locator(f".{name}").is_visible()
        page.check(name, False)
        assert not cell.locator(f".{name}").is_visible()
    bare = report({**shown, "photos": [{**one, "outline": None} for one in shown["photos"]]})
    assert not bare.page.locator("#outline").is_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_dots_stand_at_their_values(report, shown, width) -> None:
    page = report(shown, viewport={"width": width, "height": 900})
    strips = page.page.locator(".strip")
    assert strips.locator("b").all_inner_texts() == ["AUROC", "energy"]
    for row, expected in enumerate((0.2, 0.3, 0.4)):
        line = strips.first.locator(".strip-row").nth(row)
        track, dot = line.locator("> svg").bounding_box(), line.locator(".mark.model").bounding_box()
        at = (dot["x"] + dot["width"] / 2 - track["x"]) / track["width"]
        assert at == pytest.approx(expected, abs=0.01)
        span = line.locator(".range.model").bounding_box()
        assert span["width"] / track["width"] == pytest.approx(0.2, abs=0.01)
        prior = line.locator(".guide.centre_prior").bounding_box()
        assert (prior["x"] + prior["width"] / 2 - track["x"]) / track["width"] == pytest.approx(0.65, abs=0.01)
    first = strips.first.locator(".strip-row").first
    assert first.inner_text().split("\n") == [MODELS[0], f"0.20 (0.10{DASH}0.30)"]
    label = first.locator("> svg").get_attribute("aria-label")
    assert label == f"AUROC, {MODELS[0]}: model 0.20 (0.10{DASH}0.30), n = 12; random map 0.30 (0.28{DASH}0.32), n = 12"
    assert page.page.locator(".marks li").all_inner_texts() == [
        "model: the model's own map",
        "random map: random values",
        "centre prior: a Gaussian in the middle",
    ]
    assert strips.first.locator(".axis text").all_text_contents() == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    page.choose("strip-view", "1")
    assert strips.locator("b").all_inner_texts() == ["Spearman"]
    assert strips.locator(".strip-value").all_inner_texts() == [f"{MINUS}0.25"]
    assert strips.locator(".range").count() == 0


def test_a_table_says_that_it_goes_on(report, shown) -> None:
    page = report(shown, **PHONE)
    table, hint = page.page.locator("#table-0"), page.page.locator("#table-0 .hint")
    assert hint.is_visible()
    assert "more" in table.get_attribute("class").split()
    table.locator(".scroll").evaluate("(box) => { box.scrollLeft = 1e4; }")
    page.settle()
    assert {"less", "more"} & set(table.get_attribute("class").split()) == {"less"}
    wide = report(shown)
    assert not wide.page.locator("#table-1 .hint").is_visible()
    assert "more" not in wide.page.locator("#table-1").get_attribute("class").split()


def test_on_a_phone_rows_of_one_name_are_told_apart(report, shown) -> None:
    columns = [{"key": key, "label": key, "help": "", "digits": 2} for key in ("model", "map", "score")]
    rows = [{"model": "a", "map": kind, "score": 0.5} for kind in ("model", "random map")] + [
        {"map": "prior", "score": 0.1}
    ]
    table = {"id": "t", "title": "T", "note": "", "columns": columns, "rows": rows}
    for screen, expected in ((PHONE, ["a\nmodel", "a\nrandom map", f"{DASH}\nprior"]), ({}, ["a", "a", DASH])):
        page = report({**shown, "tables": [table]}, **screen)
        assert page.column(0, 0) == expected


def test_errors_and_intervals_can_be_read(report, shown) -> None:
    cells = ({"error": 0.0008}, {"error": 0.0}, {"low": -0.2, "high": 0.6}, {"low": 0.3, "high": 0.6})
    table = {**shown["tables"][0], "rows": [{"model": "a", "iou": {"value": 0.45, **cell}} for cell in cells]}
    page = report({**shown, "tables": [table]})
    expected = ["±\xa00.0008", "±\xa00.00", f"({MINUS}0.20 to 0.60)", f"(0.30{DASH}0.60)"]
    assert page.column(0, 1) == [f"0.45 {text}" for text in expected]


def test_pictures_come_first_then_scores_then_tables(report, shown) -> None:
    page = report(shown)
    tops = [
        page.page.locator(name).bounding_box()["y"] for name in ("#maps", "#scores", "#notes", "#failures", "#table-0")
    ]
    assert tops == sorted(tops)
    assert page.page.locator("#contents a").all_inner_texts()[:4] == ["Maps", "Scores", "1 warning", "2 failures"]
