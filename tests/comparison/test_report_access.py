"""The report for everyone: contrast, keyboard, names, on a screen and on a phone, light and dark; it says nothing and asks for nothing."""

import pytest

SCREENS = {"screen": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}

# WCAG 2: contrast of every visible text with what is behind it, as far as that has a colour; disabled controls are exempt.
CONTRASTS = """() => {
  const parsed = (text) => {
    const n = text.match(/[\\d.]+/g).map(Number), most = text.startsWith("color(srgb") ? 255 : 1;
    return [n[0] * most, n[1] * most, n[2] * most, n[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (element) => {
    const chain = [];
    for (let one = element; one; one = one.parentElement) chain.push(parsed(getComputedStyle(one).backgroundColor));
    return chain.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const opacity = (element) => (element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, range = document.createRange();
    range.selectNodeContents(node);
    if (!node.textContent.trim() || element.closest("script, style, noscript, :disabled") || !range.getClientRects().length) continue;
    const style = getComputedStyle(element), paper = behind(element);
    const color = parsed(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    color[3] *= opacity(element);
    const [a, b] = [light(over(color, paper)), light(paper)];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.textContent.trim().slice(0, 40), element.tagName]);
  }
  return found;
}"""

CONTROLS = """() => [...document.querySelectorAll("a[href], button:enabled, select:enabled, input:enabled, summary, [tabindex='0']")]
  .filter((one) => one.getClientRects().length).length"""

FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one);
  window.visited ??= new Set();
  if (one !== document.body) window.visited.add(one);
  const named = one.getAttribute("aria-label") || one.labels?.[0]?.textContent || one.textContent || one.getAttribute("aria-labelledby");
  const outline = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
  return { left: one === document.body, count: visited.size, outline, what: one.outerHTML.slice(0, 200), name: named };
}"""


def opened(report, shown, screen, scheme):
    page = report(shown, viewport=SCREENS[screen], color_scheme=scheme)  # the fixture refuses complaints and requests
    page.page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.settle()
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_every_text_of_the_report_is_readable(report, shown, screen, scheme) -> None:
    page = opened(report, shown, screen, scheme)
    found = page.page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert {"SPAN", "BUTTON", "text", "DD", "A", "B", "OPTION"} - {"OPTION"} <= {tag for *_, tag in found}
    assert [one for one in found if one[0] < 4.5] == []
    assert page.page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen]["width"]


@pytest.mark.parametrize("screen", SCREENS)
def test_the_tab_key_reaches_every_control_of_the_report(report, shown, screen) -> None:
    page = opened(report, shown, screen, "light")
    count = page.page.evaluate(CONTROLS)
    assert count > 20
    for _ in range(count + 3):
        page.page.keyboard.press("Tab")
        now = page.page.evaluate(FOCUSED)
        if now["left"]:
            break
        assert now["outline"] >= 1, now
        assert (now["name"] or "").strip(), now
    assert now["count"] == count


def test_every_control_of_the_report_works_by_keyboard(report, shown) -> None:
    page = report(shown)
    keys = page.page.keyboard

    def pressed(locator, *names):
        locator.focus()
        for name in names:
            keys.press(name)
        page.settle()

    for name, key in (
        ("view", "ArrowDown"),
        ("colormap", "ArrowDown"),
        ("scale", "ArrowDown"),
        ("strip-view", "ArrowDown"),
    ):
        field = page.page.locator(f"#{name}")
        before = field.input_value()
        pressed(field, key)
        assert field.input_value() != before, name
    field = page.page.locator("#alpha")
    pressed(field, "ArrowLeft")
    assert field.input_value() == "80"
    for name in ("weighted", "smooth", "frame", "outline", "peak", "together"):
        field = page.page.locator(f"#{name}")
        before = field.is_checked()
        pressed(field, "Space")
        assert field.is_checked() != before, name
    for details in page.page.locator("details:not(#controls)").all():
        pressed(details.locator("summary"), "Enter")
        assert details.get_attribute("open") is not None
    pressed(page.page.locator("#contents a", has_text="Scores"), "Enter")
    assert page.page.url.endswith("#scores")
    box = page.page.locator("#table-0 .scroll")
    page.page.set_viewport_size({"width": 390, "height": 844})
    pressed(box, "ArrowRight", "ArrowRight")
    page.page.wait_for_function("document.querySelector('#table-0 .scroll').scrollLeft > 0")
