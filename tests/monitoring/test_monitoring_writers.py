"""What the monitor logs, alarms, state, writers that fail; TensorBoard, directories and Weights & Biases read back."""

import errno
import io
import json
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook import AlarmThresholds, AttentionMonitor, DirectoryWriter, MlflowWriter, TensorBoardWriter, WandbWriter
from attnhook.attribution.row_measures import row_divergence
from attnhook.attribution.summaries import raise_alarms, summarise_block
from attnhook.capture.anatomy import Readout
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import BlockAttention
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import GeometryError, MissingPackageError, NoReadoutError
from attnhook.imaging.geometry import ImageGeometry
from tests.monitoring.monitored import SIZE, MemoryWriter, batch, probe_pixels, scale_queries, small_vit

BLOCK = "attention/blocks.1.attn"
TAGS = ("entropy", "relative_entropy", "distance", "sink_mass", "head_diversity")
ALARMS = ("entropy_collapse", "dead_heads", "attention_sink", "not_finite")


def logged(model=None, **settings) -> MemoryWriter:
    writer = MemoryWriter()
    AttentionMonitor(model or small_vit(), probe_pixels(), writers=[writer], strict=True, **settings).step(0)
    return writer


# --- what is logged -----------------------------------------------------------------------------------------------------------------------


def test_tags_are_stable() -> None:
    writer = logged(also={"ema": small_vit()})
    numbers = writer.numbers[0]
    assert {f"{BLOCK}/{kind}" for kind in TAGS} <= numbers.keys()
    assert {f"ema/{BLOCK}/head3/{kind}" for kind in ("entropy", "distance", "sink_mass")} <= numbers.keys()
    assert {f"attention/alarms/{name}" for name in ALARMS} <= numbers.keys()
    assert {"attention/entropy", "ema/attention/relative_entropy"} <= numbers.keys()
    assert len(numbers) == 2 * (2 * (len(TAGS) + 4 * 3) + len(ALARMS) + 2)
    tags = {"attention/overlay/0", "attention/overlay/1", "attention/heads/0"}
    assert {tag for tag, _ in writer.pictures} == tags | {f"ema/{tag}" for tag in tags}
    ((tag, text, step),) = writer.texts
    assert (tag, step) == ("attention/probe", 0)
    assert text.endswith(AttentionMonitor(small_vit(), probe_pixels(), writers=()).digest)


def test_change_is_the_divergence_from_the_last_logged_step() -> None:
    model, writer = small_vit(), MemoryWriter()
    monitor = AttentionMonitor(model, probe_pixels(), writers=[writer], methods=())
    monitor.step(0)
    monitor.step(1)
    scale_queries(model)
    monitor.step(2)
    assert f"{BLOCK}/change" not in writer.numbers[0]
    assert writer.numbers[1][f"{BLOCK}/change"] == 0
    heads = [writer.numbers[2][f"{BLOCK}/head{k}/change"] for k in range(4)]
    assert min(heads) > 0
    assert writer.numbers[2][f"{BLOCK}/change"] == pytest.approx(sum(heads) / 4)
    assert not writer.pictures


def test_photos_are_drawn_true_and_only_where_the_model_looked() -> None:
    photo = Image.new("RGB", (96, 64), (200, 40, 40))

    def preprocess(image):
        geometry = ImageGeometry.identity((64, 96)).resize((32, 48)).center_crop((32, 32))
        return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), geometry

    model, writer = small_vit(), MemoryWriter()
    scale_queries(model)
    AttentionMonitor(model, [photo, photo], preprocess=preprocess, writers=[writer], scale="robust").step(0)
    picture = writer.pictures["attention/overlay/1", 0]
    assert picture.size[0] == 192  # twice as large
    assert 128 < picture.size[1] < 192  # with a colour bar
    assert picture.getpixel((10, 60)) == (209, 113, 113)  # left of the crop: 40% of the way to a grey of 222
    assert picture.getpixel((31, 60)) == (96, 96, 96)  # the frame
    inside = np.asarray(picture)[:128, 32:160].reshape(-1, 3)
    untouched = (inside == (200, 40, 40)).all(-1)
    assert 0.3 < untouched.mean() < 0.8  # what is colder than the median
    assert len(np.unique(inside, axis=0)) > 20
    with pytest.raises(ValueError, match="pass preprocess="):
        AttentionMonitor(torch.nn.Sequential(small_vit()), [photo], writers=())
    for one_or_several, count in ((photo, 1), (iter([photo, photo]), 2)):
        assert len(AttentionMonitor(small_vit(), one_or_several, preprocess=preprocess, writers=())._probe) == count


