"""Layouts without one grid for all tokens: windows, strided grids, mask units, halos; and several images packed into one call."""

from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from attnhook.capture.layout import GridlessLayout, TokenLayout
from attnhook.errors import TokenLayoutError
from attnhook.options import Size


@dataclass(frozen=True)
class WindowLayout(GridlessLayout):
    """Which positions of a grid are in each window of one image.

    Attributes:
        grid: Rows and columns of the stage's positions, `(h, w)`.
        positions: Row-major index on `grid` of each key of each window, `(windows, keys)` int64; -1 for padding.
        query_positions: The same of each query, `(windows, queries)`, on the grid of the queries; None if they are the keys.
        query_grid: Rows and columns of the queries' positions; None if `grid`.
        words: What the windows are: `"windows of 7x7 shifted by 3"`.

    Example:
        >>> layout = WindowLayout.partition((4, 6), window=(2, 3))
        >>> layout.num_windows, layout.num_tokens
        (4, 6)
        >>> layout.positions[1]
        tensor([ 3,  4,  5,  9, 10, 11])
    """

    grid: Size
    positions: Tensor = field(compare=False, repr=False)
    query_positions: Tensor | None = field(default=None, compare=False, repr=False)
    query_grid: Size | None = None
    words: str = "windows"

    @classmethod
    def partition(
        cls, grid: Size, *, window: Size, shift: Size = (0, 0), strided: bool = False, pad: str = "after"
    ) -> "WindowLayout":
        """Cut a grid into equal windows, padded to whole ones.

        Args:
            grid: Rows and columns.
            window: Rows and columns of a window (with `strided`: of the grid of positions that attend to each other).
            shift: Cyclic shift towards the top left before cutting.
            strided: Whether a window gathers positions a stride apart (MaxViT's grid attention) instead of neighbours.
            pad: Whether the right and the bottom are padded `"after"` or `"before"` the shift, or all sides (`"center"`).

        Returns:
            The layout.
        """
        index = torch.arange(grid[0] * grid[1], device="cpu").reshape(grid)
        rolled = (-shift[0], -shift[1])
        index = torch.roll(index, rolled, (0, 1)) if pad != "before" else index
        height, width = -grid[0] % window[0], -grid[1] % window[1]
        top, left = (height // 2, width // 2) if pad == "center" else (0, 0)
        index = F.pad(index, (left, width - left, top, height - top), value=-1)
        index = torch.roll(index, rolled, (0, 1)) if pad == "before" else index
        rows, columns = index.shape[0] // window[0], index.shape[1] // window[1]
        if strided:
            cut = index.reshape(window[0], rows, window[1], columns).permute(1, 3, 0, 2)
        else:
            cut = index.reshape(rows, window[0], columns, window[1]).permute(0, 2, 1, 3)
        words = f"{'strided grids' if strided else 'windows'} of {window[0]}x{window[1]}"
        words += f" shifted by {shift[0]}, {shift[1]}" if any(shift) else ""
        return cls(grid, cut.reshape(rows * columns, -1), words=words)

    @property
    def num_windows(self) -> int:
        """Number of windows per image."""
        return self.positions.shape[0]

    @property
    def num_tokens(self) -> int:
        """Number of keys in a window, padding included."""
        return self.positions.shape[1]

    def describe(self) -> str:
        """The layout in words: `64 windows of 7x7 on a grid of 56x56`."""
        return f"{self.num_windows} {self.words} on a grid of {self.grid[0]}x{self.grid[1]}"

    def check(self, num_tokens: int, *, where: str = "a window") -> None:
        """Check the number of keys of one window, as `TokenLayout.check` does."""
        if num_tokens != self.num_tokens:
            raise TokenLayoutError(
                f"the keys of {where} do not fit its windows: expected {self.num_tokens} ({self.describe()}), got {num_tokens}. "
                "Read `.rows` without a grid."
            )

    def _without_grid(self, what: str) -> str:
        return (
            f"no map of the whole image for {what}: this block attends within {self.describe()}. Read each window's rows with "
            "rows='all', or use received_attention(maps, block), the mass that each position receives."
        )

    def scatter(self, mass: Tensor) -> Tensor:
        """Put values of windows' keys back onto the grid; padding is dropped, positions in several windows are summed.

        Args:
            mass: `(batch * windows, ..., keys)`.

        Returns:
            `(batch, ..., h, w)`.
        """
        self.check(mass.shape[-1])
        mass = mass.reshape(mass.shape[0] // self.num_windows, self.num_windows, *mass.shape[1:])
        mass = mass.movedim(1, -2).flatten(-2)
        index = self.positions.flatten().to(mass.device)
        cells = self.grid[0] * self.grid[1]
        padded = mass.new_zeros(*mass.shape[:-1], cells + 1)  # the last cell takes the padding
        padded.index_add_(-1, torch.where(index < 0, cells, index), mass)
        return padded[..., :cells].reshape(*mass.shape[:-1], *self.grid)

    def real_queries(self, num_queries: int) -> Tensor:
        """Which of the `num_queries` queries of each window are not padding: `(windows, queries)` bool."""
        positions = self.positions if self.query_positions is None else self.query_positions
        if positions.shape[1] != num_queries:
            return torch.ones(self.num_windows, num_queries, dtype=torch.bool, device=positions.device)
        return positions >= 0


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
