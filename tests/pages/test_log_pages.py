"""The page of a training log: what is on it, and in a browser that the slider shows the right picture of the right step."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from attnhook import DirectoryWriter
from attnhook.cli import main
from tests.open_pages import OpenPage
from tests.pages.test_pages import NASTY, header_of

STEPS = (0, 100, 250, 400)
TAGS = ("attention/overlay/0", "attention/overlay/1", "attention/heads/0", "ema/attention/overlay/0")


def color_of(tag: str, step: int) -> tuple[int, int, int]:
    return 40 + 50 * TAGS.index(tag), 60 * STEPS.index(step), 120


def entropy(step: int) -> float:
    return 4.0 - step / 100


def write_log(folder, *, steps=STEPS, tags=TAGS) -> DirectoryWriter:
    writer = DirectoryWriter(folder)
    for step in steps:
        blocks = {f"attention/blocks.{k}.attn/entropy": entropy(step) + k for k in (0, 1, 10, 2)}
        others = {"attention/blocks.2.attn/sink_mass": 0.1, "attention/blocks.2.attn/head3/entropy": 9.0}
        alarms = {"attention/alarms/dead_heads": float(step == 250), "attention/alarms/not_finite": 0.0}
        writer.scalars({"attention/entropy": entropy(step), **blocks, **others, **alarms}, step)
        writer.scalars({"live/attention/entropy": 1.5, "ema/attention/entropy": 2.5}, step)
        for tag in tags:
            writer.image(tag, Image.new("RGB", (64, 48), color_of(tag, step)), step)
    writer.text("attention/probe", f"3 images {NASTY}", 0)
    return writer


class LogPage(OpenPage):
    """A log open in the browser."""

    def color(self):
        """Of the picture that is shown, in the middle."""
        self.page.wait_for_function(
            "() => { const i = document.getElementById('picture'); return i.complete && i.naturalWidth; }"
        )
        code = """async () => { const image = document.getElementById("picture"); await image.decode();
            const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
            canvas.width = image.naturalWidth; canvas.height = image.naturalHeight; pen.drawImage(image, 0, 0);
            return [...pen.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data].slice(0, 3); }"""
        return np.array(self.page.evaluate(code))

    def shows(self, tag: str, step: int) -> bool:
        position = self.page.locator("#step-text").inner_text()
        return position.startswith(f"step {step} (") and np.abs(self.color() - color_of(tag, step)).max() <= 4

    def values(self, plot: int) -> dict[str, str]:
        lines = self.page.locator(".plot").nth(plot).locator("li").all_inner_texts()
        return dict(re.split(r"\s*\n\s*", line.strip()) for line in lines)


@pytest.fixture
def log_page(browser, tmp_path):
    opened = []

    def open_(writer, **options):
        writer.to_html(tmp_path / "log.html")
        opened.append(LogPage(browser, tmp_path / "log.html", **options))
        return opened[-1]

    yield open_
    for page in opened:
        page.context.close()
        assert page.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in page.requests)


def test_the_slider_shows_the_picture_of_its_step(log_page, tmp_path):
    page = log_page(write_log(tmp_path / "run"))
    assert page.shows("attention/overlay/0", 400)  # the last step first
    for at, step in enumerate(STEPS):
        page.slide("step", at)
        assert page.shows("attention/overlay/0", step)
        assert page.values(0) == {"all blocks": f"{entropy(step):.4g}"}
        assert list(page.values(1)) == [f"blocks.{k}.attn" for k in (0, 1, 2, 10)]  # no heads, in the model's order
        assert page.values(1)["blocks.10.attn"] == f"{entropy(step) + 10:.4g}"
        assert page.values(2) == {"dead heads": str(int(step == 250)), "not finite": "0"}
    tags = page.page.locator("#tag option").all_inner_texts()
    assert tags == [TAGS[0], TAGS[1], TAGS[3], TAGS[2]]
    page.slide("step", 1)
    for number, tag in enumerate(tags):
        page.choose("tag", str(number))
        assert page.shows(tag, 100)  # the step stays
    titles = page.page.locator(".plot h2").all_inner_texts()
    assert titles == ["mean entropy, nats", "by block", "alarms", "ema: mean entropy, nats", "live: mean entropy, nats"]
    page.page.locator(".plot select").select_option("sink_mass")
    assert page.values(1) == {"blocks.2.attn": "0.1"}


def test_the_marker_and_the_curve_are_where_the_numbers_are(log_page, tmp_path):
    page = log_page(write_log(tmp_path / "run"))
    page.slide("step", 2)
    plot = page.page.locator(".plot").first
    points = re.findall(r"[ML]([\d.]+),([\d.]+)", plot.locator("path").nth(1).get_attribute("d"))
    x, y = np.array(points, float).T
    assert np.allclose((x - x[0]) / (x[-1] - x[0]), np.array(STEPS) / 400, atol=1e-3)
    assert np.allclose((y - y[0]) / (y[-1] - y[0]), np.array(STEPS) / 400, atol=2e-3)  # entropy falls evenly
    assert y[-1] > y[0]
    assert float(plot.locator(".now").get_attribute("x1")) == pytest.approx(x[2], abs=0.06)
    box = plot.locator("svg").bounding_box()
    plot.locator("svg").click(position={"x": x[1] / 388 * box["width"], "y": 40})
    assert page.shows("attention/overlay/0", 100)


def test_keys_and_playing(log_page, tmp_path):
    page = log_page(write_log(tmp_path / "run"))
    keys = [
        ("Home", 0),
        ("ArrowRight", 100),
        ("ArrowRight", 250),
        ("ArrowLeft", 100),
        ("End", 400),
        ("ArrowRight", 400),
    ]
    for key, step in keys:
        page.page.keyboard.press(key)
        assert page.shows("attention/overlay/0", step)
    page.page.keyboard.press("]")
    assert page.shows("attention/overlay/1", 400)
    page.page.keyboard.press("[")
    page.page.keyboard.press("[")
    assert page.shows("attention/heads/0", 400)
    page.page.locator("#play").click()  # from the start, as it stands at the end
    assert page.page.locator("#play").inner_text() == "Pause"
    page.page.wait_for_function("() => document.getElementById('play').innerText === 'Play'")
    assert page.shows("attention/heads/0", 400)


# The text of every element that shows one, its colour and the colour behind it.
CONTRASTS = """() => [...document.querySelectorAll("body *")].flatMap((node) => {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.getClientRects().length || ["SCRIPT", "OPTION"].includes(node.tagName)) return [];
    let back = node;
    while (back && /, 0\\)$|transparent/.test(getComputedStyle(back).backgroundColor)) back = back.parentElement;
    const style = getComputedStyle(node), paper = getComputedStyle(back || document.body).backgroundColor;
    return [[node.textContent.trim().slice(0, 30), node.tagName === "text" ? style.fill : style.color, paper]];
})"""


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_size_and_scheme(log_page, tmp_path, scheme, width):
    writer = write_log(tmp_path / "run")
    with (tmp_path / "run/scalars.jsonl").open("a") as file:
        file.write('{"step": 500, "atten')
    page = log_page(writer, viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.page.locator("summary").click()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    texts = page.page.evaluate(CONTRASTS)
    assert len(texts) > 30
    assert any(text.startswith("1 incomplete line") for text, *_ in texts)
    for text, ink, paper in texts:
        light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, text
        assert (luminance(paper) > 0.5) == (scheme == "light")
    box = page.page.locator("#picture").bounding_box()
    assert box["width"] > 300
    steps = page.page.locator(".steps").bounding_box()
    assert steps["y"] + steps["height"] < 844  # picture and slider are seen together


def test_names_are_text(log_page, tmp_path):
    writer = write_log(tmp_path / NASTY)
    writer.image(f"attention/{NASTY}/0", Image.new("RGB", (8, 8)), 0)
    writer.scalars({f"attention/{NASTY}/entropy": 1.0}, 0)
    page = log_page(writer)
    assert page.page.locator("#title").inner_text() == f"Attention log: {NASTY}"
    assert page.page.locator("img").count() == 1
    assert NASTY in page.values(1)
    page.page.locator("summary").click()
    assert f"3 images {NASTY}" in page.page.locator("#about").inner_text()


def test_a_log_without_pictures_or_without_numbers(log_page, tmp_path):
    page = log_page(write_log(tmp_path / "numbers", tags=()))
    assert page.page.locator("#picture").is_hidden()
    page.slide("step", 1)
    assert page.values(0) == {"all blocks": "3"}
    write_log(tmp_path / "pictures")
    (tmp_path / "pictures/scalars.jsonl").unlink()
    page = log_page(DirectoryWriter(tmp_path / "pictures"))
    assert page.shows("attention/overlay/0", 400)
    assert page.page.locator(".plot").count() == 0


def test_half_a_line_costs_that_line_alone(tmp_path):
    writer = write_log(tmp_path)
    lines = (tmp_path / "scalars.jsonl").read_text()
    (tmp_path / "scalars.jsonl").write_text(lines + '{"step": 500, "attention/entr')  # a killed process
    header = header_of(writer.to_html())
    assert (header["unread"], header["steps"]) == (1, list(STEPS))
    DirectoryWriter(tmp_path).scalars({"attention/entropy": 7.0}, 500)  # the run resumes
    DirectoryWriter(tmp_path).scalars({"attention/entropy": 8.0}, 400)  # and repeats a step: the later line is valid
    header = header_of(writer.to_html())
    assert (header["unread"], header["steps"]) == (1, [*STEPS, 500])
    assert header["numbers"]["attention/entropy"] == [4, 3, 1.5, 8, 7]
    assert header["numbers"]["attention/blocks.0.attn/entropy"] == [4, 3, 1.5, 0, None]


def test_values_that_are_no_numbers_are_gaps(log_page, tmp_path):
    writer = write_log(tmp_path / "run")
    writer.scalars({"attention/entropy": float("nan"), "attention/blocks.2.attn/sink_mass": "much"}, 250)
    header = header_of(writer.to_html())
    assert header["numbers"]["attention/entropy"] == [4, 3, None, 0]
    assert header["numbers"]["attention/blocks.2.attn/sink_mass"] == [0.1, 0.1, None, 0.1]
    page = log_page(writer)
    page.slide("step", 2)
    assert page.values(0) == {"all blocks": "none"}
    assert page.page.locator(".plot").first.locator("path").nth(1).get_attribute("d").count("M") == 2


def test_a_block_may_be_called_head(tmp_path):
    writer = DirectoryWriter(tmp_path / "run")
    writer.scalars({"attention/head.attention/entropy": 1.0, "attention/head.attention/head0/entropy": 2.0}, 0)
    with (tmp_path / "run/scalars.jsonl").open("a") as file:
        file.write('{"step": Infinity, "attention/entropy": 1.0}\n')
    header = header_of(writer.to_html())
    assert header["numbers"] == {"attention/head.attention/entropy": [1]}
    assert header["unread"] == 1


def test_long_runs_show_pictures_of_some_steps_and_say_so(log_page, tmp_path):
    writer = DirectoryWriter(tmp_path / "long")
    for step in range(30):
        writer.scalars({"attention/entropy": float(step)}, step)
        writer.image("attention/overlay/0", Image.new("RGB", (8, 8)), step)
    header = header_of(writer.to_html(steps=4))
    assert header["tags"] == [{"tag": "attention/overlay/0", "steps": [0, 10, 19, 29]}]
    assert len(header["steps"]) == 30
    lines = [json.dumps({"step": step, "attention/entropy": 1.0}) for step in range(30, 5000)]
    with (tmp_path / "long/scalars.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")
    header = header_of(writer.to_html(steps=4))
    assert len(header["steps"]) <= 1004
    assert {0, 10, 19, 29, 4999} <= set(header["steps"])
    writer.to_html(tmp_path / "log.html", steps=4)
    page = log_page(writer)  # with all 30
    drawn = len(header_of(writer.to_html())["steps"])
    assert drawn < 1030
    assert page.page.locator("#notice").inner_text() == f"The curves have {drawn} of 5000 logged steps."
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        writer.to_html(steps=1)


def test_logs_of_an_older_version_have_png_files(tmp_path):
    folder = tmp_path / "attention/overlay/0"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "step-00000100.png")
    (folder / "step-notes.png").write_bytes(b"")
    page = DirectoryWriter(tmp_path).to_html()
    assert header_of(page)["tags"] == [{"tag": "attention/overlay/0", "steps": [100]}]
    assert re.search(r'id="picture-0-0">/9j/', page)  # a JPEG


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "run")
    assert main(["log", "run"]) == 0
    assert header_of((tmp_path / "log.html").read_text())["logged"] == 4
    assert capsys.readouterr().out.startswith("log.html, 0.0")
    assert main(["log", "run", "--out", "two.html", "--steps", "2"]) == 0
    assert header_of((tmp_path / "two.html").read_text())["tags"][0]["steps"] == [0, 400]
    assert main(["log", "nowhere"]) == 2
    assert "no log in nowhere: expected scalars.jsonl or pictures" in capsys.readouterr().err
    assert main(["log", "run", "--out", "no/log.html"]) == 2
    assert "expected no to exist" in capsys.readouterr().err