def test_pixels_are_drawn_with_mean_and_std() -> None:
    grey = torch.zeros(1, 3, SIZE, SIZE)
    writer = MemoryWriter()
    monitor = AttentionMonitor(small_vit(), grey, mean=(0.5, 0.25, 0.0), std=0.5, writers=[writer], scale=(9.0, 10.0))
    monitor.step(0)
    assert monitor._probe.photos[0].getpixel((3, 3)) == (128, 64, 0)
    for wrong in (torch.zeros(3, SIZE, SIZE), torch.zeros(0, 3, SIZE, SIZE)):
        with pytest.raises(GeometryError, match=r"expected pixels \(batch, 3"):
            AttentionMonitor(small_vit(), wrong, writers=())
    with pytest.raises(GeometryError, match=r"got a mapping with pixel_values\. Pass its pixels"):
        AttentionMonitor(small_vit(), {"pixel_values": grey}, writers=())


def test_methods_and_models_without_a_readout() -> None:
    import timm

    writer = logged(methods=("raw_attention", "rollout"))
    assert ("attention/rollout/1", 0) in writer.pictures
    with pytest.raises(ValueError, match="'rollout'"):
        AttentionMonitor(small_vit(), probe_pixels(), methods=("gradcam",), writers=())
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=2, embed_dim=12, depths=(1, 1, 1, 1)
    )
    with pytest.raises(NoReadoutError, match="received_attention"):
        AttentionMonitor(swin, probe_pixels(), writers=())
    writer = logged(swin, methods=("received_attention",))
    assert ("attention/heads/0", 0) in writer.pictures
    assert writer.numbers[0]["attention/alarms/entropy_collapse"] == 0


def test_weights_of_values_are_drawn_on_a_scale_of_their_own() -> None:
    methods = ("raw_attention", "value_weighted_attention")
    assert ("attention/value_weighted_attention/1", 0) in logged(methods=methods, scale="minmax").pictures
    with pytest.raises(ValueError, match=r"expected a map of attention, got one of value_weighted_attention"):
        AttentionMonitor(small_vit(), probe_pixels(), methods=methods, writers=())


def test_epochs() -> None:
    writer = MemoryWriter()
    monitor = AttentionMonitor(small_vit(), probe_pixels(), every_n_epochs=2, writers=[writer], methods=())
    assert not any(monitor.step(step) for step in range(10))
    assert [monitor.end_epoch(epoch, 10 * (epoch + 1)) for epoch in range(4)] == [False, True, False, True]
    assert sorted(writer.numbers) == [20, 40]
    for wrong in ({"every_n_steps": 0}, {"every_n_epochs": -1}):
        with pytest.raises(ValueError, match="expected at least 1"):
            AttentionMonitor(small_vit(), probe_pixels(), **wrong, writers=())


def test_one_number_per_model_is_the_mean_over_blocks_heads_rows_and_images() -> None:
    model, writer = small_vit().eval(), MemoryWriter()
    scale_queries(model)
    AttentionMonitor(model, probe_pixels(), writers=[writer], methods=()).step(0)
    inputs: list[torch.Tensor] = []
    hooks = [block.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in model.blocks]
    with torch.no_grad():
        model(probe_pixels())
    for hook in hooks:
        hook.remove()
    entropies = []
    for block, x in zip(model.blocks, inputs, strict=True):
        weight, bias = block.attn.qkv.weight.double(), block.attn.qkv.bias.double()
        heads = (x.double() @ weight.T + bias).reshape(2, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)
        rows = torch.softmax(heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(8), dim=-1)
        entropies.append(-(rows * rows.log()).sum(-1))
    expected = torch.stack(entropies).mean().item()
    assert 0.3 < expected < 2.8
    assert writer.numbers[0]["attention/entropy"] == pytest.approx(expected, abs=1e-5)
    assert writer.numbers[0]["attention/relative_entropy"] == pytest.approx(expected / math.log(17), abs=1e-5)
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[:32] = math.nan  # queries; no mean is better than one of the other block
    AttentionMonitor(model, probe_pixels(), writers=[writer], methods=()).step(1)
    assert "attention/entropy" not in writer.numbers[1]
    assert writer.numbers[1]["attention/alarms/not_finite"] == 1


