"""Where training starts: mistakes show there, step 0 is logged, the trained model is the one that is probed, and what is lost is said."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from attnhook import AttentionMonitor, DirectoryWriter
from attnhook.errors import ProbeError, UnsupportedModelError
from tests.monitoring.monitored import CLASSES, SIZE, MemoryWriter, batch, probe_pixels, same, small_vit
from tests.monitoring.test_monitoring_trainers import Photos, loader

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own
BLOCK = "attention/blocks.1.attn"


class WithLabels(nn.Module):
    """A model that returns its loss, and so needs labels, as many do with transformers' Trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = small_vit()

    def forward(self, pixel_values, labels):
        return {"loss": nn.functional.cross_entropy(self.vit(pixel_values), labels)}


def monitor_of(model: nn.Module, *writers, pixels: torch.Tensor | None = None, **settings) -> AttentionMonitor:
    options = {"every_n_steps": 10, "methods": ()} | settings
    return AttentionMonitor(model, probe_pixels(1) if pixels is None else pixels, writers=writers, **options)


# --- plain, transformers, Lightning -------------------------------------------------------------------------------------------------------


def plain(model: nn.Module, *monitors: AttentionMonitor, first: int = 0, steps: int = 11) -> int:
    """How many steps were trained."""
    inner, done = getattr(model, "vit", model), 0
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    try:
        for step in range(first, first + steps):
            pixels, labels = batch(step)
            for monitor in monitors:
                monitor.step(step)
            nn.functional.cross_entropy(inner(pixels), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
    except ProbeError as error:
        error.done = done
        raise
    return done


def transformers_trainer(
    folder: Path, model, *monitors: AttentionMonitor, steps: int = 11, add: bool = False, **options
):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from attnhook.monitoring.integrations.transformers import TransformersMonitor

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        save_steps=10,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **options,
    )
    made = {"model": model} if isinstance(model, nn.Module) else {"model_init": model}
    return transformers.Trainer(
        args=arguments, train_dataset=Photos(), callbacks=[TransformersMonitor(one) for one in monitors], **made
    )


