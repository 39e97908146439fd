"""Files that are whole or not there."""

import sys
from pathlib import Path

import pytest

from attnhook.files import cache_dir, replacing


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail_half_way() -> None:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_link_left_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "a.txt.partial").symlink_to(tmp_path / "precious")
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", Path("chosen", "attnhook")),
        ("win32", "LOCALAPPDATA", Path("chosen", "attnhook")),
        ("linux", None, Path.home() / ".cache" / "attnhook"),
        ("darwin", None, Path.home() / "Library" / "Caches" / "attnhook"),
        ("win32", None, Path.home() / "AppData" / "Local" / "attnhook"),
    ],
)
def test_cache_directory_follows_the_platform(
    monkeypatch: pytest.MonkeyPatch, platform: str, variable: str | None, expected: Path
) -> None:
    for name in ("ATTNHOOK_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    if variable:
        monkeypatch.setenv(variable, "chosen")
    assert cache_dir() == expected