# --- alarms -------------------------------------------------------------------------------------------------------------------------------


def alarms_of(writer: MemoryWriter, step: int) -> dict[str, float]:
    return {name: writer.numbers[step][f"attention/alarms/{name}"] for name in ALARMS}


def test_healthy_training_raises_nothing_and_a_collapsed_model_does() -> None:
    torch.manual_seed(0)
    model, writer = small_vit(drop_rate=0.0, attn_drop_rate=0.0), MemoryWriter()
    monitor = AttentionMonitor(model, probe_pixels(8), every_n_steps=10, writers=[writer], methods=())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(201):
        monitor.step(step)
        pixels, labels = batch(step)
        with monitor.observe(step):
            loss = torch.nn.functional.cross_entropy(model(pixels), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.6  # it learnt something: 1.39 is chance
    for step in writer.numbers:
        assert not any(alarms_of(writer, step).values())
        assert not any(writer.numbers[step][f"live/attention/alarms/{name}"] for name in ALARMS)
    scale_queries(model)
    AttentionMonitor(model, probe_pixels(8), writers=[writer], methods=()).step(999)
    assert alarms_of(writer, 999)["entropy_collapse"] >= 1


def test_vit_small_as_timm_initialises_it() -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", depth=3)
    pixels = torch.randn(1, 3, 224, 224)
    writer = MemoryWriter()
    monitor = AttentionMonitor(model, pixels, writers=[writer], methods=())
    monitor.step(0)
    assert not any(alarms_of(writer, 0).values())
    scale_queries(model)
    monitor.step(1)
    assert alarms_of(writer, 1)["entropy_collapse"] == 3


def summary_of(matrix: torch.Tensor):
    block = BlockAttention("b", "softmax", SoftmaxMatrix(matrix), TokenLayout((4, 4)))
    return summarise_block(block, Readout("cls", "first token"))


def test_rules_of_the_alarms() -> None:
    uniform = torch.full((2, 4, 17, 17), 1 / 17)
    limits = AlarmThresholds()
    assert raise_alarms([summary_of(uniform)], limits) == dict.fromkeys(ALARMS, 0)
    one_hot = torch.eye(17).expand(2, 4, 17, 17)
    assert raise_alarms([summary_of(one_hot)], limits) == {**dict.fromkeys(ALARMS, 0), "entropy_collapse": 1}
    dead = uniform.clone()
    dead[:, 1] = 0.0
    dead[:, 1, :, 0] = 1.0  # all on the class token
    assert raise_alarms([summary_of(dead)], limits) == {**dict.fromkeys(ALARMS, 0), "dead_heads": 1}
    sink = torch.full((2, 4, 17, 17), 0.4 / 16)
    sink[..., 5] = 0.6
    assert raise_alarms([summary_of(sink)], limits) == {**dict.fromkeys(ALARMS, 0), "attention_sink": 1}
    broken = dead.clone()
    broken[0, 0, 3, 3] = math.nan  # in one head of four: the dead one beside it does not count
    assert raise_alarms([summary_of(broken)], limits) == {**dict.fromkeys(ALARMS, 0), "not_finite": 1}
    with pytest.raises(ValueError, match="bad threshold sink_share: expected 0 to 1"):
        AlarmThresholds(sink_share=1.5)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="bad threshold sink_ratio: expected above 0"):
            AlarmThresholds(sink_ratio=bad)


def test_summary_numbers_by_hand() -> None:
    uniform = summary_of(torch.full((2, 4, 17, 17), 1 / 17))
    torch.testing.assert_close(uniform.relative_entropy, torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(uniform.head_diversity) == pytest.approx(0, abs=1e-9)
    assert float(uniform.sink_mass[0]) == pytest.approx(1 / 17)
    halves = row_divergence(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 0.5, 0.0]))
    assert float(halves) == pytest.approx(0.2157615, abs=1e-6)


