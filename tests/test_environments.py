"""The library where something is missing: a home, a locale, a network, asserts; and on other processes, threads and tasks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("everything.py")
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}

# What is set (None: unset), arguments of Python, the script's modes. What has nothing to do with each other is tried in one process.
ENVIRONMENTS = {
    "as it is, in threads, in tasks, and spawned": ({}, (), "once threads tasks spawn"),
    "no home, no name, no network, ASCII, and python -O": (
        ASCII | dict.fromkeys(("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME")),
        ("-O",),
        "nobody offline",
    ),
    "a home that takes no files, the C locale without UTF-8, and warnings are errors": (
        ASCII | {"HOME": "/proc", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        ("-W", "error"),
        "once",
    ),
}


@pytest.mark.slow
def test_everything_works_everywhere(tmp_path: Path) -> None:
    lines = set()
    for number, (name, (changed, arguments, modes)) in enumerate(ENVIRONMENTS.items()):
        given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1]), **changed}
        environment = {key: value for key, value in given.items() if value is not None}
        command = [sys.executable, *arguments, str(SCRIPT), str(tmp_path / str(number)), *modes.split()]
        run = subprocess.run(command, capture_output=True, check=False, timeout=500, env=environment, cwd=tmp_path)
        said = run.stderr.decode(errors="replace")
        assert run.returncode == 0, (name, said)
        assert "Traceback" not in said, (name, said)
        assert "Warning" not in said, (name, said)
        found = run.stdout.decode().splitlines()
        assert len(found) == len(modes.split()), name
        lines |= set(found)
        assert len(lines) == 1, name  # nothing is lost, and nothing is other than elsewhere
