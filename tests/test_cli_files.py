"""Odd file names through every command and `attend`: one line for each, no traceback, and the good photos still done."""

import csv
import json
import os
import shutil

import pytest

from attnhook import attend, load
from attnhook.cli import main
from attnhook.errors import ImageError
from tests.zoo.saved_models import photo, save_timm

GOOD = [
    b"plain.png",
    b"caf\xe9 \xff.png",  # no UTF-8
    b"new\nline.png",
    b"-dash.png",
    b'it\'s "quoted".png',
    b"<script>alert(1)<b>.png",
    "\N{CAT FACE} \N{PARTY POPPER}.png".encode(),
    b"with  spaces .png",
    b"x" * 251 + b".png",
    b"~cat.png",
    b"100%s %(name)s.png",
    b"[a].png",
    b"*.png",
    b"trailing.png.",
    "\N{HEBREW LETTER ALEF}\N{RIGHT-TO-LEFT OVERRIDE}gnp.png".encode(),
]
BAD = {
    b"loop.png": "symbolic links",
    b"folder.png/below.png": "no file at this path",
    b"empty.png": "empty file",
    b"truncated.jpg": "cannot read",
    b"phone.png": "got HEIC. Install pillow-heif",
    b"https://example.com/cat.jpg": "got a URL",
    b"~root/x.png": "no file at this path",
    b"y" * 300 + b".png": "File name too long",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_timm(path)
    return load(f"timm:test_vit@{path}")


@pytest.fixture
def names(tmp_path, monkeypatch, model):
    """The odd files, in the current folder; the model is there already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNHOOK_CACHE", str(tmp_path / "cache"))
    for place in (
        "comparison.model_runs",
        "extraction.extract_maps",
        "zoo.loading",
    ):  # the last, which the others import from, last
        monkeypatch.setattr(f"attnhook.{place}.load", lambda *_, **__: model)
    photo().save("plain.png")
    content = (tmp_path / "plain.png").read_bytes()
    for name in GOOD[1:]:
        with open(name, "wb") as file:  # noqa: PTH123 (bytes)
            file.write(content)
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    photo(200, 200).save("whole.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:600])
    (tmp_path / "whole.jpg").unlink()
    (tmp_path / "phone.png").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64))
    (tmp_path / "absolute").mkdir()
    shutil.copy("plain.png", "absolute/photo.png")
    return [*map(os.fsdecode, GOOD), str(tmp_path / "absolute" / "photo.png"), *map(os.fsdecode, BAD)]


def lines(said, names):
    """What was said of each file, a line each; control characters and bytes that are no text cannot reach the terminal."""
    assert "Traceback" not in said.err + said.out
    assert all(each.isprintable() or each == "\n" for each in said.err)
    return said.err.splitlines()


def check_problems(found):
    for problem in BAD.values():
        assert any(problem in line for line in found), (problem, found)


def test_overlay(names, capsys, tmp_path):
    assert main(["overlay", "--out", "maps", "--model", "tiny", "--", *names]) == 1
    said = capsys.readouterr()
    found = lines(said, names)
    assert len(found) == len(names)
    check_problems(found[len(GOOD) + 1 :])
    assert f"{len(GOOD) + 1} of {len(names)} photos, {len(BAD)} failed: maps/manifest.json" in said.out
    entries = json.loads((tmp_path / "maps" / "manifest.json").read_bytes())["images"]
    json.dumps(entries, ensure_ascii=False).encode("utf-8")  # any reader of JSON can hold them
    assert len({entry["input"] for entry in entries}) == len(names)
    assert [entry["error"] is None for entry in entries] == [True] * (len(GOOD) + 1) + [False] * len(BAD)
    written = [path.name for path in (tmp_path / "maps").iterdir() if path.name != "manifest.json"]
    assert len(written) == len(GOOD) + 1
    assert all(len(os.fsencode(name)) <= 255 for name in written)


def test_view(names, capsys, tmp_path):
    assert main(["view", "--out", "page.html", "--model", "tiny", "--blocks", "none", "--", *names]) == 1
    said = capsys.readouterr()
    found = lines(said, names)
    assert len(found) == len(names)
    check_problems(found)
    page = (tmp_path / "page.html").read_bytes().decode("utf-8")
    assert "<script>alert" not in page
    assert "caf\\\\xe9 \\\\xff.png" in page
    assert f"{len(GOOD) + 1} of {len(names)} photos, {len(BAD)} failed: page.html" in said.out


def test_compare(names, capsys, tmp_path):
    arguments = ["--out", "report", "--model", "timm:tiny", "--no-cache", "--no-pictures", "--no-statistics"]
    assert main(["compare", *arguments, "--", *names]) == 1
    said = capsys.readouterr()
    found = lines(said, names)
    assert len(found) == len(BAD)
    check_problems(found)
    assert f"{len(GOOD) + 1} of {len(names)} photos, {len(BAD)} failed: report/report.html" in said.out
    page = (tmp_path / "report" / "report.html").read_bytes().decode("utf-8")
    assert "<script>alert" not in page
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_bytes())
    json.dumps(metrics, ensure_ascii=False).encode("utf-8")
    manifest = json.loads((tmp_path / "report" / "manifest.json").read_bytes())
    photos = [one["name"] for one in manifest["photos"]]
    assert "caf\\xe9 \\xff.png" in photos
    (table,) = (one for one in metrics["tables"] if one["id"] == "photos")
    assert {row["photo"] for row in table["rows"]} <= set(photos)  # the key of one is that of the other
    with (tmp_path / "report" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.reader(file))) > 1


def test_extract(names, capsys, tmp_path):
    from attnhook import extract, open_maps

    assert main(["extract", ".", "--out", "maps", "--model", "tiny", "--workers", "0"]) == 1
    said = capsys.readouterr()
    found = lines(said, names)
    assert len(found) == 4  # files alone: no URL, no name that no file can have
    assert any("symbolic links" in line for line in found)
    assert any("HEIC" in line for line in found)
    maps = open_maps("maps")
    for key in maps.keys:
        assert maps.photo(key).size == (90, 60)  # keys lead back to the files
        key.encode("utf-8")
    assert "caf\\xe9 \\xff.png" in maps.keys
    assert len(maps) == len(GOOD)  # without the dot's, with the one in the folder
    again = extract("tiny", [name for name in names if "\n" not in name], tmp_path / "again", num_workers=0)
    assert len(again) == len(GOOD)  # without the new line's, with the dot's
    assert len(again.errors) == len(BAD)


def test_attend(names, model):
    for name in names[: len(GOOD) + 1]:
        (result,) = attend(model, name)
        assert result.image.size == (90, 60)
    for name, problem in BAD.items():
        with pytest.raises(ImageError, match=problem.split(".")[0]) as caught:
            attend(model, os.fsdecode(name))
        assert "\n" not in str(caught.value)
        str(caught.value).encode("utf-8")
