"""The workflows for GitHub: readable, and what they run is in the Makefile; they do at least what `.ci/run` does."""

import re
import tomllib
from itertools import product
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def jobs_of(path: Path) -> dict[str, dict]:
    return yaml.safe_load(path.read_text())["jobs"]


def commands_of(job: dict) -> list[str]:
    """What a job runs, once for each entry of its matrix."""
    matrix = job.get("strategy", {}).get("matrix", {})
    found = []
    for values in product(*matrix.values()):
        for step in job["steps"]:
            command = step.get("run", "")
            for name, value in zip(matrix, values, strict=True):
                command = command.replace(f"${{{{ matrix.{name} }}}}", value)
            found += command.splitlines()
    return found


def every_command() -> list[str]:
    return [command for path in WORKFLOWS for job in jobs_of(path).values() for command in commands_of(job)]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_its_parts(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert {"name", "jobs", "permissions"} <= workflow.keys()
    assert workflow[True]  # YAML 1.1 reads the key `on` as a truth value
    for job in workflow["jobs"].values():
        assert {"runs-on", "steps", "timeout-minutes"} <= job.keys()
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert used[0].startswith("actions/checkout@")
        assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", one) for one in used)


def test_all_that_is_run_is_in_the_makefile() -> None:
    commands = every_command()
    assert commands
    for command in commands:
        assert re.fullmatch(r"make [a-z-]+", command), command
        assert command.removeprefix("make ") in TARGETS, command


def test_they_do_what_ci_does() -> None:
    wanted = re.findall(r"^make .+$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert wanted
    assert set(wanted) <= set(every_command())


def test_every_python_that_is_allowed_is_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (job,) = [job for job in jobs_of(ROOT / ".github" / "workflows" / "ci.yml").values() if "strategy" in job]
    tried = job["strategy"]["matrix"]["python"]
    assert tried == ["3.11", "3.12", "3.13"]
    assert project["requires-python"] == f">={tried[0]}"
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line}
    assert named == set(tried)
