"""A plain training loop, with the attention of four fixed images in TensorBoard.

python docs/examples/train_plain.py --out runs/plain
python docs/examples/train_plain.py --out runs/demo --model demo --steps 20    # fine-tunes DINOv2-small; needs attnhook's demo weights
tensorboard --logdir runs
"""

import torch
from digits import CLASSES, MEAN, DigitPairs, loss_of, options_of, probe_pixels, small_vit
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attnhook import AttentionMonitor, TensorBoardWriter, load


class FineTuned(nn.Module):
    """A backbone with a linear head on its class token."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = load("demo").model
        self.head = nn.Linear(self.backbone.config.hidden_size, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `(batch, 10)`."""
        return self.head(self.backbone(pixels).last_hidden_state[:, 0])


def enlarged(pixels: Tensor) -> Tensor:
    """Four pixels of a canvas are one patch of DINOv2, 14 pixels."""
    return nn.functional.interpolate(pixels, scale_factor=3.5, mode="bilinear")


def main() -> None:
    """Train."""
    options = options_of(__doc__ or "", "runs/plain", model=True)
    torch.manual_seed(0)
    demo = options.model == "demo"
    model = FineTuned() if demo else small_vit()
    prepare = enlarged if demo else nn.Identity()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5 if demo else 1e-3)
    batch = 8 if demo else 32
    loader = DataLoader(DigitPairs(batch * options.steps), batch_size=batch)

    monitor = AttentionMonitor(
        model,
        prepare(probe_pixels()),
        mean=MEAN,
        every_n_steps=options.every,
        writers=[TensorBoardWriter(options.out)],
    )
    model.train()
    for step, (pixels, targets) in enumerate(loader):
        with monitor.observe(step):  # optional: numbers of the training batch itself, under live/
            logits = model(prepare(pixels))
        loss = loss_of(logits, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if monitor.step(step):
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    monitor.close()


if __name__ == "__main__":
    main()
