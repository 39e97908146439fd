"""The report's page in a real browser: tables sort, texts are texts, phones and many photos fit."""

import json
import re
from html.parser import HTMLParser

import pytest

from attnhook.pages.documents import report_html
from tests.comparison.contents import MODELS, NASTY, QUOTES, content, find

DASH, MINUS = "\u2013", "\u2212"
PHONE = {"viewport": {"width": 375, "height": 720}, "has_touch": True}


def test_cells_are_rounded_and_their_titles_whole(report, shown):
    page = report(shown)
    assert page.column(0, 1) == ["0.62 ±\xa00.03", "0.00 ±\xa00.10", DASH, "0.30 ±\xa00.02"]
    assert page.column(0, 2) == [f"10.500 (9.250{DASH}11.125)", "9.000", DASH, f"{MINUS}2.250"]
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

    for place, up in (
        (3, ["6", "12", "24", "100"]),
        (2, [f"{MINUS}2.250", "9.000", f"10.500 (9.250{DASH}11.125)", DASH]),
    ):
        sort(place)
        assert heads.nth(place).get_attribute("aria-sort") == "ascending"
        assert page.column(0, place) == up
        sort(place)
        assert heads.nth(place).get_attribute("aria-sort") == "descending"
        known = [text for text in up if text != DASH]
        assert page.column(0, place) == known[::-1] + [DASH] * (4 - len(known))
    sort(2)
    assert page.page.locator("#table-0 [aria-sort]").count() == 0
    assert page.column(0, 3) == own
    sort(4)
    assert page.column(0, 4) == [QUOTES, "class token", "mean", DASH]


def test_notes_and_failures(report, shown):
    page = report(shown)
    notes = page.page.locator("#notes li")
    assert [text.split(".")[0].split("\n")[-1] for text in notes.all_inner_texts()] == ["Warning", "Passed", "Note"]
    assert page.page.locator("#failures-title").inner_text() == "2 failures"
    failed = page.page.locator("#failures li").all_inner_texts()
    assert f"{MODELS[2]}, photo astronaut.jpg" in failed[0]
    assert failed[1].startswith("broken_model\n")
    assert "in line 2 <b>of</b> it" in failed[1]
    page.canvas(2, 1)
    assert page.cell(2, 1).locator(".none").inner_text().startswith("no map")
    assert "raw: expected finite values" in page.cell(2, 1).inner_text()
    assert "raw: no such weights" in page.cell(3, 0).inner_text()
    page.choose("view", "1")
    assert "norms: expected finite values" in page.cell(2, 1).inner_text()
    page.choose("view", "0")
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
    shown["reasons"] = [{**reason, "text": NASTY} for reason in shown["reasons"]]
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
        assert box["x"] >= 0
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


# --- paper --------------------------------------------------------------------------------------------------------------------


def wide_table(shown, columns=16):
    """A table that no sheet of paper holds as it stands on the screen."""
    names = [f"a rather long name of column {i}" for i in range(columns)]
    heads = [{"key": name, "label": name, "help": "", "digits": 3} for name in names]
    rows = [{name: {"value": i / 7, "low": 0.0, "high": 1.0} for i, name in enumerate(names)}]
    return {"id": "wide", "title": "Wide", "note": "", "columns": heads, "rows": rows}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_has_all_maps_and_whole_tables(report, shown, scheme):
    small = {"width": 1280, "height": 200}  # the maps come first: a low window shows a few of them
    page = report({**shown, "tables": [*shown["tables"], wide_table(shown)]}, color_scheme=scheme, viewport=small)
    drawn, size = page.page.locator("canvas[data-drawn]"), {"width": 720, "height": 900}
    page.settle()
    before = drawn.count()
    page.page.emulate_media(media="print")
    page.page.set_viewport_size(size)
    page.page.wait_for_function(
        "() => { dispatchEvent(new Event('beforeprint')); return !document.querySelector('#matrix canvas:not([data-drawn])'); }"
    )
    for _ in range(3):  # what is out of view stays, too
        page.page.mouse.wheel(0, 2000)
        page.settle()
    assert drawn.count() == page.page.locator("#matrix canvas").count() == 10
    sizes = page.page.evaluate("[...document.querySelectorAll('#matrix canvas')].map((one) => one.width)")
    assert min(sizes) > 100
    right = "(all) => Math.max(...all.map((one) => one.getBoundingClientRect().right))"
    assert page.page.locator(".table th, .table td, #matrix th, #matrix td").evaluate_all(right) <= size["width"]
    assert page.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 31, 35)"
    page.page.emulate_media(media="screen")
    page.page.set_viewport_size(small)
    page.page.evaluate("() => { scrollTo(0, 0); dispatchEvent(new Event('afterprint')); }")
    page.page.wait_for_function(
        "(count) => document.querySelectorAll('canvas[data-drawn]').length === count", arg=before
    )
    assert before < 10


def test_printing_waits_for_nothing(report, shown):
    page = report(many(shown, photos=30))
    loaded = """() => {
        dispatchEvent(new Event("beforeprint"));
        const whole = !document.querySelector("#matrix canvas:not([data-drawn])");
        dispatchEvent(new Event("afterprint"));
        return whole;
    }"""
    page.page.wait_for_function(loaded)
    count = "document.querySelectorAll('canvas[data-drawn]').length"
    page.page.evaluate(f"addEventListener('beforeprint', () => {{ document.title = {count}; }})")
    page.page.pdf()
    assert page.page.title() == str(30 * 11)
    page.settle()
    assert page.page.evaluate(count) < 200
