"""What is built and installed: the archives, a program in a clean environment, types for its users, the files about the project."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image
from skimage.data import chelsea

import attnhook

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = SETTINGS["project"], SETTINGS["tool"]
MOST_BYTES = 1_000_000


def run(*command: object, cwd: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "COVERAGE_PROCESS_CONFIG"}}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel in it. What the wheel depends on is found where this Python has it; the tree is not."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", archives[1])
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "parent.pth").write_text(sysconfig.get_path("purelib"))
    return python


@pytest.mark.slow
def test_archives_are_well_formed_and_small(archives: tuple[Path, Path]) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", *archives, cwd=ROOT)
    assert said.count("PASSED") == 2
    assert archives[1].stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_the_wheel_is_the_package_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        about = email.message_from_bytes(wheel.read(metadata))
    tree = {path for path in (ROOT / "attnhook").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    information = metadata.partition("/")[0]
    assert {name for name in names if not name.startswith(information)} == {str(p.relative_to(ROOT)) for p in tree}
    assert "attnhook/py.typed" in names
    assert "attnhook/__init__.pyi" in names
    assert {about["Name"], about["Version"], about["License-Expression"]} == {
        "attnhook",
        attnhook.__version__,
        "Apache-2.0",
    }
    assert set(about.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


@pytest.mark.slow
def test_the_sdist_has_what_its_tests_need(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "pyproject.toml", "tests/conftest.py"}
    assert wanted <= names
    assert {name for name in names if name.startswith(("dist", ".venv", ".coverage", ".hypothesis"))} == set()


@pytest.mark.slow
def test_installed_it_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    where = run(installed, "-c", "import attnhook; print(attnhook.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parents[1])
    version = f"attnhook {attnhook.__version__}\n"
    assert run(installed.parent / "attnhook", "--version", cwd=tmp_path) == version
    assert run(installed, "-m", "attnhook", "--version", cwd=tmp_path) == version
    Image.fromarray(chelsea()).save(tmp_path / "cat.png")
    run(installed.parent / "attnhook", "overlay", "cat.png", "--model", "digits", "--out", "maps", cwd=tmp_path)
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"cat-attention.png", "manifest.json"}


@pytest.mark.slow
def test_its_types_hold_for_users_under_strict_mypy(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "consumer.py"
    program.write_text((ROOT / "tests" / "consumer.py").read_text())
    skipped = TOOLS["mypy"]["overrides"][0][
        "module"
    ]  # the hosts: minutes of reading, and nothing of theirs is in the program
    settings = "".join(f"[mypy-{module}]\nignore_missing_imports = True\nfollow_imports = skip\n" for module in skipped)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = True\npython_executable = {installed}\n{settings}")
    assert run(sys.executable, "-m", "mypy", program, cwd=tmp_path).startswith("Success")


def test_versions_agree() -> None:
    assert PROJECT["version"] == attnhook.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", attnhook.__version__)
    assert citation()["version"] == attnhook.__version__


def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_citation_file_is_one() -> None:
    """What version 1.2.0 of the format demands."""
    cited = citation()
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert cited["license"] == PROJECT["license"]
    assert all(author.keys() & {"name", "family-names"} for author in cited["authors"])
    for reference in cited["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert all(author.keys() & {"name", "family-names"} for author in reference["authors"])


def test_the_changelog_keeps_its_form() -> None:
    """Keep a Changelog: the newest version first, each with what was added, changed, deprecated, removed, fixed or made safe."""
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert lines[0] == "# Changelog"
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in versions[1:])
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert {"Added"} <= kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    entries = [
        line for line in lines[1:] if line and not line.startswith(("#", "- ", "  ", "| ", "|---", "These lines of"))
    ]
    assert all("Keep a Changelog" in line or "Semantic Versioning" in line for line in entries), entries
