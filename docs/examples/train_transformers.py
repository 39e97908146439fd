"""transformers' Trainer, with the attention of four fixed images in TensorBoard.

python docs/examples/train_transformers.py --out runs/transformers
tensorboard --logdir runs
"""

import torch
from digits import CANVAS, CLASSES, MEAN, PATCH, DigitPairs, options_of, probe_pixels
from torch import Tensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from attnhook import AttentionMonitor, TensorBoardWriter
from attnhook.monitoring.integrations.transformers import TransformersMonitor


def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A batch with the names that the model knows."""
    pixels, targets = zip(*items, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.stack(targets)}


def main() -> None:
    """Train."""
    options = options_of(__doc__ or "", "runs/transformers")
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=CANVAS,
        patch_size=PATCH,
        hidden_size=48,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_labels=CLASSES,
        problem_type="multi_label_classification",
    )
    model = ViTForImageClassification(config)
    monitor = AttentionMonitor(
        model,
        probe_pixels(),
        mean=MEAN,
        every_n_steps=options.every,
        writers=[TensorBoardWriter(options.out)],
    )
    arguments = TrainingArguments(
        output_dir=str(options.out / "checkpoints"),
        max_steps=options.steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=collate,
        train_dataset=DigitPairs(32 * options.steps),
        callbacks=[TransformersMonitor(monitor)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
