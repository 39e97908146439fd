"""Copies of the tree with one text in one file changed, and whether tests notice: for `break_lines`.

Each try is a fork of one process that has loaded the libraries, so it takes the tests' own time. That a try could not be made is told from tests
that failed, and tests are run on the whole copy first: what fails anyway notices nothing.
"""

import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 1200
"""Tests that have not ended by then hang."""

NOT_RUN = 99


def copied_tree(folder: str) -> Path:
    """The tree that may be broken: a copy, without what was made in it."""
    left_out = shutil.ignore_patterns(
        ".git", ".venv*", ".*_cache", ".hypothesis", ".coverage", "__pycache__", "dist", "site", "attnhook-demo"
    )
    return Path(shutil.copytree(ROOT, folder, ignore=left_out, dirs_exist_ok=True))


def broken_verdict(file: Path, broken: str, tests: list[str], tree: Path, marks: str = "not gpu") -> str:
    """Whether tests fail with another text in a file of a copied tree: `"noticed"`, `"UNNOTICED"`, or what went wrong."""
    whole = file.read_text()
    file.write_text(broken)
    try:
        code, said = pytest_in_a_fork(["-m", marks, *tests], tree)
    finally:
        file.write_text(whole)
    # 1: a test failed; 2: one could not even be imported; None: it ran on and on
    return {0: "UNNOTICED", 1: "noticed", 2: "noticed", None: "noticed"}.get(code, f"NOT RUN: {said[-600:]}")


@cache
def check_whole(tests: tuple[str, ...], tree: Path, marks: str = "not gpu") -> None:
    """Stop unless tests pass while nothing is broken: that they fail afterwards would mean nothing."""
    code, said = pytest_in_a_fork(["-m", marks, *tests], tree)
    if code != 0:
        sys.exit(f"tests fail before anything is broken (status {code}): {' '.join(tests)}\n{said[-3000:]}")


def pytest_in_a_fork(arguments: list[str], tree: Path) -> tuple[int | None, str]:
    """Run pytest in a copy of this process, in which the libraries are loaded: its status, None if it did not end, and what it said."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            os._exit(_pytest(arguments, tree))
        begin, ended = time.monotonic(), (0, 0)
        while not ended[0] and time.monotonic() - begin < PATIENCE_SECONDS:
            time.sleep(0.05)
            ended = os.waitpid(child, os.WNOHANG)
        if not ended[0]:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, ""
        said.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), said.read().decode(errors="replace")


# Libraries that pytest would like to rewrite are loaded already.
_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")


def _pytest(arguments: list[str], tree: Path) -> int:
    for name in [*sys.modules]:
        if name.partition(".")[0] in {"attnhook", "tests"}:
            del sys.modules[name]
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)  # for the processes that tests start
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True  # a text of the same length in the same second would pass for the one before
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in {"", str(ROOT)})]
    try:
        return int(pytest.main([*_OPTIONS, *arguments]))
    except BaseException:
        traceback.print_exc()
        return NOT_RUN
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def load_libraries() -> None:
    """Import what tests would import each time anew, and nothing of ours. One thread: threads do not survive a fork."""
    import torch

    torch.set_num_threads(1)
    for name in ("hypothesis", "timm", "torchvision", "transformers", "transformers.models.vit.modeling_vit"):
        importlib.import_module(name)
