"""What the examples share: images with two of scikit-learn's digits, a small ViT that learns to name both, and the options of the scripts."""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import Dataset

CANVAS, DIGIT, PATCH, CLASSES = 32, 12, 4, 10
MEAN = 0.5
"""What is subtracted from the pixels: the monitor needs it to draw them."""


class DigitPairs(Dataset[tuple[Tensor, Tensor]]):
    """Canvases with two digits of different classes, each in its own quarter, aligned to patches.

    Args:
        count: How many canvases.
        seed: Another seed gives other canvases.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        data = load_digits()
        images = torch.from_numpy(data.images).float()[:, None] / 16
        self.images = nn.functional.interpolate(images, size=(DIGIT, DIGIT), mode="bilinear")[:, 0]
        self.labels = torch.from_numpy(data.target)
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Pixels `(3, 32, 32)` from -0.5 to 0.5, and targets `(10,)`: 1 for the classes in the image."""
        if not 0 <= index < self.count:
            raise IndexError(f"no canvas {index}: expected 0 to {self.count - 1}.")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        first, second = torch.randint(len(self.labels), (2,), generator=generator).tolist()
        while self.labels[first] == self.labels[second]:
            second = int(torch.randint(len(self.labels), (), generator=generator))
        canvas, targets = torch.zeros(CANVAS, CANVAS), torch.zeros(CLASSES)
        quarters = torch.randperm(4, generator=generator)[:2].tolist()
        for digit, quarter in zip((first, second), quarters, strict=True):
            down, right = (PATCH * torch.randint(2, (2,), generator=generator)).tolist()
            top, left = down + CANVAS // 2 * (quarter // 2), right + CANVAS // 2 * (quarter % 2)
            canvas[top : top + DIGIT, left : left + DIGIT] = self.images[digit]
            targets[self.labels[digit]] = 1
        return (canvas - MEAN).expand(3, -1, -1).contiguous(), targets


def small_vit() -> nn.Module:
    """A ViT of four blocks with four heads each."""
    return VisionTransformer(img_size=CANVAS, patch_size=PATCH, num_classes=CLASSES, embed_dim=48, depth=4, num_heads=4)


def probe_pixels(count: int = 4) -> Tensor:
    """Canvases that are in no training batch, for the monitor's probe: `(count, 3, 32, 32)`."""
    pairs = DigitPairs(count, seed=1)
    return torch.stack([pairs[index][0] for index in range(count)])


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy: each class is in the image or not."""
    return nn.functional.binary_cross_entropy_with_logits(logits, targets)


def options_of(description: str, out: str, *, model: bool = False) -> argparse.Namespace:
    """Read the options of a script.

    Args:
        description: The script's docstring.
        out: The default folder for its output.
        model: Whether to offer a choice of models.

    Returns:
        `steps`, `out`, and `every`, a tenth of the steps.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500, help="of the optimizer (default: 500)")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder of TensorBoard's files (default: {out})")
    if model:
        parser.add_argument("--model", choices=["small", "demo"], default="small", help="small ViT, or DINOv2-small")
    options = parser.parse_args()
    options.every = max(1, options.steps // 10)
    return options
