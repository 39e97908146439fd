"""One thread a process: the tests run in several processes. The same examples of properties every time. A browser for our pages."""

import gc
import os
import shutil
import signal
from contextlib import contextmanager, suppress

import hypothesis
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

# The same examples on every run: a failure is found where it was made, and found again.
hypothesis.settings.register_profile("attnhook", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("attnhook")


@pytest.fixture(autouse=True, scope="module")
def _nothing_old_is_collected():
    """What libraries made at import stays: a collection that looks through it takes half a second, and compare() asks for one a model."""
    gc.collect()
    gc.freeze()


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    """Chromium, as the system has it. Continuous integration sets ATTNHOOK_REQUIRE_BROWSER: without a browser its tests fail."""
    missing = pytest.fail if os.environ.get("ATTNHOOK_REQUIRE_BROWSER") else pytest.skip
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        missing("no browser: install Debian's chromium (`make browser`) to test the pages in one")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no Playwright: `pip install playwright` (without its own browsers) to test the pages in a browser")
    playwright = sync_playwright().start()
    launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
    yield launched
    with given_up_after(30):  # a browser that died may answer no more; the tests have ended
        launched.close()
        playwright.stop()


@contextmanager
def given_up_after(seconds):
    """Leave what takes longer, on the main thread."""

    def leave(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, leave)
    signal.alarm(seconds)
    try:
        with suppress(TimeoutError):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
