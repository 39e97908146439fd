"""Files that are whole or not there."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attnhook.files import cache_dir, check_writable, file_name, readable, replacing, user_path


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


def test_of_many_writers_each_succeeds_and_no_reader_sees_half_a_file(tmp_path: Path) -> None:
    """Every rank of a training script saves the same picture."""
    path, size = tmp_path / "map.png", 200_000
    path.write_bytes(bytes(size))

    def write(number: int) -> None:
        with replacing(path) as temporary, temporary.open("wb") as file:
            for _ in range(10):
                file.write(bytes([number]) * (size // 10))

    def read(_: int) -> set[int]:
        content = path.read_bytes()
        return {len(content), *content[:1], *content[-1:]} if len(set(content)) > 1 else {len(content)}

    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(write, number) for number in range(200)]
        seen = [pool.submit(read, number) for number in range(200)]
    assert [writer.exception() for writer in writers] == [None] * 200
    assert all(reader.result() == {size} for reader in seen)
    assert [one.name for one in tmp_path.iterdir()] == ["map.png"]


def test_an_error_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "nowhere" / "a.png") as temporary:
        temporary.write_bytes(b"")
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.png")


@pytest.mark.parametrize("name", ["x" * 255, "\N{CAT FACE}" * 63, "a.png"])
def test_names_of_every_length_have_temporary_ones(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as temporary:
        temporary.write_bytes(b"content")
    assert (tmp_path / name).read_bytes() == b"content"


def test_tilde_is_the_home_where_a_shell_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_path("~/cat.jpg") == tmp_path / "home" / "cat.jpg"
    assert user_path("~") == tmp_path / "home"
    for literal in ("~cat.jpg", "~root/x.jpg", "photos/~/cat.jpg"):
        assert user_path(literal) == Path(literal)
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "cat.jpg").write_bytes(b"")
    assert user_path("~/cat.jpg") == Path("~/cat.jpg")


@pytest.mark.parametrize("name", [b"cat.jpg", b"caf\xc3\xa9.jpg", b"\xff\xfe.jpg", b"caf\xe9.jpg"])
def test_readable_names_are_utf8_and_differ_where_names_do(name: bytes) -> None:
    found = readable(os.fsdecode(name))
    assert found.encode() == name.decode("utf-8", "backslashreplace").encode()
    assert readable(found) == found


def test_long_names_are_cut_and_told_apart() -> None:
    assert file_name("cat", "-attention.png") == "cat-attention.png"
    long = [file_name("\N{CAT FACE}" * 60 + str(number), "-attention-2.png") for number in range(3)]
    assert len(set(long)) == 3
    assert all(len(os.fsencode(name)) <= 255 and name.endswith("-attention-2.png") for name in long)


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(b"")
    for impossible in ("file", "file/below", "x" * 300, "a/" + "x" * 300, "nul\0byte"):
        with pytest.raises(ValueError, match="cannot write to"):
            check_writable(tmp_path / impossible)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


NOBODY = """
import pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
"""
"""What a container is like whose user has no entry in /etc/passwd; HOME is not set there."""


@pytest.mark.skipif(os.name != "posix", reason="no pwd on Windows")
def test_without_a_home_there_is_no_cache_and_no_error() -> None:
    code = f"{NOBODY}\nfrom attnhook.files import cache_dir, user_path; print(cache_dir(), user_path('~/cat.jpg'))"
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=False)
    assert done.stdout == "None ~/cat.jpg\n", done.stderr
