"""The viewer without a mouse, and its contrast: at the width of a screen and of a phone, in light and dark."""

import pytest

from attnhook.pages import documents
from tests.pages.scenes import scene, windowed_scene

SIZES = {"1280": {"viewport": {"width": 1280, "height": 900}}}
SIZES["390"] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}

# WCAG 2's contrast of every text that is shown, over the background behind it.
CONTRASTS = """() => {
    const parsed = (color) => { const found = color.match(/[\\d.]+/g).map(Number); return [...found.slice(0, 3), found[3] ?? 1]; };
    const over = ([r, g, b, a], below) => [r, g, b].map((v, k) => v * a + below[k] * (1 - a));
    const light = (color) => {
        const [r, g, b] = color.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        if (!node) return [255, 255, 255];
        return over(parsed(getComputedStyle(node).backgroundColor), behind(node.parentElement));
    };
    const found = [], holders = [...document.querySelectorAll("select")];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) if (walker.currentNode.data.trim()) holders.push(walker.currentNode.parentElement);
    for (const node of holders) {
        if (!node.checkVisibility({ visibilityProperty: true }) || node.closest(".sr, option, noscript")) continue;
        let opacity = 1;
        for (let one = node; one; one = one.parentElement) opacity *= Number(getComputedStyle(one).opacity);
        const [r, g, b, a] = parsed(getComputedStyle(node).color), paper = behind(node);
        const pair = [light(over([r, g, b, a * opacity], paper)), light(paper)].sort((x, y) => y - x);
        found.push([(pair[0] + 0.05) / (pair[1] + 0.05), node.textContent.trim().slice(0, 60)]);
    }
    return found;
}"""
REACHED = """() => {
    const node = document.activeElement;
    return node.id || (node.type === "radio" ? "sources" : node.tagName === "SUMMARY" ? node.textContent : node.tagName);
}"""
EXPECTED = """() => [...document.querySelectorAll("button, select, input, summary, #stage")]
    .filter((node) => !node.disabled && node.checkVisibility({ visibilityProperty: true }))
    .map((node) => node.id || (node.type === "radio" ? "sources" : node.textContent))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("make", [lambda: scene("registers"), windowed_scene], ids=["registers", "windows"])
def test_every_text_has_contrast(viewer, make, width, scheme):
    page = viewer(make(), make(), options=SIZES[width] | {"color_scheme": scheme})
    for summary in page.page.locator("summary:visible").all():
        summary.click()

    def read(least):
        contrasts = page.page.evaluate(CONTRASTS)
        assert len(contrasts) > least
        assert [(ratio, text) for ratio, text in contrasts if ratio < 4.5] == []
        return {text for _, text in contrasts}

    assert "Save PNG" in read(40)
    page.page.locator("#canvas").click()  # the middle: a patch, or a mark
    page.page.locator("#mask").check()
    page.settle()
    assert any(text.startswith("not darkened") for text in read(40))
    page.slide("block", 0)
    read(40)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= SIZES[width]["viewport"]["width"]


def test_low_contrast_is_seen(viewer, monkeypatch):
    """The test's own measure."""
    read = documents._read
    monkeypatch.setattr(documents, "_read", lambda name: read(name).replace("--quiet: #5b636d", "--quiet: #8b939d"))
    contrasts = viewer(scene("square"), options={"color_scheme": "light"}).page.evaluate(CONTRASTS)
    assert 2 < min(contrasts)[0] < 4.5


@pytest.mark.parametrize("width", SIZES)
def test_every_control_is_reached_by_tab(viewer, width):
    page = viewer(scene("registers"), scene("square"), options=SIZES[width])
    page.page.locator("#mask").check()
    page.settle()
    expected, reached = set(page.page.evaluate(EXPECTED)), set()
    assert {
        "stage",
        "after",
        "closer",
        "save",
        "sources",
        "query",
        "block",
        "head",
        "mask",
        "keep",
        "About this file",
    } <= expected
    for _ in range(len(expected) + 5):  # once around, past the browser's own controls
        page.page.keyboard.press("Tab")
        reached.add(page.page.evaluate(REACHED))
    assert reached - {"BODY"} == expected


def test_every_control_works_by_keyboard(viewer):
    page = viewer(scene("registers"), scene("square", name="second.jpg"))
    page.choose("scale", "uniform")
    page.check("mask", True)

    def works(name, key, read):
        page.page.locator(name).focus()
        before = page.page.evaluate(read)
        page.press(key)
        if page.page.evaluate(read) == before:
            page.page.wait_for_function(f"(before) => ({read})() !== before", arg=before)

    works("#keep", "ArrowRight", "() => document.getElementById('keep-text').textContent")
    works("#mask", "Space", "() => document.getElementById('mask').checked")
    for name, key in (("block", "ArrowLeft"), ("head", "ArrowRight"), ("alpha", "ArrowLeft"), ("top", "ArrowLeft")):
        works(f"#{name}", key, f"() => document.getElementById('{name}-text').textContent")
    for name in ("scale", "colormap", "query"):
        works(
            f"#{name}", "ArrowDown" if name != "scale" else "ArrowUp", f"() => document.getElementById('{name}').value"
        )
    for name in ("weighted", "smooth", "follow"):
        works(f"#{name}", "Space", f"() => document.getElementById('{name}').checked")
    works("#back", "Enter", "() => document.getElementById('query').value")
    works('[name="source"]:checked', "ArrowRight", "() => document.querySelector('[name=\"source\"]:checked').value")
    for name, key in (("closer", "Enter"), ("farther", "Space"), ("closer", "Space"), ("whole", "Enter")):
        works(f"#{name}", key, "() => document.getElementById('zoom-text').textContent")
    for summary in page.page.locator("summary").all():
        summary.focus()
        page.press("Enter")
    assert page.page.locator("details[open]").count() == 3
    with page.page.expect_download():
        page.page.locator("#save").focus()
        page.press("Enter")
    works("#after", "Enter", "() => document.getElementById('photo').value")
    works("#before", "Space", "() => document.getElementById('photo').value")
    works("#photo", "ArrowDown", "() => document.getElementById('photo').value")
