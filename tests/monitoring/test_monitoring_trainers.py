"""The monitor in the loops that people train with; each run writes TensorBoard files, which are read back."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attnhook import AttentionMonitor, TensorBoardWriter
from tests.monitoring.monitored import CLASSES, SIZE, MemoryWriter, batch, probe_pixels, same, small_vit
from tests.monitoring.test_monitoring_writers import BLOCK, check_events

pytest.importorskip("tensorboard")
pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own


def loader() -> DataLoader:
    pixels, labels = zip(*(batch(step) for step in range(20)), strict=True)
    return DataLoader(TensorDataset(torch.cat(pixels), torch.cat(labels)), batch_size=8)


def monitor_of(model: nn.Module, *writers, every: int = 10, **settings) -> AttentionMonitor:
    return AttentionMonitor(model, probe_pixels(), every_n_steps=every, writers=writers, strict=True, **settings)


def test_a_plain_loop(tmp_path: Path) -> None:
    model = small_vit()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = monitor_of(model, TensorBoardWriter(tmp_path))
    for step, (pixels, labels) in enumerate(loader()):
        nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        monitor.step(step)
    monitor.close()
    check_events(tmp_path, steps=[0, 10], overlay=(192, 192))


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)  # a Trainer before in this process chose another precision
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    model = small_vit()
    model, optimizer, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader())
    monitor = monitor_of(model, TensorBoardWriter(tmp_path))
    for step, (pixels, labels) in enumerate(data):
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(pixels), labels))
            optimizer.step()
            optimizer.zero_grad()
        monitor.step(step)
    monitor.close()
    check_events(tmp_path, steps=[0, 10], overlay=(192, 192))


# --- Lightning ----------------------------------------------------------------------------------------------------------------------------


def lightning_fit(folder: Path, *writers, epochs: int, resume: str | None = None, watched: bool = True, **settings):
    lightning = pytest.importorskip("lightning.pytorch")
    from attnhook.monitoring.integrations.lightning import LightningMonitor

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_vit()

        def training_step(self, data, index):
            return nn.functional.cross_entropy(self.model(data[0]), data[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    torch.manual_seed(0)
    classifier = Classifier()
    callbacks = [LightningMonitor(monitor_of(classifier.model, *writers, **settings))] if watched else []
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, loader(), ckpt_path=resume, weights_only=True)
    return trainer, classifier.state_dict()


def test_lightning(tmp_path: Path) -> None:
    _, weights = lightning_fit(tmp_path, TensorBoardWriter(tmp_path / "events"), epochs=1)
    check_events(tmp_path / "events", steps=[0, 10, 20], overlay=(192, 192))
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    writer = MemoryWriter()
    lightning_fit(tmp_path, writer, epochs=2, resume=str(checkpoint), methods=())
    assert sorted(writer.numbers) == [30, 40]
    assert f"{BLOCK}/change" in writer.numbers[30]
    assert same(weights, lightning_fit(tmp_path / "bare", epochs=1, watched=False)[1])


# --- transformers -------------------------------------------------------------------------------------------------------------------------


class Photos(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 160

    def __getitem__(self, index: int) -> dict:
        pixels, labels = batch(index // 8)
        return {"pixel_values": pixels[index % 8], "labels": labels[index % 8]}


def transformers_fit(folder: Path, *writers, steps: int, watched: bool = True, resume: bool = False, **options):
    import transformers

    from attnhook.monitoring.integrations.transformers import TransformersMonitor

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=SIZE, patch_size=8, num_labels=CLASSES)
    transformers.set_seed(0)
    model = transformers.ViTForImageClassification(config)
    model.classifier.register_forward_hook(lambda module, _, logits: model.seen.add((module.training, logits.dtype)))
    model.seen = set()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        save_steps=10,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    callbacks = [TransformersMonitor(monitor_of(model, *writers))] if watched else []
    trainer = transformers.Trainer(model, arguments, train_dataset=Photos(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return model


def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    writer = MemoryWriter()
    model = transformers_fit(tmp_path / "run", TensorBoardWriter(tmp_path / "events"), writer, steps=20)
    (name,) = {tag.split("/")[1] for tag in writer.numbers[10] if ".1." in tag and tag.endswith("head0/entropy")}
    global_tag = f"attention/{name}"
    check_events(tmp_path / "events", steps=[0, 10, 20], overlay=(192, 192), block=global_tag)
    assert sorted(writer.numbers) == [0, 10, 20]
    assert writer.numbers[20][f"{global_tag}/change"] > 0
    assert same(model.state_dict(), transformers_fit(tmp_path / "bare", steps=20, watched=False).state_dict())
    later = MemoryWriter()
    transformers_fit(tmp_path / "run", later, steps=30, resume=True)
    assert sorted(later.numbers) == [30]
    assert f"{global_tag}/change" in later.numbers[30]


def test_the_probe_runs_in_float32_where_the_trainer_wraps_the_forward_in_autocast(tmp_path: Path) -> None:
    """accelerate replaces `model.forward` by one that turns autocast on, inside of which the probe has to turn it off."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    writer = MemoryWriter()
    try:
        watched = transformers_fit(tmp_path / "run", writer, steps=11, bf16=True)
        bare = transformers_fit(tmp_path / "bare", steps=11, watched=False, bf16=True)
    finally:
        accelerate.state.AcceleratorState._reset_state(True)
    assert sorted(writer.numbers) == [0, 10]
    assert watched.seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert same(watched.state_dict(), bare.state_dict())


@pytest.mark.parametrize("sized", [True, False])
def test_epochs_of_transformers_are_counted_without_a_length(tmp_path: Path, sized: bool) -> None:
    pytest.importorskip("accelerate")
    import transformers

    from attnhook.monitoring.integrations.transformers import TransformersMonitor

    class Epoch(torch.utils.data.Dataset if sized else torch.utils.data.IterableDataset):
        def __iter__(self):
            return (self[index] for index in range(24))

        def __getitem__(self, index):
            pixels, labels = batch(index // 8)
            return {"pixel_values": pixels[index % 8], "labels": labels[index % 8]}

    if sized:
        Epoch.__len__ = lambda self: 24
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=SIZE, patch_size=8, num_labels=CLASSES)
    model, writer = transformers.ViTForImageClassification(config), MemoryWriter()
    monitor = AttentionMonitor(model, probe_pixels(1), every_n_epochs=2, writers=[writer], methods=(), strict=True)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=13,
        per_device_train_batch_size=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
    )
    transformers.Trainer(model, arguments, train_dataset=Epoch(), callbacks=[TransformersMonitor(monitor)]).train()
    assert sorted(writer.numbers) == [6, 12]  # epochs of three steps
