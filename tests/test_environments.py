"""The library where something is missing: a home, a locale, a network, asserts; and on other processes, threads and tasks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("everything.py")
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}

# What is set (None: unset), arguments of Python, the script's mode.
ENVIRONMENTS = {
    # "as it is" first: the others are compared with it
    "as it is": ({}, (), "once"),
    "no home and no name": ({"HOME": None, "XDG_CACHE_HOME": None, "USER": None, "LOGNAME": None}, (), "nobody"),
    "a home that takes no files, and no network": ({"HOME": "/proc"}, (), "offline"),
    "ASCII": (ASCII, (), "once"),
    "the C locale without UTF-8": (ASCII | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, (), "once"),
    "python -O": ({}, ("-O",), "once"),
    "warnings are errors": ({}, ("-W", "error"), "once"),
    "spawned": ({}, (), "spawn"),
    "threads": ({}, (), "threads"),
    "tasks": ({}, (), "tasks"),
}


@pytest.fixture(scope="module")
def lines() -> set[str]:
    """What the environments said: the same line."""
    return set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_everything_works(name: str, lines: set[str], tmp_path: Path) -> None:
    changed, arguments, mode = ENVIRONMENTS[name]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1]), **changed}
    environment = {key: value for key, value in given.items() if value is not None}
    command = [sys.executable, *arguments, str(SCRIPT), mode, str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, check=False, timeout=240, env=environment, cwd=tmp_path)
    said = run.stderr.decode(errors="replace")
    assert run.returncode == 0, said
    assert "Traceback" not in said
    assert "Warning" not in said
    lines |= set(run.stdout.decode().splitlines())
    assert len(lines) == 1  # nothing is lost, and nothing is other than elsewhere
