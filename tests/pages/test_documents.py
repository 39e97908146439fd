"""What a page's policy stops, in a browser: script and requests that got into it all the same."""

import re
from pathlib import Path

import pytest

from attnhook.results.scenes import viewer_html
from tests.pages.scenes import scene

INJECTED = """<script>document.documentElement.dataset.ran = "script"</script>
<img src="missing" onerror="document.documentElement.dataset.ran = 'handler'">
<img src="http://localhost:9/beacon.png"><link rel="stylesheet" href="http://localhost:9/style.css">"""


@pytest.mark.parametrize("guarded", [True, False])
def test_injected_script_does_not_run(guarded: bool, browser, tmp_path: Path) -> None:
    page = viewer_html([scene("square", rows="readout")], model="vit").replace("</body>", f"{INJECTED}</body>")
    assert page.count(INJECTED) == 1
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert len(policy.findall(page)) == 1
    (tmp_path / "view.html").write_text(page if guarded else policy.sub("", page), encoding="utf-8")
    opened = browser.new_page()
    requests: list[str] = []
    opened.on("requestfinished", lambda request: requests.append(request.url))
    opened.on("requestfailed", lambda request: requests.append(f"{request.failure} {request.url}"))
    opened.goto((tmp_path / "view.html").as_uri())
    opened.wait_for_load_state("networkidle")
    ran = opened.evaluate("document.documentElement.dataset.ran || null")
    sent = [url for url in requests if "localhost" in url and "csp" not in url.lower()]
    opened.close()
    assert (ran is None) == guarded
    assert (not sent) == guarded


@pytest.mark.parametrize("guarded", [True, False])
def test_injected_links_and_forms_lead_nowhere(guarded: bool, browser, tmp_path: Path) -> None:
    injected = '<base href="http://localhost:9/"><form id="stolen" action="http://localhost:9/form"></form>'
    page = viewer_html([scene("square", rows="readout")], model="vit").replace("</body>", f"{injected}</body>")
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    (tmp_path / "view.html").write_text(page if guarded else policy.sub("", page), encoding="utf-8")
    opened = browser.new_page()
    requests: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto((tmp_path / "view.html").as_uri())
    base = opened.evaluate("document.baseURI")
    opened.evaluate("document.getElementById('stolen').submit()")
    sent: list[str] = []
    for _ in range(
        1 if guarded else 200
    ):  # what is not sent is waited for a moment, what is as long as a slow machine takes
        opened.wait_for_timeout(300)
        if sent := [url for url in requests if "localhost" in url]:
            break
    opened.close()
    assert base.startswith("file:") == guarded
    assert (not sent) == guarded
