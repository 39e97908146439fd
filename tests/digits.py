"""Images with a known answer: two of scikit-learn's digits, of different classes, on one canvas; and a small ViT that was trained to name both.

A class-specific map is right if it peaks inside the digit of its class, and wrong if it peaks inside the other one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from attnhook import load

CANVAS, DIGIT, PATCH, CLASSES = 32, 12, 4, 10
GRID = CANVAS // PATCH
HELD_OUT = 5
"""Every fifth of scikit-learn's 1,797 digits is in no training image."""


@dataclass(frozen=True)
class DigitPairs:
    """Canvases with two digits each.

    Attributes:
        pixels: `(n, 3, 32, 32)` float32, ink 1 on 0, less 0.5.
        classes: `(n, 2)` int64, the two classes of each image.
        corners: `(n, 2, 2)` int64, row and column of the top left pixel of each digit's 12 x 12 box.
    """

    pixels: Tensor
    classes: Tensor
    corners: Tensor

    @property
    def targets(self) -> Tensor:
        """`(n, 10)`: 1 for the classes in the image."""
        return torch.zeros(len(self.classes), CLASSES).scatter_(1, self.classes, 1.0)

    def inside(self, number: int) -> Tensor:
        """Which patches have their centre in the first (0) or second (1) digit's box: `(n, 8, 8)` bool."""
        centres = torch.arange(GRID) * PATCH + PATCH / 2
        begin = self.corners[:, number, :, None]
        within = (centres >= begin) & (centres <= begin + DIGIT)
        return within[:, 0, :, None] & within[:, 1, None, :]


def build() -> VisionTransformer:
    """The architecture, with random weights."""
    return VisionTransformer(img_size=CANVAS, patch_size=PATCH, num_classes=CLASSES, embed_dim=48, depth=4, num_heads=4)


def trained() -> VisionTransformer:
    """The model with the weights that `python -m tests.assets.train_digits` made, in eval mode."""
    return load("digits").model


def digits(*, held_out: bool) -> tuple[Tensor, Tensor]:
    """Scikit-learn's digits, enlarged to 12 x 12: `(n, 12, 12)` float32 from 0 to 1, and their classes `(n,)`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    enlarged = torch.nn.functional.interpolate(images, size=(DIGIT, DIGIT), mode="bilinear", align_corners=False)[:, 0]
    chosen = (torch.arange(len(images)) % HELD_OUT == 0) == held_out
    return enlarged[chosen], torch.from_numpy(data.target)[chosen].long()


def draw(
    digits_of: tuple[Tensor, Tensor],
    count: int,
    generator: torch.Generator,
    distort: Callable[[Tensor], Tensor] | None = None,
    *,
    step: int = PATCH,
) -> DigitPairs:
    """Draw pairs: random digits of different classes at random places, multiples of `step` pixels, where their boxes do not meet."""
    images, labels = digits_of
    chosen = _different(labels, count, generator)
    drawn = images[chosen] if distort is None else distort(images[chosen].flatten(0, 1)).unflatten(0, (count, 2))
    corners = _apart(count, generator, step)
    canvas = torch.zeros(count, CANVAS, CANVAS)
    each = torch.arange(count)[:, None, None]
    for number in range(2):
        rows = corners[:, number, 0, None] + torch.arange(DIGIT)
        columns = corners[:, number, 1, None] + torch.arange(DIGIT)
        canvas[each, rows[:, :, None], columns[:, None, :]] = drawn[:, number]
    pixels = (canvas - 0.5)[:, None].repeat(1, 3, 1, 1)
    return DigitPairs(pixels, labels[chosen], corners)


def _different(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    pairs = torch.randint(len(labels), (count, 2), generator=generator)
    while (same := labels[pairs[:, 0]] == labels[pairs[:, 1]]).any():
        pairs[same] = torch.randint(len(labels), (int(same.sum()), 2), generator=generator)
    return pairs


def _apart(count: int, generator: torch.Generator, step: int) -> Tensor:
    """Corners; on whole patches, a tiny model has less to learn."""
    places, least = (CANVAS - DIGIT) // step + 1, DIGIT // step
    corners = torch.randint(places, (count, 2, 2), generator=generator)
    while (meet := ((corners[:, 0] - corners[:, 1]).abs() < least).all(dim=1)).any():
        corners[meet] = torch.randint(places, (int(meet.sum()), 2, 2), generator=generator)
    return corners * step
