"""A small comparison, and its report open in the browser."""

import pytest

from attnhook.pages.documents import report_html
from tests.comparison.contents import content
from tests.comparison.opened import Page


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
