"""Which files a folder, a glob and a name stand for; held against what `find` and a shell say."""

import os
import shutil
import subprocess

import pytest

from attnhook.errors import ImageError
from attnhook.imaging.images import read_image
from attnhook.imaging.photo_files import is_url, photo_paths

FILES = [
    "a.png",
    "b.JPG",
    "below/c.webp",
    "below/deeper/d.tiff",
    ".hidden.png",
    ".git/e.png",
    "notes.txt",
    "__MACOSX/a.png",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "photos"


def test_a_folder_is_its_pictures(folder):
    (folder / "circle").symlink_to(folder)
    expected = ["photos/a.png", "photos/b.JPG", "photos/below/c.webp", "photos/below/deeper/d.tiff"]
    assert [os.fspath(path) for path in photo_paths("photos")] == expected
    assert photo_paths(folder) == [folder.parent / name for name in expected]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
@pytest.mark.parametrize("pattern", ["photos/*.png", "photos/*", "photos/[ab].*", "photos/?.JPG", "photos/below/*/*"])
def test_a_glob_is_what_a_shell_makes_of_it(folder, pattern):
    script = f'for one in {pattern}; do [ -f "$one" ] && echo "$one"; done; true'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)  # noqa: S607 (the user's bash)
    assert [os.fspath(path) for path in photo_paths(pattern)] == done.stdout.split()
    absolute = photo_paths(f"{folder.parent}/{pattern}")
    assert [os.path.relpath(path) for path in absolute] == done.stdout.split()


def test_a_file_is_itself_whatever_signs_are_in_its_name(folder):
    (folder / "a[1]*.png").write_bytes(b"")
    assert photo_paths("photos/a[1]*.png") == ["photos/a[1]*.png"]
    assert photo_paths("nowhere.png") == ["nowhere.png"]
    assert photo_paths("https://example.com/*.png?x=[1]") == ["https://example.com/*.png?x=[1]"]


def test_nothing_is_an_error(folder):
    (folder / "empty").mkdir()
    for source in ("photos/empty", "photos/*.bmp"):
        with pytest.raises(ImageError, match=r"no photos: expected .*, got none\. Check the path\."):
            photo_paths(source)


@pytest.mark.parametrize(
    "text", ["https://a.b/c.png", "https:/a.b/c.png", "s3://bucket/x", "gs://b/x", "file:///etc/x.png"]
)
def test_urls_are_said_to_be_urls(text):
    assert is_url(text)
    with pytest.raises(ImageError, match="expected a local file, got a URL"):
        read_image(text)


@pytest.mark.parametrize("text", ["cat.png", "C:\\cat.png", "C:/cat.png", "a:b.png", "/https:/", "~/x"])
def test_other_names_are_not(text):
    assert not is_url(text)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"hevc"])
def test_heic_is_named_with_what_reads_it(tmp_path, brand):
    content = b"\x00\x00\x00\x1cftyp" + brand + b"\x00\x00\x00\x00mif1heic" + bytes(100)
    (tmp_path / "phone.jpg").write_bytes(content)
    for source in (tmp_path / "phone.jpg", content):
        with pytest.raises(
            ImageError, match=r"got HEIC\. Install pillow-heif and call pillow_heif\.register_heif_opener"
        ):
            read_image(source)
