"""The walks of CONTRIBUTING.md are those that the code takes."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.walks import PACKAGE, WALKS

ROOT = Path(__file__).parents[1]
# They help everywhere, and are left out of the walks.
HELPERS = {"names.py", "options.py", "files.py", "errors.py", "_deprecated.py"}


def walks() -> dict[str, list[str]]:
    """The files of each walk, in order."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Four walks")[2].partition("\n## ")[0]
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    listed = {section.partition("\n")[0]: section for section in sections}
    return {title: re.findall(r"^\d+\. `([^`]+)`: ", section, re.MULTILINE) for title, section in listed.items()}


@pytest.fixture(scope="module")
def entered() -> dict[str, list[str]]:
    """The files that each run enters: in a process of its own, in which nothing is remembered."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.walks"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=300
    )
    walked: dict[str, list[str]] = json.loads(found.stdout)
    return walked


def test_the_document_walks_where_the_runs_go() -> None:
    assert list(walks()) == list(WALKS)


@pytest.mark.slow
@pytest.mark.parametrize("title", WALKS)
def test_files_are_entered_in_this_order(title: str, entered: dict[str, list[str]]) -> None:
    steps, order = walks()[title], entered[title]
    assert len(steps) > 10
    assert [step for step in steps if not (PACKAGE / step).is_file()] == []
    assert [step for step in steps if step not in order] == []
    assert [pair for pair in pairwise(steps) if order.index(pair[0]) >= order.index(pair[1])] == []


@pytest.mark.slow
@pytest.mark.parametrize("title", WALKS)
def test_no_room_is_left_out(title: str, entered: dict[str, list[str]]) -> None:
    def rooms(files: list[str]) -> set[str]:
        return {file.partition("/")[0] for file in files if file not in HELPERS}

    assert rooms(entered[title]) == rooms(walks()[title])