def lightning_fit(
    folder: Path, model: nn.Module, *monitors: AttentionMonitor, steps: int = 11, others=(), resume=None, **options
):
    lightning = pytest.importorskip("lightning.pytorch")
    from attnhook.monitoring.integrations.lightning import LightningMonitor

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.trained = model, 0

        def training_step(self, data, index):
            self.trained += 1
            return nn.functional.cross_entropy(getattr(self.model, "vit", self.model)(data[0]), data[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        default_root_dir=folder,
        callbacks=[*others, *(LightningMonitor(one) for one in monitors)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    classifier = Classifier()
    try:
        trainer.fit(classifier, loader(), ckpt_path=resume, weights_only=True)
    except ProbeError as error:
        error.done = classifier.trained
        raise
    return trainer


def run(loop: str, folder: Path, model: nn.Module, *monitors: AttentionMonitor) -> None:
    if loop == "plain":
        plain(model, *monitors, first=1)  # counted from 1: no step is due until 10
    elif loop == "transformers":
        transformers_trainer(folder, model, *monitors).train()
    else:
        lightning_fit(folder, model, *monitors)


LOOPS = ("plain", "transformers", "lightning")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "wrong, expected",
    [
        ("labels", r"got TypeError: .*missing 1 required positional argument: 'labels'\. Pass the inner model"),
        (
            "size",
            r"to run on pixels \(1, 3, 48, 48\), got GeometryError: .*48.* images of the size that it is trained on",
        ),
    ],
)
def test_a_probe_that_cannot_run_is_an_error_at_the_start(loop: str, wrong: str, expected: str, tmp_path: Path) -> None:
    model = WithLabels()
    writer = MemoryWriter()
    pixels = None if wrong == "labels" else torch.randn(1, 3, 48, 48)
    monitor = monitor_of(model if wrong == "labels" else model.vit, writer, pixels=pixels)
    with pytest.raises(ProbeError, match=f"^attention probe failed at step [01]: expected .*{expected}") as said:
        run(loop, tmp_path, model, monitor)
    assert "model_kwargs={...}" in str(said.value)
    assert getattr(said.value, "done", 0) == 0
    assert not writer.numbers


@pytest.mark.parametrize("loop", LOOPS)
def test_the_remedies_help_and_step_0_is_logged(loop: str, tmp_path: Path) -> None:
    model = WithLabels()
    whole, inner = MemoryWriter(), MemoryWriter()
    monitors = (
        monitor_of(model, whole, model_kwargs={"labels": torch.zeros(1, dtype=torch.long)}),
        monitor_of(model.vit, inner),
    )
    if loop == "plain":
        plain(model, *monitors)
    else:
        run(loop, tmp_path, model, *monitors)
    for writer, name in ((whole, "attention/vit.blocks.1.attn"), (inner, BLOCK)):
        assert sorted(writer.numbers) == [0, 10]
        assert writer.numbers[10][f"{name}/change"] > 0
    assert whole.numbers[10]["attention/entropy"] == inner.numbers[10]["attention/entropy"]


def test_a_later_failure_after_a_trial_stops_no_training() -> None:
    model = small_vit()
    monitor = monitor_of(model)
    assert not monitor.step(1)  # tried, not logged
    model.blocks[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.warns(
        UserWarning, match=r"^attention probe failed at step 10: .* ZeroDivisionError: .*Training goes on"
    ):
        monitor.step(10)


def test_step_0_where_only_epochs_are_logged(tmp_path: Path) -> None:
    """The probe is tried, and nothing is logged."""
    writer, model = MemoryWriter(), small_vit()
    lightning_fit(tmp_path, model, monitor_of(model, writer, every_n_steps=None, every_n_epochs=1), steps=20)
    assert sorted(writer.numbers) == [20]
    with pytest.raises(ProbeError):
        lightning_fit(tmp_path, model, monitor_of(WithLabels(), writer, every_n_steps=None, every_n_epochs=1))


def test_fast_dev_run_tries_the_monitor(tmp_path: Path) -> None:
    writer, model = MemoryWriter(), small_vit()
    lightning_fit(tmp_path, model, monitor_of(model, writer), fast_dev_run=True)
    assert sorted(writer.numbers) == [0]
    with pytest.raises(ProbeError):
        lightning_fit(tmp_path, model, monitor_of(WithLabels()), fast_dev_run=True)


# --- the model that is trained ------------------------------------------------------------------------------------------------------------


def vit_for_images() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=SIZE, patch_size=8, num_labels=CLASSES)
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize("part", ["whole", "inner"])
def test_the_model_of_model_init_is_the_one_that_is_probed(part: str, tmp_path: Path, caplog) -> None:
    writer, made = MemoryWriter(), []

    def model_init():
        made.append(vit_for_images())
        return made[-1]

    passed = vit_for_images()
    monitor = monitor_of(passed if part == "whole" else passed.vit, writer)
    trainer = transformers_trainer(tmp_path, model_init, monitor, learning_rate=1e-3)
    trainer.train()
    assert len(made) == 2  # one for the constructor, another one for training
    assert monitor.models[""] is (made[1] if part == "whole" else made[1].vit)
    said = [record.getMessage() for record in caplog.records if record.name == "attnhook"]
    kind = "ViTForImageClassification" if part == "whole" else "ViTModel"
    assert [kind in one and "in also=" in one for one in said] == [True]  # it may have been an average on purpose
    (tag,) = (tag for tag in writer.numbers[10] if ".1." in tag and tag.endswith("/change") and "head" not in tag)
    assert writer.numbers[10][tag] > 0
    after = MemoryWriter()
    monitor_of(monitor.models[""], after).step(0)
    assert after.numbers[0]["attention/entropy"] != writer.numbers[0]["attention/entropy"]


def test_a_trainer_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    trainer = transformers_trainer(tmp_path, vit_for_images(), monitor_of(small_vit()))
    with pytest.raises(
        UnsupportedModelError, match="does not train the monitor's model: expected one VisionTransformer"
    ):
        trainer.train()


# --- several callbacks --------------------------------------------------------------------------------------------------------------------


def state_of(monitor: AttentionMonitor) -> dict:
    state = monitor.state_dict()
    return {name: state[name] for name in ("last_step", "rows")}


def test_two_monitors_in_one_lightning_trainer_keep_their_states(tmp_path: Path) -> None:
    model = small_vit()
    first, second = monitor_of(model, MemoryWriter()), monitor_of(model, MemoryWriter(), every_n_steps=4)
    trainer = lightning_fit(tmp_path, model, first, second)
    assert (sorted(first._writers._writers[0].numbers), first.state_dict()["last_step"]) == ([0, 10], 10)
    assert second.state_dict()["last_step"] == 8
    checkpoint = tmp_path / "last.ckpt"
    trainer.save_checkpoint(checkpoint)
    again = monitor_of(model, MemoryWriter()), monitor_of(model, MemoryWriter(), every_n_steps=4)
    lightning_fit(tmp_path, model, *again, steps=11, resume=checkpoint)
    assert same([state_of(one) for one in again], [state_of(first), state_of(second)])
    assert not any(one._writers._writers[0].numbers for one in again)


def test_two_monitors_in_one_trainer_of_transformers_keep_their_states(tmp_path: Path) -> None:
    model = vit_for_images()
    first, second = monitor_of(model), monitor_of(model, every_n_steps=7)
    transformers_trainer(tmp_path, model, first, second).train()
    again = monitor_of(model, MemoryWriter()), monitor_of(model, MemoryWriter(), every_n_steps=7)
    transformers_trainer(tmp_path, model, *again).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-11")
    )  # trains one step more
    assert same([state_of(one) for one in again], [state_of(first), state_of(second)])
    assert not any(one._writers._writers[0].numbers for one in again)


# --- resuming -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [False, True])
def test_transformers_resumed_into_another_folder(told: bool, tmp_path: Path) -> None:
    transformers_trainer(tmp_path / "old", vit_for_images(), monitor_of(vit_for_images())).train()
    checkpoint, writer = str(tmp_path / "old" / "checkpoint-10"), MemoryWriter()
    monitor = monitor_of(vit_for_images(), writer)
    options = {"resume_from_checkpoint": checkpoint} if told else {}
    trainer = transformers_trainer(tmp_path / "new", vit_for_images(), monitor, steps=20, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train(resume_from_checkpoint=checkpoint)
    lost = [str(one.message) for one in said if "the monitor begins anew" in str(one.message)]
    assert len(lost) == (not told)
    assert told or "TrainingArguments(resume_from_checkpoint=...)" in lost[0]
    assert sorted(writer.numbers) == ([20] if told else [10, 20])


def test_lightning_says_that_a_checkpoint_has_no_state(tmp_path: Path) -> None:
    model = small_vit()
    lightning_fit(tmp_path, model).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="training continues at step 11, but the monitor begins anew"):
        lightning_fit(tmp_path, model, monitor_of(model), steps=12, resume=tmp_path / "last.ckpt")


def test_a_state_before_the_first_logged_step_is_a_state(tmp_path: Path) -> None:
    model = small_vit()
    settings = {"every_n_steps": None, "every_n_epochs": 3}
    lightning_fit(tmp_path, model, monitor_of(model, **settings)).save_checkpoint(tmp_path / "last.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "training continues")
        lightning_fit(tmp_path, model, monitor_of(model, **settings), steps=12, resume=tmp_path / "last.ckpt")


def test_a_new_log_folder_names_its_probe_and_repeats_no_picture(tmp_path: Path) -> None:
    model = small_vit()
    settings = {"methods": ("raw_attention",), "sheets": 0}
    first = monitor_of(model, DirectoryWriter(tmp_path / "old"), **settings)
    plain(model, first)
    for folder in ("old", "new"):
        resumed = monitor_of(model, DirectoryWriter(tmp_path / folder), **settings)
        resumed.load_state_dict(first.state_dict())
        plain(model, resumed, first=8, steps=13)
    logged = {
        folder: [path.name for path in sorted((tmp_path / folder / "attention/overlay/0").iterdir())]
        for folder in ("old", "new")
    }
    assert logged["new"] == ["step-00000020.jpg"]
    assert logged["old"] == ["step-00000000.jpg", "step-00000010.jpg", "step-00000020.jpg"]
    (text,) = (tmp_path / "new" / "texts.jsonl").read_text().splitlines()
    assert first.digest in text
    assert DirectoryWriter(tmp_path / "old").to_html().count(first.digest) == 1


@pytest.mark.parametrize("name", ["scalars.jsonl", "texts.jsonl"])
@pytest.mark.parametrize("lost, left", [(1, 1), (5, "cut")])  # only the end of the line, or more
def test_a_line_that_a_crash_cut_off_swallows_no_step(name: str, lost: int, left: object, tmp_path: Path) -> None:
    def write(step: int) -> None:
        writer = DirectoryWriter(tmp_path)
        writer.scalars({"a": float(step)}, step)
        writer.text("t", "text", step)

    def step_of(line: str) -> object:
        try:
            return json.loads(line)["step"]
        except ValueError:
            return "cut"

    write(0)
    write(1)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-lost])
    write(2)
    assert [step_of(line) for line in path.read_text().splitlines()] == [0, left, 2]
