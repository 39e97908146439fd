"""`attnhook compare` in this process, with tiny models from files."""

import json

import numpy as np
import pytest
from PIL import Image

from attnhook.cli import main
from tests.zoo.saved_models import photo, save_hf, save_timm


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_timm(folder / "tiny.safetensors")
    save_hf(folder / "vit")
    return [f"timm:test_vit@{folder / 'tiny.safetensors'}", f"hf:{folder / 'vit'}"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNHOOK_CACHE", str(tmp_path / "cache"))
    photo().save("cat.png")
    photo(80, 60).save("dog.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "cat.png").read_bytes()[:60])
    (tmp_path / "masks").mkdir()
    mask = np.zeros((60, 90), np.uint8)
    mask[20:40, 30:60] = 255
    Image.fromarray(mask).save("masks/cat.png")
    (tmp_path / "masks" / "cat.txt").write_text("no picture")
    return tmp_path


def models(specs):
    return [word for spec in specs for word in ("--model", spec)]


def test_a_report(specs, folder, capsys):
    arguments = ["compare", "cat.png", "dog.png", *models(specs), "--out", "out", "--masks", "masks"]
    assert main([*arguments, "--method", "raw_attention", "--method", "rollout", "--depth", "0.5", "--depth", "1"]) == 0
    said = capsys.readouterr()
    assert "2 models; 2 photos: out/report.html" in said.out
    assert "photo/s" not in said.err  # no bar outside a terminal
    metrics = json.loads((folder / "out/metrics.json").read_text())
    objects = next(table for table in metrics["tables"] if table["id"] == "objects")
    assert {row["view"] for row in objects["rows"][:-1]} == {"raw_attention", "raw_attention@0.5", "rollout"}
    assert {row["pointing"]["n"] for row in objects["rows"]} == {1}
    assert list((folder / "cache" / "comparisons").rglob("*.safetensors"))


def test_what_fails_is_said_and_the_others_are_done(specs, folder, capsys):
    arguments = [
        "compare",
        "cat.png",
        "bad.png",
        *models(specs[:1]),
        "--model",
        "timm:no_such",
        "--no-pictures",
        "--no-cache",
    ]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "bad.png: reading: cannot read" in said.err
    assert "timm:no_such: loading: timm has no model" in said.err
    assert "1 of 2 models, 1 failed; 1 of 2 photos, 1 failed: " in said.out
    assert not (folder / "cache").exists()
    assert not (folder / "attnhook-report" / "overlays").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cat.png"], "expected --model SPEC"),
        (["--model", "demo"], "at least one IMAGE"),
        (["cat.png", "--preset", "best"], "unknown preset"),
        (["cat.png", "--model", "demo", "--masks", "nowhere"], "expected a folder"),
        (["dog.png", "--model", "demo", "--masks", "masks"], "such as dog.png"),
        (["cat.png", "--model", "demo", "--depth", "2"], "relative depths"),
        (["cat.png", "--model", "demo", "--method", "legrad", "--heads", "1"], "'legrad' takes the mean over heads"),
        (["cat.png", "--model", "demo", "--method", "gradcam"], "unknown method"),
        (["bad.png", "--model", "demo"], "no photo could be read"),
    ],
)
def test_commands_that_cannot_be_done(folder, capsys, arguments, words):
    assert main(["compare", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_heads(specs, folder, capsys):
    arguments = ["compare", "cat.png", *models(specs[:1]), "--heads", "1", "--heads=-1", "--heads", "max"]
    assert main([*arguments, "--no-pictures"]) == 0
    manifest = json.loads((folder / "attnhook-report" / "manifest.json").read_text())
    assert manifest["settings"]["heads"] == [1, -1, "max"]
    assert manifest["settings"]["views"] == [f"raw_attention-{name}" for name in ("head1", "head-1", "max")]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--models", "demo"], "unrecognized arguments: --models demo; did you mean --model?"),
        (["--heads", "sum"], "expected one of 'mean', 'max', 'min', got 'sum'. Or give one head's index."),
    ],
)
def test_a_wrong_option_is_answered_with_the_right_one(asked, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "cat.png", *asked])
    assert words in capsys.readouterr().err


def test_presets_are_listed(capsys):
    assert main(["compare", "--presets"]) == 0
    said = capsys.readouterr().out
    assert "registers: Do register tokens" in said
    assert "  hf:facebook/dinov2-with-registers-small" in said


def tiny_stand_ins(folder):
    """What the hub would give for the presets' names: the same kinds of models, small, with random weights, in directories and files of the
    hub's layout."""
    import transformers

    def hf(kind, **settings):
        def made(name):
            where = folder / name.replace("/", "-")
            save_hf(where, kind, **settings)
            return f"hf:{where}"

        return made

    def timm(name):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            save_timm(path)
        return f"timm:test_vit@{path}"

    kinds = {
        "facebook/dinov2-with-registers": hf(
            transformers.Dinov2WithRegistersForImageClassification, num_register_tokens=4
        ),
        "facebook/dinov2": hf(transformers.Dinov2ForImageClassification),
        "google/vit": hf(transformers.ViTForImageClassification),
        "facebook/dino": hf(transformers.ViTForImageClassification),
        "openai/clip": hf(transformers.ViTForImageClassification),
    }

    def stand_in(spec):
        library, _, name = spec.partition(":")
        return (
            timm(name)
            if library == "timm"
            else next(make for start, make in kinds.items() if name.startswith(start))(name)
        )

    return stand_in


@pytest.mark.parametrize("preset", ["registers", "supervised-vs-ssl", "sizes"])
def test_a_preset_from_its_names_to_its_report(preset, folder, monkeypatch, capsys):
    from attnhook.comparison import model_runs
    from attnhook.zoo.loading import load
    from attnhook.zoo.presets import PRESETS

    stand_in = tiny_stand_ins(folder)
    monkeypatch.setattr(model_runs, "load", lambda spec, device=None: load(stand_in(spec), device=device))
    assert main(["compare", "cat.png", "dog.png", "--preset", preset, "--no-pictures"]) == 0
    specs = PRESETS[preset].specs
    assert f"{len(specs)} models; 2 photos: " in capsys.readouterr().out
    metrics = json.loads((folder / "attnhook-report" / "metrics.json").read_text())
    models = next(table for table in metrics["tables"] if table["id"] == "models")
    assert [row["model"] for row in models["rows"]] == list(specs)
    if preset == "registers":
        assert [row["tokens"] for row in models["rows"]] == [101, 101, 17, 21]
