"""Lightning, with the attention of four fixed images in TensorBoard.

python docs/examples/train_lightning.py --out runs/lightning
tensorboard --logdir runs
"""

import torch
from digits import MEAN, DigitPairs, loss_of, options_of, probe_pixels, small_vit
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from attnhook import AttentionMonitor, TensorBoardWriter
from attnhook.monitoring.integrations.lightning import LightningMonitor


class Digits(LightningModule):
    """Learns which two digits are in an image."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small_vit()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        pixels, targets = batch
        return loss_of(self.model(pixels), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    """Train."""
    options = options_of(__doc__ or "", "runs/lightning")
    torch.manual_seed(0)
    digits = Digits()
    monitor = AttentionMonitor(
        digits.model,
        probe_pixels(),
        mean=MEAN,
        every_n_steps=options.every,
        writers=[TensorBoardWriter(options.out)],
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        callbacks=[LightningMonitor(monitor)],
        default_root_dir=options.out,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(digits, DataLoader(DigitPairs(32 * options.steps), batch_size=32))


if __name__ == "__main__":
    main()
