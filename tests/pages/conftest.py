"""A viewer in the browser, which may neither complain nor ask for anything."""

import pytest

from attnhook.pages.documents import save_viewer
from attnhook.results.scenes import viewer_html
from tests.pages.viewers import Page


@pytest.fixture
def viewer(browser, tmp_path):
    opened = []

    def open_(*shown, options=None, model="tiny", **settings):
        path = save_viewer(viewer_html(shown, model=model, **settings), tmp_path / "view.html")
        opened.append(Page(browser, path, **(options or {})))
        return opened[-1]

    yield open_
    for page in opened:
        page.context.close()
        assert page.complaints == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in page.requests)
