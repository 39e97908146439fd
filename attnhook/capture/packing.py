"""Layouts of several images of different sizes in one attention call: one after the other in a sequence, or padded in a batch."""

from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from attnhook.capture.layout import GridlessLayout, TokenLayout
from attnhook.errors import TokenLayoutError


@dataclass(frozen=True)
class PackedLayout(GridlessLayout):
    """Where each image's tokens are, and what they are: one grid per image.

    Attributes:
        images: The layout of each image's own tokens.
        entries: The batch entry that holds each image.
        starts: The token at which each image begins.
        num_tokens: Length of the sequence.

    Example:
        >>> import torch
        >>> small, large = TokenLayout((1, 2), cls=None), TokenLayout((2, 2), cls=None)
        >>> layout = PackedLayout((small, large), entries=(0, 0), starts=(0, 2), num_tokens=6)
        >>> [tuple(grid.shape) for grid in layout.split(torch.rand(1, 3, 6))]
        [(3, 1, 2), (3, 2, 2)]
    """

    images: tuple[TokenLayout, ...]
    entries: tuple[int, ...] = field(repr=False)
    starts: tuple[int, ...] = field(repr=False)
    num_tokens: int

    @classmethod
    def behind_each_other(cls, images: tuple[TokenLayout, ...]) -> "PackedLayout":
        """Images with these layouts, one after the other in one batch entry."""
        *starts, total = accumulate((image.num_tokens for image in images), initial=0)
        return cls(images, (0,) * len(images), tuple(starts), total)

    @classmethod
    def padded(cls, images: tuple[TokenLayout, ...], num_tokens: int) -> "PackedLayout":
        """One image per batch entry, padded at the end to `num_tokens` tokens; the images' own layouts leave the padding out."""
        return cls(images, tuple(range(len(images))), (0,) * len(images), num_tokens)

    def split(self, row: Tensor) -> list[Tensor]:
        """Cut rows over all tokens into the images' grids.

        Args:
            row: `(batch, ..., num_tokens)`.

        Returns:
            One tensor `(..., h, w)` per image, in order.

        Raises:
            TokenLayoutError: If the last dimension is not `num_tokens` long, or a batch entry is missing.
        """
        self.check(row.shape[-1], where="a row")
        if row.shape[0] <= max(self.entries):
            raise TokenLayoutError(
                f"a row of several images: expected the batch first, {max(self.entries) + 1} entries, got shape {tuple(row.shape)}. Pass whole "
                "rows, (batch, ..., tokens)."
            )
        return [
            image.patches(row[entry : entry + 1, ..., start : start + image.num_tokens])[0]
            for image, entry, start in zip(self.images, self.entries, self.starts, strict=True)
        ]

    def describe(self) -> str:
        """The layout in words: `2 images of 8x12, 4x8 patches in 128 tokens`."""
        grids = ", ".join(f"{image.grid[0]}x{image.grid[1]}" for image in self.images)
        return f"{len(self.images)} images of {grids} patches in {self.num_tokens} tokens"

    def check(self, num_tokens: int, *, where: str = "the sequence") -> None:
        """Check the length of a real sequence, as `TokenLayout.check` does."""
        if num_tokens != self.num_tokens:
            raise TokenLayoutError(
                f"the tokens of {where} do not fit the images: expected {self.num_tokens} = {self.describe()}, got {num_tokens}. "
                "Read `.rows` without a grid."
            )

    def _without_grid(self, what: str) -> str:
        return (
            f"no single patch grid for {what}: this call holds {self.describe()}. Cut each image out with layout.split(rows), or run images of "
            "one grid together."
        )
