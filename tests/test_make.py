"""What `make` says before its long steps, with programs in its environment that only say that they ran."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = ("python", "pip", "pytest", "attnhook", "ruff", "mypy", "twine", "coverage")
LONG = {"demo": "attnhook", "test": "pytest", "check": "mypy", "docs": "python -m mkdocs", "package": "pytest"}

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("target", LONG)
def test_each_long_step_is_announced(target: str, installed: bool, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        (programs / name).write_text(f'#!/bin/sh\necho "ran {name} $*"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "chromium").write_text("#!/bin/sh\n")
    (tmp_path / "chromium").chmod(0o755)
    if installed:
        (tmp_path / ".venv/.installed").touch()
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(
        [shutil.which("make") or "make", target],
        check=True,
        cwd=tmp_path,
        env={"PATH": path},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("==> ", "ran "))]
    assert lines[0].startswith("==> ")
    said = "==> installing attnhook" in lines[0]
    assert said is not installed
    ran = [number for number, line in enumerate(lines) if line.startswith(f"ran {LONG[target]}")]
    assert ran
    before = lines[: ran[-1]]
    announced = max(number for number, line in enumerate(before) if line.startswith("==> "))
    assert not any("pip" in line for line in before[announced:])  # the announcement is of this step
