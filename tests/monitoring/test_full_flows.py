"""Whole runs as people set them up: transformers, Lightning and a plain loop in two processes, with all that is usual at once, read back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from attnhook import AttentionMonitor, DirectoryWriter
from tests.monitoring.gradient_accumulation_run import STEPS
from tests.monitoring.monitored import CLASSES, SIZE, probe_pixels, same, small_vit
from tests.monitoring.test_monitoring_trainers import Photos, loader
from tests.monitoring.test_monitoring_writers import check_events
from tests.monitoring.test_training_examples import ROOT, TORCHRUN

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own


def read_back(folder: Path) -> dict[int, dict[str, float]]:
    """The numbers by step; every step has a picture, too."""
    lines = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    numbers = {line.pop("step"): line for line in lines}
    assert len(numbers) == len(lines)  # nothing was logged twice
    pictures = sorted((folder / "attention/overlay/0").iterdir())
    assert [int(path.stem.removeprefix("step-")) for path in pictures] == list(numbers)
    for path in pictures:
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 50
    assert f'"logged": {len(numbers)}' in DirectoryWriter(folder).to_html().replace('"logged":', '"logged": ').replace(
        "  ", " "
    )
    return numbers


def monitor_of(model: nn.Module, folder: Path, every: int) -> AttentionMonitor:
    options = {"every_n_steps": every, "writers": DirectoryWriter(folder), "sheets": 0, "strict": True}
    return AttentionMonitor(model, probe_pixels(1), **options)


# --- transformers -------------------------------------------------------------------------------------------------------------------------


def transformers_run(
    folder: Path, log: Path | None, *, steps: int, resume: Path | None = None
) -> tuple[nn.Module, set]:
    import transformers

    from attnhook.monitoring.integrations.transformers import TransformersMonitor

    transformers.set_seed(0)
    # Not a ViT or DINOv2: transformers 5.24 does not find the attention's weights again in their checkpoints.
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    vision = transformers.SiglipVisionConfig(**sizes, image_size=SIZE, patch_size=8, attention_dropout=0.1)
    config = transformers.SiglipConfig(vision_config=vision.to_dict(), num_labels=CLASSES)
    model, seen = transformers.SiglipForImageClassification(config), set()
    model.classifier.register_forward_hook(lambda module, _, output: seen.add((module.training, output.dtype)))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        bf16=True,
        lr_scheduler_type="constant",
        learning_rate=1e-3,
        save_steps=3,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callbacks = [] if log is None else [TransformersMonitor(monitor_of(model, log, 2))]
    trainer = transformers.Trainer(model, arguments, train_dataset=Photos(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return model, seen


def test_transformers_in_bf16_with_checkpointing_accumulation_and_resume(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    try:
        bare, _ = transformers_run(tmp_path / "bare", None, steps=6)
        through, seen = transformers_run(tmp_path / "through", tmp_path / "log", steps=6)
        transformers_run(tmp_path / "cut", tmp_path / "resumed", steps=3)
        transformers_run(tmp_path / "cut", tmp_path / "resumed", steps=6, resume=tmp_path / "cut/checkpoint-3")
    finally:
        accelerate.state.AcceleratorState._reset_state(True)
    numbers, resumed = read_back(tmp_path / "log"), read_back(tmp_path / "resumed")
    assert list(numbers) == [0, 2, 4, 6]
    assert resumed == numbers  # `change` too
    assert numbers[4]["attention/entropy"] != numbers[2]["attention/entropy"]
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert same(bare.state_dict(), through.state_dict())


# --- Lightning ----------------------------------------------------------------------------------------------------------------------------


def lightning_run(folder: Path, *, order: str) -> dict:
    """Train a compiled model with accumulated gradients; `order` is that of the callbacks."""
    lightning = pytest.importorskip("lightning.pytorch")
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    from attnhook.monitoring.integrations.lightning import LightningMonitor

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.compile(small_vit(), backend="eager")

        def training_step(self, data, index):
            return nn.functional.cross_entropy(self.model(data[0]), data[1])

        def validation_step(self, data, index):  # with the averaged weights
            self.model(data[0])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    torch._dynamo.reset()
    torch.manual_seed(0)
    classifier = Classifier()
    of = {
        "monitor": lambda: LightningMonitor(monitor_of(classifier.model, folder / "log", 2)),
        "ema": lambda: averaging.EMAWeightAveraging(decay=0.5),
    }
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=6,
        accumulate_grad_batches=2,
        val_check_interval=4,
        limit_val_batches=1,
        default_root_dir=folder,
        callbacks=[of[name]() for name in order.split()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, loader(), loader())
    return {name: value.clone() for name, value in classifier.state_dict().items()}


def test_lightning_with_averaged_weights_accumulation_and_a_compiled_model(tmp_path: Path) -> None:
    runs = {order: lightning_run(tmp_path / order, order=order) for order in ("ema", "ema monitor", "monitor ema")}
    assert same(runs["ema"], runs["ema monitor"])
    assert same(runs["ema"], runs["monitor ema"])
    lightning_run(tmp_path / "monitor", order="monitor")
    first, second, raw = (read_back(tmp_path / order / "log") for order in ("ema monitor", "monitor ema", "monitor"))
    assert list(first) == [0, 2, 4, 6]  # optimizer steps
    assert first == second == raw  # the weights that are trained, not those that are averaged
    assert first[4]["attention/entropy"] != first[2]["attention/entropy"]


# --- plain loops in two processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plain_loops_in_two_processes_of_torchrun(tmp_path: Path) -> None:
    """DDP and FSDP2, then DDP with a static graph and accumulation."""
    pytest.importorskip("tensorboard")
    here = Path(__file__).parent
    runs = [(str(here / "monitored_run.py"), how, str(tmp_path / how)) for how in ("ddp", "fsdp2")]
    runs.append((str(here / "gradient_accumulation_run.py"), str(tmp_path / "accumulated")))
    command = [sys.executable, *TORCHRUN, "tests.monitoring.scripts_run", json.dumps(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    for how in ("ddp", "fsdp2", "a static graph"):
        assert run.stdout.count(f"same to the last bit under {how}") == 2
    for how in ("ddp", "fsdp2"):
        check_events(tmp_path / how, steps=[0, 10], overlay=(192, 192))
    numbers = read_back(tmp_path / "accumulated")
    assert list(numbers) == list(range(0, STEPS, 3))
    assert numbers[6]["attention/blocks.1.attn/change"] > 0
