"""The site builds without a warning, asks nobody for anything, and fits a phone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import DOCS, PAGES, ROOT

pytestmark = pytest.mark.slow

OVERFLOWS = """() => {
    const width = document.documentElement.clientWidth;
    const scrolls = (node) => node && (["auto", "scroll", "hidden"].includes(getComputedStyle(node).overflowX) || scrolls(node.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter((node) => node.getBoundingClientRect().right > width + 1 && !scrolls(node.parentElement))
        .map((node) => node.outerHTML.slice(0, 80));
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_is_built_and_reached(site: Path) -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        name = page.relative_to(DOCS)
        assert (site / name).with_suffix(".html").is_file()
        assert re.search(rf"(?m)^ +- .*\b{re.escape(str(name))}$", config), f"{name} is not in the navigation"


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    tag = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", re.IGNORECASE
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert [found for page in pages for found in tag.findall(page.read_text(encoding="utf-8"))] == []
    styles = [sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css")]
    assert styles
    assert not any(re.search(r"(?:url\(|@import) *[\"']?(?:https?:)?//", style) for style in styles)


def test_the_reference_is_filled(site: Path) -> None:
    capture = (site / "reference" / "capture.html").read_text(encoding="utf-8")
    assert "without changing one bit of its output" in capture
    assert 'id="attnhook.capture.session.AttentionCapture"' in capture
    assert "usage: attnhook overlay" in (site / "reference" / "command-line.html").read_text(encoding="utf-8")


def test_pages_on_a_phone(site: Path, browser) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 720})
    context.set_default_timeout(120_000)
    page = context.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    for source in PAGES:
        name = source.relative_to(DOCS).with_suffix(".html")
        page.goto((site / name).as_uri())
        page.wait_for_load_state("load")
        assert page.evaluate(OVERFLOWS) == [], name
        assert (
            page.evaluate("[...document.images].filter((image) => !image.naturalWidth).map((image) => image.src)") == []
        )
    context.close()
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    assert any(url.endswith("pictures/attention.jpg") for url in requests)