# --- state --------------------------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = small_vit()
    first, second, fresh = (MemoryWriter() for _ in range(3))
    monitor = AttentionMonitor(model, probe_pixels(), every_n_steps=5, writers=[first], methods=())
    for step in range(11):
        monitor.step(step)
        with monitor.observe(step):
            model(probe_pixels())
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    scale_queries(model)
    resumed = AttentionMonitor(model, probe_pixels(), every_n_steps=5, writers=[second], methods=())
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(8, 16):
        resumed.step(step)
        with resumed.observe(step):
            model(probe_pixels())
    assert sorted(first.numbers) == [0, 5, 10]
    assert sorted(second.numbers) == [15]
    assert [step for *_, step in second.texts] == [15]  # perhaps in another folder
    assert second.numbers[15][f"{BLOCK}/change"] > 0
    other = AttentionMonitor(model, probe_pixels(1), writers=[fresh], methods=())
    other.load_state_dict(monitor.state_dict())
    other.step(20)
    assert f"{BLOCK}/change" not in fresh.numbers[20]  # other images, other rows


# --- writers that fail --------------------------------------------------------------------------------------------------------------------


class FullDisk(MemoryWriter):
    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def scalars(self, values, step):
        if len(self.numbers) >= self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().scalars(values, step)


def test_a_failing_writer_is_reported_once_and_the_others_go_on() -> None:
    full, other = FullDisk(2), MemoryWriter()
    monitor = AttentionMonitor(small_vit(), probe_pixels(), writers=[full, other], methods=())
    monitor.step(0)
    monitor.step(1)
    with pytest.warns(UserWarning, match=r"FullDisk could not write at step 2: OSError: .*No space left on device"):
        monitor.step(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.step(3)
        full.room = 9
        monitor.step(4)
    assert sorted(full.numbers) == [0, 1, 4]  # nothing lost, and tried again
    assert sorted(other.numbers) == [0, 1, 2, 3, 4]
    monitor.close()
    assert other.closed


def test_strict_raises() -> None:
    with pytest.raises(OSError, match="No space left"):
        AttentionMonitor(small_vit(), probe_pixels(), writers=[FullDisk(0)], strict=True).step(0)
    with pytest.raises(TypeError, match="expected a writer"):
        AttentionMonitor(small_vit(), probe_pixels(), writers=["runs"])


def test_a_directory_on_a_full_disk_keeps_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = DirectoryWriter(tmp_path)
    writer.scalars({"a": 1.0}, 0)
    from attnhook.monitoring.integrations import directory

    def half(file, line):
        file.write(line[: len(line) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(directory, "_write_whole", half)
        with pytest.raises(OSError, match="No space"):
            writer.scalars({"a": 2.0}, 1)
    writer.scalars({"a": 3.0}, 2)
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "a": 1.0}, {"step": 2, "a": 3.0}]


@pytest.mark.parametrize(
    "kind, package", [(TensorBoardWriter, "tensorboard"), (WandbWriter, "wandb"), (MlflowWriter, "mlflow")]
)
def test_a_missing_library_is_an_error_at_construction(kind, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.split(".")[0] == package or name.startswith("torch.utils.tensorboard")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf'pip install "\.\[{package}\]"'):
        kind("here") if package == "tensorboard" else kind()


# --- read back ----------------------------------------------------------------------------------------------------------------------------


def watched_steps(writer, steps: int = 2) -> AttentionMonitor:
    monitor = AttentionMonitor(small_vit(), probe_pixels(), writers=[writer], strict=True)
    for step in range(steps):
        monitor.step(10 * step)
    monitor.close()
    return monitor


def check_events(folder: Path, *, steps: list[int], overlay: tuple[int, int], block: str = BLOCK) -> None:
    """Read TensorBoard files back: numbers, and pictures that are pictures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars(f"{block}/head0/entropy")] == steps
    assert [event.value for event in events.Scalars("attention/alarms/dead_heads")] == [0.0] * len(steps)
    assert [event.step for event in events.Images("attention/overlay/0")] == steps
    for tag in ("attention/overlay/1", "attention/heads/0"):
        event = events.Images(tag)[-1]
        picture = Image.open(io.BytesIO(event.encoded_image_string))
        assert (picture.format, picture.size) == ("JPEG", (event.width, event.height))
        assert len(picture.convert("RGB").getcolors(2**24)) > 50
        assert tag != "attention/overlay/1" or (picture.width == overlay[0] and picture.height > overlay[1])


def test_tensorboard_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    watched_steps(TensorBoardWriter(tmp_path))
    check_events(tmp_path, steps=[0, 10], overlay=(192, 192))


def test_directory_read_back(tmp_path: Path) -> None:
    monitor = watched_steps(DirectoryWriter(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10]
    assert monitor.digest in (tmp_path / "texts.jsonl").read_text()
    with Image.open(tmp_path / "attention/overlay/0/step-00000010.jpg") as picture:
        assert (picture.format, picture.width) == ("JPEG", 192)
        assert picture.height > 192  # with a colour bar
    assert not list(tmp_path.rglob("*.partial"))


def wandb_records(file: Path):
    """The records of a run's file: a log of LevelDB's format, in blocks of 32 KiB, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:  # no room for a header: padding
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    watched_steps(WandbWriter(project="tests", dir=str(tmp_path), mode="offline"))
    (file,) = tmp_path.rglob("*.wandb")
    found: dict[str, list] = {}
    for _ in range(100):  # its own process may write a moment after finish() came back
        if any(record.WhichOneof("record_type") == "exit" for record in wandb_records(file)):
            break
        time.sleep(0.1)
    for record in wandb_records(file):
        for item in record.history.item:
            key = item.key or "/".join(item.nested_key)
            found.setdefault(key, []).append(json.loads(item.value_json))
    assert len(found[f"{BLOCK}/entropy"]) == 2
    assert {0, 10} <= set(found["attention/step"])
    assert found["attention/overlay/0/width"] == [192, 192]
    assert len(list(tmp_path.rglob("*.jpg"))) == 6


def test_one_writer_a_summary_writer_and_none(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    model = small_vit()
    with pytest.raises(ValueError, match="would log nothing: expected writers, got none"):
        AttentionMonitor(model, probe_pixels())
    AttentionMonitor(model, probe_pixels(), writers=DirectoryWriter(tmp_path / "log"), sheets=0).step(0)
    assert (tmp_path / "log" / "scalars.jsonl").read_text()
    own = SummaryWriter(str(tmp_path / "events"))
    monitor = AttentionMonitor(model, probe_pixels(), writers=own, sheets=0)
    monitor.step(0)
    monitor.close()
    own.add_scalar("mine", 1.0, 0)  # it is left open
    own.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert "mine" in events.Tags()["scalars"]
    assert any(tag.endswith("/entropy") for tag in events.Tags()["scalars"])


def photos_of_skimage() -> list[Image.Image]:
    data = pytest.importorskip("skimage.data")
    return [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee")]


@pytest.mark.parametrize("size", [None, (3000, 2000)])
@pytest.mark.parametrize("kind", [DirectoryWriter, TensorBoardWriter])
def test_three_photos_cost_at_most_300_kb_a_log(kind, size, tmp_path: Path) -> None:
    from torchvision import transforms

    photos = [photo if size is None else photo.resize(size) for photo in photos_of_skimage()]
    steps = [transforms.Resize(224), transforms.CenterCrop(224), transforms.ToTensor()]
    model = small_vit(img_size=224, patch_size=16, embed_dim=96, num_heads=12)
    scale_queries(model)
    monitor = AttentionMonitor(model, photos, preprocess=transforms.Compose(steps), writers=kind(tmp_path), strict=True)
    monitor.step(0)
    before = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    monitor.step(1)
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) - before
    assert 100_000 < written <= 300_000
    monitor.close()


def test_how_to_see_all_images_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    from attnhook.monitoring.integrations import tensorboard

    tensorboard._say_how_to_see_all.cache_clear()
    watched_steps(TensorBoardWriter(tmp_path / "first"))
    watched_steps(TensorBoardWriter(tmp_path / "second"))
    said = [record for record in caplog.records if "--samples_per_plugin images=" in record.message]
    assert [record.name for record in said] == ["attnhook"]


def test_a_closed_summary_writer_still_takes_pictures(tmp_path: Path) -> None:
    """As `add_scalar` and `add_image` of torch's own do: it opens another file."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    own = SummaryWriter(str(tmp_path))
    own.close()
    TensorBoardWriter(own).image("a", Image.new("RGB", (20, 10), (255, 0, 0)), 3)
    own.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Images("a")
    assert (event.step, event.width, event.height) == (3, 20, 10)


def test_the_advice_about_writers_promises_no_values():
    model = small_vit()
    with pytest.raises(ValueError, match=r"writers=\(\) to log nothing on purpose\.$"):
        AttentionMonitor(model, probe_pixels())
    assert AttentionMonitor(model, probe_pixels(), writers=()).step(0) is True  # whether it was due, no values
