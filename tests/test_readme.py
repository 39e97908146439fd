"""The README's Python, run in one namespace as it is; its size, and the models that a reader puts in."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from tests.documents import ROOT, blocks_of

README = ROOT / "README.md"
MOST_BYTES = 11_000
CODE = [block.code for block in blocks_of(README) if block.language == "python"]
FOUR_LINES, SETUP, *REST = CODE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str, names: dict) -> None:
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 (our own README)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def mean_difference(drawn: Path, shown: Path) -> float:
    with Image.open(drawn) as one, Image.open(shown) as other:
        return float(np.abs(np.asarray(one.convert("RGB"), float) - np.asarray(other, float)).mean())


@pytest.mark.slow
def test_all_of_it_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {"__name__": "readme", "loader": [(None, None)]}
    for code in (SETUP, FOUR_LINES, *REST):
        run(code, names)
    for picture in ("attention.png", "overlay.png", "patches.png"):
        assert size_of(folder / picture) == (600, 400)
    for name in (
        "attention",
        "patches",
    ):  # docs/gallery.py made the README's pictures of the same code: `make pictures`
        assert mean_difference(folder / f"{name}.png", ROOT / "docs" / "pictures" / f"{name}.jpg") < 4
    assert names["last"].shape == (1, 6, 1370, 1370)
    printed = capsys.readouterr().out
    assert "CLS to patches, block 12 of 12, mean of 6 heads, centre crop" in printed
    assert "demo:timm@224" in printed
    assert list((folder / "runs" / "1").glob("events.out.tfevents.*"))
    assert (folder / "report" / "report.html").stat().st_size > 10_000
    for picture in ("figure.png", "blocks.png", "comparison.png"):
        assert (folder / picture).stat().st_size > 10_000


def test_the_four_lines_with_a_timm_model_and_a_transform_of_your_own(folder: Path) -> None:
    names = {
        "model": timm.create_model("test_vit").eval(),
        "transform": transforms.Compose([transforms.Resize(180), transforms.CenterCrop(160), transforms.ToTensor()]),
        "photo": Image.new("RGB", (451, 300), "red"),
    }
    run(FOUR_LINES, names)
    assert len(FOUR_LINES.strip().splitlines()) == 6  # with `import torch` and an empty line
    assert names["logits"].shape == (1, 1000)
    assert size_of(folder / "attention.png") == (451, 300)


def test_the_loop_writes_a_log_that_tensorboard_reads(folder: Path) -> None:
    (loop,) = [code for code in REST if "TensorBoardWriter" in code]
    Image.new("RGB", (200, 160), "red").save("coffee.jpg")
    model = timm.create_model("test_vit", num_classes=10)
    names = {
        "model": model,
        "transform": transforms.Compose([transforms.Resize((160, 160)), transforms.ToTensor()]),
        "loader": [(torch.rand(2, 3, 160, 160), torch.arange(2))] * 101,
    }
    run(loop, names)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator("runs/1")
    events.Reload()
    assert [event.step for event in events.Images("attention/overlay/0")] == [0, 100]


def test_it_is_short() -> None:
    assert README.stat().st_size <= MOST_BYTES
