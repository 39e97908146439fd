"""The command line, in this process, with a tiny model from a file."""

import gc
import json
import re
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

import attnhook
from attnhook import VisionModel, attend
from attnhook.cli import main
from attnhook.errors import GeometryError
from attnhook.zoo.loading import SPEC_FORMS
from tests.pages.scenes import swin
from tests.zoo.saved_models import photo, save_timm


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_timm(path)
    return f"timm:test_vit@{path}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    photo().save("cat.png")
    photo(80, 60).save("other/cat.jpg")
    (tmp_path / "bad.png").write_bytes((tmp_path / "cat.png").read_bytes()[:60])
    return tmp_path


def test_one_corrupt_image_does_not_stop_the_others(spec, folder, capsys):
    arguments = ["overlay", "cat.png", "bad.png", "other/cat.jpg", "--model", spec, "--out", "maps", "--heads", "1"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "[2/3] bad.png: cannot read" in said.err
    assert "2 of 3 photos, 1 failed: maps/manifest.json" in said.out
    manifest = json.loads((folder / "maps/manifest.json").read_text())
    first, bad, third = manifest["images"]
    assert manifest["failed"] == 1
    assert manifest["settings"]["heads"] == 1
    assert manifest["versions"]["attnhook"] == attnhook.__version__
    assert all(manifest["versions"].values())
    assert bad["output"] is None
    assert "bad.png" in bad["error"]
    assert [first["output"], third["output"]] == ["cat-attention.png", "cat-attention-2.png"]
    assert first["photo_size"] == [60, 90]
    assert first["error"] is None
    assert first["grid"] == [10, 10]
    assert 0 <= first["min"] < first["max"] <= 1
    assert 0 < first["outside"] < 1
    assert sorted(path.name for path in (folder / "maps").iterdir()) == [
        "cat-attention-2.png",
        "cat-attention.png",
        "manifest.json",
    ]
    with Image.open(folder / "maps/cat-attention-2.png") as picture:
        assert picture.size == (60, 80)


def test_a_name_cannot_steer_the_terminal(spec, folder, capsys):
    name = "cat\x1b]0;owned\x07\x1b[2J.png"
    (folder / "cat.png").rename(folder / name)
    assert main(["overlay", name, "bad\x9b2J.png", "--model", spec, "--out", "maps"]) == 1
    said = capsys.readouterr()
    assert "[1/2] cat\N{REPLACEMENT CHARACTER}]0;owned" in said.err
    assert "[2/2] bad\N{REPLACEMENT CHARACTER}2J.png: cannot read" in said.err
    assert all(each.isprintable() or each == "\n" for each in said.err + said.out)
    assert json.loads((folder / "maps/manifest.json").read_text())["images"][0]["input"] == name


def test_rollout_needs_no_other_option(spec, folder):
    assert main(["overlay", "cat.png", "--model", spec, "--out", "maps", "--method", "rollout"]) == 0
    manifest = json.loads((folder / "maps/manifest.json").read_text())
    assert manifest["settings"]["method"] == "rollout"
    assert manifest["images"][0]["grid"] == [10, 10]


@pytest.mark.parametrize("content", ['{"format": "attnhook-extraction-1"}', "[]", "no JSON"])
def test_a_folder_of_something_else_is_left_alone(spec, folder, capsys, content):
    (folder / "maps").mkdir()
    (folder / "maps/manifest.json").write_text(content)
    assert main(["overlay", "cat.png", "--model", spec, "--out", "maps"]) == 2
    assert "expected an empty folder, or one with overlays, got a manifest of format" in capsys.readouterr().err
    assert [path.read_text() for path in (folder / "maps").iterdir()] == [content]


@pytest.mark.parametrize(
    ("style", "option"),
    [
        ("contours", ("alpha", "0.8")),
        ("mask", ("colormap", "magma")),
        ("mask", ("scale", "uniform")),
        ("mask", ("mode", "nearest")),
        ("patches", ("mode", "nearest")),
    ],
)
def test_options_that_a_style_does_not_take_are_refused(folder, capsys, style, option):
    name, value = option
    assert main(["overlay", "cat.png", "--model", "demo:none", "--style", style, f"--{name}", value]) == 2
    assert f"style '{style}' does not take {name}: expected one of" in capsys.readouterr().err


def test_an_input_is_never_overwritten(spec, folder):
    photo().save("cat-attention.png")
    before = (folder / "cat-attention.png").read_bytes()
    assert main(["overlay", "cat.png", "cat-attention.png", "--model", spec, "--out", "."]) == 0
    assert (folder / "cat-attention.png").read_bytes() == before
    assert (folder / "cat-attention-2.png").exists()


@pytest.mark.parametrize(
    "options",
    [["--rows", "2,3", "--scale", "uniform"], ["--scale", "0,0.5", "--block", "blocks.0.attn"], ["--scale", "robust"]],
)
@pytest.mark.usefixtures("folder")
def test_options_reach_the_map(spec, options):
    assert main(["overlay", "cat.png", "--model", spec, *options]) == 0


@pytest.mark.parametrize("target", ["281", "tabby"])
@pytest.mark.parametrize("method", ["gradient_rollout", "gradient_attention", "legrad"])
def test_a_class_reaches_the_map(spec, folder, method, target):
    assert main(["overlay", "cat.png", "--model", spec, "--method", method, "--target", target, "--out", "maps"]) == 0
    manifest = json.loads((folder / "maps/manifest.json").read_text())
    (entry,) = manifest["images"]
    assert "tabby" in str(entry["target"])
    assert entry["outside"] is None
    assert manifest["settings"]["target"] == (281 if target == "281" else target)


@pytest.mark.parametrize(
    "options",
    [
        ["--heads", "99"],
        ["--block", "99"],
        ["--block", "nowhere"],
        ["--colormap", "virids"],
        ["--alpha", "7"],
        ["--scale", "2,1"],
        ["--method", "grad_cam"],
        ["--rows", "pool"],
        ["--target", "281"],
        ["--method", "gradient_rollout", "--target", "9999"],
        ["--method", "gradient_rollout", "--target", "no such class"],
        ["--method", "legrad", "--scale", "uniform"],
        ["--method", "legrad", "--heads", "max"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("folder")
def test_bad_options_take_one_line(spec, options, capsys):
    assert main(["overlay", "cat.png", "--model", spec, *options]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("attnhook overlay: error: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("options", [["--heads", "most"], ["--rows", "1"], ["--scale", "log"], ["--mode", "cubic"]])
def test_misspelt_options_leave_with_two(options, capsys):
    with pytest.raises(SystemExit) as left:
        main(["overlay", "cat.png", *options])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_unknown_model(capsys):
    assert main(["describe", "--model", "timm:no_such_vit"]) == 2
    assert "no_such_vit" in capsys.readouterr().err


def test_describe(spec, capsys):
    assert main(["describe", "--model", spec]) == 0
    said = capsys.readouterr().out
    assert "blocks.0.attn" in said
    assert "10 x 10 patches" in said


@pytest.mark.parametrize(
    "command", [[], ["demo"], ["overlay"], ["describe"]], ids=lambda words: " ".join(words) or "all"
)
def test_help_has_examples_and_defaults(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "examples:\n  attnhook " in said
    assert not command or "(default: " in said


def test_help_lists_every_form_of_a_spec(capsys):
    with pytest.raises(SystemExit):
        main(["describe", "--help"])
    listed = " ".join(capsys.readouterr().out.split()).partition("one of ")[2].partition(" (default")[0]
    assert listed.split(", ") == list(SPEC_FORMS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"attnhook {attnhook.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completions_know_commands_and_options(shell, capsys):
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", shell])
    assert left.value.code == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("overlay", "describe", "verify", "compare", "colormap"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_bash_completes_commands_options_and_files(folder, capsys):
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = capsys.readouterr().out + (
        'complete_words() { COMP_WORDS=(attnhook "$@"); COMP_CWORD=$#; COMPREPLY=(); _shtab_attnhook; echo "${COMPREPLY[*]}"; }\n'
        "complete_words ove; complete_words overlay --sca; complete_words overlay ca\n"
    )
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)  # noqa: S607 (the user's bash)
    assert done.stdout.split() == ["overlay", "--scale", "cat.png"]


def test_completions_without_their_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", "bash"])
    assert left.value.code == 2
    assert 'expected the package shtab. Run `pip install ".[completion]"` in a clone.' in capsys.readouterr().err


def test_python_runs_the_package():
    done = subprocess.run([sys.executable, "-m", "attnhook", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"attnhook {attnhook.__version__}\n"


def test_view_goes_on_at_an_odd_photo_and_keeps_no_captures(spec, folder, capsys, monkeypatch):
    kept = []

    def attend_to(model, image, **options):
        gc.collect()
        assert all(one() is None for one in kept)
        if "cat.jpg" in image:
            raise GeometryError("an odd photo")
        found = attend(model, image, **options)
        kept.append(weakref.ref(found[0].maps))
        return found

    monkeypatch.setattr("attnhook.results.results.attend", attend_to)
    photo().save("dog.png")
    arguments = ["view", "cat.png", "other/cat.jpg", "dog.png", "--model", spec, "--out", "cat.html"]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "[2/3] other/cat.jpg: an odd photo" in said.err
    assert "2 of 3 photos, 1 failed: " in said.out
    assert main([*arguments, "--blocks", "99"]) == 2
    assert "unknown block 99" in capsys.readouterr().err


@pytest.mark.parametrize("blocks", ["auto", "none", "all", "0,-1", "last:2"])
def test_view_writes_one_page_and_counts(spec, folder, capsys, blocks):
    assert main(["view", "cat.png", "bad.png", "--model", spec, "--out", "cat.html", "--blocks", blocks]) == 1
    said = capsys.readouterr()
    assert "[2/2] bad.png: cannot read" in said.err
    assert "1 of 2 photos, 1 failed: cat.html" in said.out
    assert "cat.png" in (folder / "cat.html").read_text()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["cat.png", "--out", "nowhere/cat.html"], "expected nowhere to exist"),
        (["cat.html", "--out", "cat.html"], "cat.html is one of the images: expected another name"),
        (
            ["cat.png", "--out", "view.png"],
            "cannot write 'view.png': expected a name that ends in .html, or a folder, got .png. Change",
        ),
        (
            ["cat.png", "--out", "view"],
            "cannot write 'view': expected a name that ends in .html, or a folder, got no suffix.",
        ),
        (["bad.png", "--out", "bad.html"], "expected at least one image, got none of 1"),
        (["cat.png", "--longest", "12"], "expected a number of pixels, at least 16, got '12'"),
    ],
)
def test_view_says_what_it_cannot_do(spec, folder, capsys, arguments, words):
    photo().save("cat.html", format="png")
    try:
        code = main(["view", *arguments, "--model", spec])
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert words in capsys.readouterr().err
    assert not (folder / "bad.html").exists()


@pytest.mark.parametrize("out", ["other", "new/pages/", "other/cat.HTM"])
def test_view_takes_a_file_or_a_folder(spec, folder, capsys, out):
    assert main(["view", "cat.png", "--model", spec, "--out", out]) == 0
    path = folder / (out if out.endswith("HTM") else f"{out}/view.html")
    assert f"1 photo: {path.relative_to(folder)}, {path.stat().st_size / 1e6:.2f} MB" in capsys.readouterr().out


def test_view_refuses_a_suffix_before_it_loads_a_model(folder, capsys):
    assert main(["view", "cat.png", "--model", "timm:no_such_model", "--out", "view.pdf"]) == 2
    assert "got .pdf. Change the suffix, or end the name in / for a folder." in capsys.readouterr().err


def test_view_draws_a_windowed_model(folder, capsys, monkeypatch):
    transform = transforms.Compose([transforms.Resize((64, 64)), transforms.ToTensor()])
    monkeypatch.setattr("attnhook.zoo.loading.load", lambda *_, **__: VisionModel(swin(), transform, name="swin"))
    assert main(["view", "cat.png", "--model", "swin"]) == 0
    assert "[1/1] cat.png: 8 x 8 patches" in capsys.readouterr().err
    header = json.loads(re.search(r'id="header">(.*?)</script>', (folder / "view.html").read_text())[1])
    blocks = header["scenes"][0]["blocks"]
    assert [block["grid"] for block in blocks] == [[16, 16]] * 2 + [[8, 8]] * 2
    assert all("received" in block and "rows" not in block for block in blocks)
    assert main(["view", "cat.png", "--model", "swin", "--blocks", "none"]) == 2
    assert "received_attention" in capsys.readouterr().err


def test_an_interrupted_command_says_so(folder, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("attnhook.zoo.loading.load", interrupted)
    assert main(["describe"]) == 130
    assert capsys.readouterr().err == "attnhook describe: interrupted\n"


@pytest.mark.parametrize("kind", ["overlay", "figure", "pdf", "svg", "heatmap", "npy", "npz"])
def test_what_is_written_can_be_chosen(spec, folder, kind):
    assert main(["overlay", "cat.png", "--model", spec, "--as", kind, "--out", "maps"]) == 0
    (entry,) = json.loads((folder / "maps/manifest.json").read_text())["images"]
    path, result = folder / "maps" / entry["output"], attend(spec, photo())[0]
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name, "manifest.json"]
    if kind == "overlay":
        assert Image.open(path).tobytes() == result.overlay().tobytes()
    elif kind == "figure":
        with Image.open(path) as figure:
            assert figure.width > 1000
    elif kind in ("pdf", "svg"):
        assert path.read_bytes().startswith({"pdf": b"%PDF", "svg": b"<?xml"}[kind])
    elif kind == "npy":
        assert np.array_equal(np.load(path), result.heatmap.numpy(), equal_nan=True)
    elif kind == "npz":
        assert np.array_equal(np.load(path)["values"], result.attention.numpy())
    else:  # over the photo, the transparent map gives the overlay
        layer = Image.open(path)
        laid = np.asarray(Image.alpha_composite(photo().convert("RGBA"), layer).convert("RGB")).astype(int)
        assert layer.mode == "RGBA"
        assert np.abs(laid - np.asarray(result.overlay(fade=0))).max() <= 1


def test_a_figure_has_no_style_of_overlays(spec, folder, capsys):
    assert main(["overlay", "cat.png", "--model", spec, "--figure", "--style", "mask"]) == 2
    assert "--style mask is for overlays: expected --as overlay, got --as figure" in capsys.readouterr().err


def test_the_look_of_the_command_line_is_that_of_python(spec, folder):
    look = [
        "--no-weighted",
        "--fade",
        "0",
        "--crop",
        "seen",
        "--alpha",
        "0.5",
        "--colormap",
        "viridis",
        "--scale",
        "minmax",
    ]
    assert main(["overlay", "cat.png", "--model", spec, "--out", "maps", *look]) == 0
    expected = attend(spec, photo())[0].overlay(
        weighted=False, fade=0, crop="seen", alpha=0.5, colormap="viridis", scale="minmax"
    )
    assert Image.open(folder / "maps/cat-attention.png").tobytes() == expected.tobytes()
    assert (
        main(
            [
                "overlay",
                "cat.png",
                "--model",
                spec,
                "--out",
                "masks",
                "--style",
                "mask",
                "--keep",
                "0.3",
                "--smallest",
                "2",
            ]
        )
        == 0
    )
    expected = attend(spec, photo())[0].overlay(style="mask", keep=0.3, smallest=2)
    assert Image.open(folder / "masks/cat-attention.png").tobytes() == expected.tobytes()
