"""What the command line answers when it was used otherwise than meant: before a model is loaded, in one line, with the way on."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from attnhook import attend
from attnhook.cli import main
from attnhook.errors import ImageError
from attnhook.zoo.loading import SPEC_FORMS
from attnhook.zoo.presets import PRESETS
from tests.zoo.saved_models import photo, save_timm


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_timm(path)
    return f"timm:test_vit@{path}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNHOOK_CACHE", str(tmp_path / "cache"))
    photo().save("cat.png")
    (tmp_path / "photos" / "below").mkdir(parents=True)
    photo(80, 60).save("photos/dog.png")
    photo(70, 60).save("photos/below/eel.jpg")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture
def no_model(monkeypatch):
    """A test in which a model is loaded fails."""

    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    for place in ("comparison.model_runs", "extraction.extract_maps", "zoo.loading"):
        monkeypatch.setattr(f"attnhook.{place}.load", loaded)


def answer(arguments, capsys):
    """The exit code and the line on stderr."""
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return code, said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("overlay cat.png --modle demo", "did you mean --model? (see attnhook overlay --help)"),
        ("overlay cat.png --blocks 3", "did you mean --block? (see attnhook overlay --help)"),
        ("view cat.png --blokcs all", "did you mean --blocks? (see attnhook view --help)"),
        ("compare cat.png --methods rollout", "did you mean --method? (see attnhook compare --help)"),
        ("extract photos --out maps --batchsize=3", "did you mean --batch-size? (see attnhook extract --help)"),
        ("describe --devise cpu", "did you mean --device? (see attnhook describe --help)"),
        ("demos", "did you mean demo? (see attnhook --help)"),
        ("overlay cat.png --style masks", "did you mean mask? (see attnhook overlay --help)"),
        ("overlay cat.png -dash.png", "did you mean ./-dash.png? (see attnhook overlay --help)"),
        ("overlay cat.png --zzz", "unrecognized arguments: --zzz (see attnhook overlay --help)"),
    ],
)
def test_a_misspelling_is_answered_with_what_is_near(folder, no_model, capsys, arguments, words):
    photo().save("-dash.png")
    code, said = answer(arguments.split(), capsys)
    assert code == 2
    assert words in said


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("facebook/dinov2-small", "Did you mean 'hf:facebook/dinov2-small'?"),
        ("demos", "Did you mean 'demo'?"),
        ("tim:vit_base_patch16_224", "Did you mean 'timm:vit_base_patch16_224'?"),
        ("photos", "Did you mean 'hf:photos'?"),
        ("open_clip:ViT-B-32", "expected open_clip:ViT-B-32/TAG with one of the tags openai"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_spec_that_is_none_is_answered_with_what_is_near(capsys, spec, words):
    assert words in answer(["describe", "--model", spec], capsys)[1]


@pytest.mark.parametrize("command", ["overlay", "view", "compare", "extract"])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("*.jpg", "expected"),
        ("nowhere/", "got no"),
        ("empty", "expected"),
        ("https://example.com/cat.jpg", "got a URL"),
        ("nowhere.png", "got no"),
    ],
)
def test_sources_without_photos_are_a_sentence_and_no_folder(folder, no_model, capsys, command, source, words):
    (folder / "empty").mkdir()
    before = sorted(folder.rglob("*"))
    out = ["--out", "made/page.html" if command == "view" else "made"]
    if command == "view":
        (folder / "made").mkdir()
        before = sorted(folder.rglob("*"))
    try:
        code = main([command, source, "--model", "demo", *out])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert code == 2
    assert words in said or "got nothing" in said
    assert not any(sign in said for sign in "{}")
    assert 1 <= said.count("\n") <= 2
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["overlay", "compare", "extract", "view"])
@pytest.mark.parametrize("out", ["cat.png/below", "x" * 300, "made/" + "x" * 300, "/proc/nowhere/maps"])
@pytest.mark.usefixtures("no_model")
def test_impossible_folders_are_refused_first(folder, capsys, command, out):
    before = sorted(folder.rglob("*"))
    code, said = answer([command, "cat.png", "--model", "demo", "--out", out + "/" * (command == "view")], capsys)
    assert code == 2
    assert "cannot write to" in said
    assert "[Errno" not in said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("folder")
def test_a_page_of_an_impossible_name_is_refused_first(no_model, capsys):
    code, said = answer(["view", "cat.png", "--model", "demo", "--out", "x" * 300 + ".html"], capsys)
    assert code == 2
    assert "expected a name of at most 255 bytes, got 305" in said


def test_a_page_of_another_suffix_is_refused_in_python(spec, folder):
    (result,) = attend(spec, "cat.png")
    for name in ("page.png", "page", "page.html.txt"):
        with pytest.raises(ValueError, match=r"cannot write .*: expected a name that ends in \.html"):
            result.to_html(name)
    assert not list(folder.glob("page*"))
    with pytest.raises(ValueError, match=r"expected a name that ends in \.html, got no suffix\. Change the suffix\.$"):
        result.to_html("pages/")
    result.to_html("page.HTM")
    assert (folder / "page.HTM").stat().st_size > 1000


@pytest.mark.parametrize("source", ["photos", "photos/**/*.[pj]*g", "photos/"])
def test_folders_and_globs_are_their_photos(spec, folder, capsys, source):
    assert main(["overlay", source, "cat.png", "--model", spec, "--out", "maps"]) == 0
    entries = json.loads((folder / "maps" / "manifest.json").read_text())["images"]
    assert [entry["input"] for entry in entries] == ["photos/below/eel.jpg", "photos/dog.png", "cat.png"]
    assert main(["view", source, "--model", spec, "--blocks", "none"]) == 0
    assert main(["compare", source, "--model", spec, "--no-pictures", "--no-statistics"]) == 0
    assert capsys.readouterr().out.endswith("1 model; 2 photos: attnhook-report/report.html\n")
    assert [one.image.size for one in attend(spec, source)] == [(60, 70), (60, 80)]
    assert [one.image.size for one in attend(spec, ["cat.png", source])] == [(90, 60), (60, 70), (60, 80)]


def test_photos_of_one_name_have_their_folders_in_the_viewer(spec, folder):
    (folder / "other").mkdir()
    shutil.copy(folder / "photos" / "dog.png", folder / "other" / "dog.png")
    assert main(["view", "photos/dog.png", "other/dog.png", "cat.png", "--model", spec, "--blocks", "none"]) == 0
    page = (folder / "view.html").read_text()
    assert [name in page for name in ('"photos/dog.png"', '"other/dog.png"', '"cat.png"')] == [True] * 3
    assert '"dog.png"' not in page


@pytest.mark.usefixtures("folder", "no_model")
def test_an_empty_name_is_not_the_current_folder(tmp_path, capsys):
    for command in ("overlay", "view", "compare"):
        with pytest.raises(SystemExit):
            main([command, ""])
        assert "expected a path, got an empty one. The current folder is '.'." in capsys.readouterr().err
    assert main(["extract", "", "--out", str(tmp_path / "out")]) != 0
    assert "got an empty path" in capsys.readouterr().err
    for photos in ("", ["cat.png", ""]):
        with pytest.raises(ImageError, match="expected a path, got an empty one"):
            attend("demo", photos)


@pytest.mark.usefixtures("folder")
def test_a_glob_without_matches_is_an_error_in_python(spec):
    with pytest.raises(ImageError, match=r"no photos: expected files that match '\*\.tiff', got none"):
        attend(spec, "*.tiff")


@pytest.mark.usefixtures("folder", "no_model")
def test_a_missing_photo_is_noticed_first_in_python():
    for photos in ("nowhere.png", ["cat.png", "nowhere.png"]):
        with pytest.raises(
            ImageError, match=r"cannot read nowhere\.png: expected an image file, got no file at this path"
        ):
            attend("demo", photos)


def test_a_name_that_the_terminal_cannot_write(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("attnhook.zoo.presets.PRESETS", {"caf\u00e9 \udcff\x1b[2J": PRESETS["registers"]})
    assert main(["compare", "--presets"]) == 0
    assert written.getvalue().startswith(b"caf\\xe9 \\ufffd\\ufffd[2J: ")
    assert sys.stdout.errors == "strict"  # as it was


def test_an_out_that_the_terminal_cannot_write(spec, folder):
    out = "caf\u00e9"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "attnhook", "overlay", "cat.png", "--model", spec, "--out", out],
        env=ascii_only, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1 photo: caf\\xe9/manifest.json\n"
    assert (folder / out / "manifest.json").is_file()


@pytest.mark.parametrize("arguments", ["--help", "compare --presets"])
def test_a_reader_that_leaves_early(arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "attnhook", *arguments.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `head` does once it has its lines
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() in (0, 141)  # argparse swallows the error of its help
    assert error == b""


@pytest.mark.parametrize("command", ["extract", "overlay", "describe"])
def test_a_device_that_is_none(folder, capsys, command):
    arguments = {"extract": ["photos", "--out", "maps"], "overlay": ["cat.png"], "describe": []}[command]
    code, said = answer([command, *arguments, "--model", "demo", "--device", "foo"], capsys)
    assert code == 2
    assert "cannot use the device 'foo': expected a device that is available here" in said


@pytest.mark.parametrize("command", ["overlay", "view", "extract", "describe", "verify"])
def test_help_lists_every_form_of_a_model(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join(SPEC_FORMS)} (default: demo)" in words
