"""The public names and signatures are those of `public_api.txt`: none changes by accident."""

import ast
import difflib
import importlib
from pathlib import Path

import pytest

import attnhook
import attnhook.imaging
from tests import public_api


def check(now: str) -> None:
    kept = public_api.SNAPSHOT.read_text()
    if now != kept:
        lines = difflib.unified_diff(
            kept.splitlines(), now.splitlines(), "tests/public_api.txt", "attnhook", lineterm="", n=2
        )
        pytest.fail(
            "the public interface is not what it was:\n"
            + "\n".join(lines)
            + "\n\nIf that is meant: say it in CHANGELOG.md, "
            "run `python -m tests.public_api --write` and commit tests/public_api.txt.",
            pytrace=False,
        )


def test_the_public_interface_is_what_it_was() -> None:
    check(public_api.public_api())


def test_a_change_is_shown_with_the_way_to_renew() -> None:
    now = public_api.public_api().replace("keep: float=0.6", "share: float=0.6", 1)
    with pytest.raises(pytest.fail.Exception, match="is not what it was") as caught:
        check(now)
    message = str(caught.value)
    changed = [line for line in message.splitlines() if line.startswith(("+ ", "- ", "+attn", "-attn"))]
    assert len(changed) == 2
    assert "keep: float=0.6" in changed[0]
    assert "share: float=0.6" in changed[1]
    assert "python -m tests.public_api --write" in message


def test_names_members_and_errors_are_in_it() -> None:
    text = public_api.public_api()
    assert all(f"attnhook.{name}" in text for name in attnhook.__all__ if name != "__version__")
    for line in (
        "class attnhook.AttentionCapture(HookedContext)",
        "    @overload __getitem__(self, index: slice) -> 'AttentionMaps'",
        "    @property maps(self) -> AttentionMaps",
        "class attnhook.errors.NoClassTokenError(NoReadoutError)",
        "    registers: int = 0",
        "    __enter__(self) -> Self",
    ):
        assert f"{line}\n" in text
    assert "attnhook.METHODS: mappingproxy of gradient_attention, " in text


@pytest.mark.parametrize("package", [attnhook, attnhook.imaging], ids=["attnhook", "imaging"])
def test_type_checkers_see_the_same_names_as_python(package) -> None:
    path = Path(package.__file__).with_suffix(".pyi")
    imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    seen = {
        alias.asname: getattr(importlib.import_module(node.module), alias.name)
        for node in imports
        for alias in node.names
    }
    assert set(seen) == {*package.__all__} - {"__version__"}
    assert all(getattr(package, name) is value for name, value in seen.items())
    assert {*package.__all__} <= {*dir(package)}
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018
