"""Names of modules and models may hold any character: no tag is lost, none leaves the log, and no two become one."""

import json
import posixpath
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from attnhook import AttentionMonitor, DirectoryWriter, MlflowWriter, TensorBoardWriter, WandbWriter
from attnhook.monitoring.writers import safe_tag
from tests.monitoring.monitored import MemoryWriter, probe_pixels, small_vit

ODD = (
    "a@b",
    "a(b",
    "a)b",
    "a#b",
    "a\\b",
    "a b",
    "a:b",
    "a*b",
    "a\nb",
    "..",
    ".",
    "",
    ".a",
    "a.",
    "ä\u0301",
    "\ud800",
    "x" * 300,
)


def oddly_named() -> nn.Module:
    """A ViT whose blocks have the names `@0(a)` and `@0#a`: both would be `_0_a_`."""
    model = small_vit()
    model.blocks = nn.Sequential()
    for name, block in zip(("@0(a)", "@0#a)"), small_vit().blocks, strict=True):
        model.blocks.add_module(name, block)
    return model


def monitor_of(*writers, **also: nn.Module) -> AttentionMonitor:
    others = {"../up": small_vit(), "a@b": small_vit(), "a(b": small_vit(), **also}
    return AttentionMonitor(
        oddly_named(), probe_pixels(1), writers=writers, also=others, blocks=lambda _: True, sheets=0, strict=True
    )


def test_tags_are_safe_and_kept_apart() -> None:
    tags = {f"{name}/attention/{block}/entropy" for name in ODD for block in ODD}
    safe = {safe_tag(tag) for tag in tags}
    assert len(safe) == len(tags)
    for tag in safe:
        assert posixpath.normpath(tag) == tag
        assert not tag.startswith(("/", ".."))
        assert not set(tag) & set('@()#\\ :*?"<>|\n')
        assert max(len(part.encode()) for part in tag.split("/")) <= 150
        assert safe_tag(tag) == tag
    for usual in (
        "attention/blocks.11.attn/head3/sink_mass",
        "live/attention/vit.encoder.layer.0.attention.attention/x",
    ):
        assert safe_tag(usual) == usual


def logged() -> MemoryWriter:
    writer = MemoryWriter()
    monitor_of(writer).step(0)
    return writer


def test_a_directory_loses_nothing_and_nothing_leaves_it(tmp_path: Path) -> None:
    expected = logged()
    monitor_of(DirectoryWriter(tmp_path / "log" / "run")).step(0)
    DirectoryWriter(tmp_path / "log" / "run").image("../../up", Image.new("RGB", (4, 4)), 0)
    lines = (tmp_path / "log/run/scalars.jsonl").read_text().splitlines()  # one per model
    assert len({tag for line in lines for tag in json.loads(line)} - {"step"}) == len(expected.numbers[0])
    pictures = list(tmp_path.rglob("*.jpg"))
    assert len(pictures) == len(expected.pictures) + 1
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["run"]
    assert "attention/" in DirectoryWriter(tmp_path / "log" / "run").to_html()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_takes_every_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    expected, uri = logged(), (tmp_path / "mlruns").as_uri()
    writer = MlflowWriter(tracking_uri=uri)
    monitor_of(writer).step(0)
    run = mlflow.MlflowClient(tracking_uri=uri).get_run(writer.run_id)
    assert len(run.data.metrics) == len(expected.numbers[0])
    assert len(list((tmp_path / "mlruns").rglob("artifacts/**/*.jpg"))) == len(expected.pictures)


def test_tensorboard_takes_every_tag(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    expected = logged()
    monitor = monitor_of(TensorBoardWriter(tmp_path))
    monitor.step(0)
    monitor.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert len(events.Tags()["scalars"]) == len(expected.numbers[0])
    assert len(events.Tags()["images"]) == len(expected.pictures)


@pytest.mark.filterwarnings("ignore")
def test_wandb_takes_every_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    expected = logged()
    monitor = monitor_of(WandbWriter(project="tests", dir=str(tmp_path), mode="offline"))
    monitor.step(0)
    monitor.close()
    assert len(list(tmp_path.rglob("files/media/images/**/*.jpg"))) == len(expected.pictures)
