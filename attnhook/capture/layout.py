"""Which tokens of a sequence are what, and the way between a sequence and the patch grid."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from attnhook.errors import NoClassTokenError, TokenLayoutError
from attnhook.options import PatchIndex, Size


@dataclass(frozen=True)
class TokenLayout:
    """The order of the tokens: prefix tokens, the patches row by row, suffix tokens.

    Attributes:
        grid: Patch rows and columns, `(h, w)`.
        cls: Index of the class token in the sequence (0: first; -1: last), or None if the model has none.
        registers: Number of register tokens between the other prefix tokens and the patches.
        distillation: Whether a distillation token follows the class token (DeiT).
        suffix: Number of tokens after the patches, the class token not counted (YOLOS: its detection tokens).
        frames: Number of steps in time of a video model; its patches come frame by frame.
        order: For models that drop or shuffle patches (MAE): for each patch token its index on the row-major grid, int64,
            `(batch, patch tokens)`. None where all patches come in order.
        frames_in_batch: Number of frames of a clip, in a video model that attends within each frame: consecutive batch entries are then the
            frames of one clip (TimeSformer).

    Example:
        >>> import torch
        >>> layout = TokenLayout(grid=(2, 3), registers=4)
        >>> layout.num_prefix_tokens, layout.num_tokens
        (5, 11)
        >>> layout.patches(torch.arange(11))
        tensor([[ 5,  6,  7],
                [ 8,  9, 10]])
    """

    grid: Size
    cls: int | None = 0
    registers: int = 0
    distillation: bool = False
    suffix: int = 0
    frames: int = 1
    order: Tensor | None = field(default=None, compare=False, repr=False)
    frames_in_batch: int = 1

    def __post_init__(self) -> None:
        if not _is_grid(self.grid):
            raise TokenLayoutError(f"bad patch grid: expected (rows, columns), both at least 1, got {self.grid!r}.")
        if min(self.registers, self.suffix, self.frames - 1, self.frames_in_batch - 1) < 0:
            raise TokenLayoutError(
                f"bad token counts: expected registers and suffix of at least 0 and frames of at least 1, got registers={self.registers}, "
                f"suffix={self.suffix}, frames={self.frames}, frames_in_batch={self.frames_in_batch}."
            )
        if self.cls is not None and not -self.num_suffix_tokens <= self.cls < self.num_prefix_tokens:
            raise TokenLayoutError(
                f"bad class token: expected an index among the tokens before or after the patches, got cls={self.cls} in {self.describe()}. "
                "cls=0 is the first token, cls=-1 the last."
            )

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return int(self.cls is not None and self.cls >= 0) + int(self.distillation) + self.registers

    @property
    def num_suffix_tokens(self) -> int:
        """Number of tokens after the patches."""
        return self.suffix + int(self.cls is not None and self.cls < 0)

    @property
    def num_patches(self) -> int:
        """Number of cells of the grid, over all frames."""
        return self.frames * self.grid[0] * self.grid[1]

    @property
    def num_patch_tokens(self) -> int:
        """Number of patch tokens in the sequence: fewer than `num_patches` where the model dropped some."""
        return self.num_patches if self.order is None else self.order.shape[-1]

    @property
    def num_tokens(self) -> int:
        """Length of the sequence."""
        return self.num_prefix_tokens + self.num_patch_tokens + self.num_suffix_tokens

    @property
    def patch_tokens(self) -> slice:
        """Where the patches are in the sequence."""
        return slice(self.num_prefix_tokens, self.num_prefix_tokens + self.num_patch_tokens)

    def describe(self) -> str:
        """The layout in words, for messages and tables: `1 class + 4 register + 16x16 patch tokens`."""
        last = self.num_suffix_tokens - self.suffix
        first = int(self.cls is not None) - last
        dropped = "" if self.order is None else f" ({self.num_patch_tokens} kept)"
        times = f"{self.frames}x" if self.frames > 1 else ""
        before = (first, "class"), (int(self.distillation), "distillation"), (self.registers, "register")
        patches = (f"{times}{self.grid[0]}x{self.grid[1]}", f"patch{dropped}")
        parts = (*before, patches, (self.suffix, "suffix"), (last, "class"))
        clip = f" in each of {self.frames_in_batch} frames" if self.frames_in_batch > 1 else ""
        return " + ".join(f"{count} {name}" for count, name in parts if count) + f" tokens{clip}"

    def check(self, num_tokens: int, *, where: str = "the sequence") -> None:
        """Raise `TokenLayoutError` unless a sequence, called `where` in the message, has `num_tokens` tokens."""
        if num_tokens != self.num_tokens:
            raise TokenLayoutError(
                f"the tokens of {where} do not fit the patch grid: expected {self.num_tokens} = {self.describe()}, "
                f"got {num_tokens}. The model drops, merges or adds tokens, or a layout that was passed leaves some out (`registers=`, "
                "`suffix=`). Read `.rows` without a grid, or pass a `layout=TokenLayout(...)` that counts every token."
            )

    def patches(self, row: Tensor) -> Tensor:
        """Take the patches out of rows over all tokens and put them on the grid.

        Args:
            row: `(..., num_tokens)`, any dtype.

        Returns:
            `(..., h, w)`, or `(..., frames, h, w)` if there are several frames; where these are batch entries, `(clips, ..., frames, h, w)`.
            Dropped patches are NaN (floating dtypes only).

        Raises:
            TokenLayoutError: If the last dimension is not `num_tokens` long.
        """
        self.check(row.shape[-1], where="a row")
        patches = row[..., self.patch_tokens]
        if self.order is not None:
            patches = self._unshuffle(patches, self.order)
        time = (self.frames,) if self.frames > 1 else ()
        return self._clips(patches.reshape(*row.shape[:-1], *time, *self.grid), -3)

    def _clips(self, values: Tensor, axis: int) -> Tensor:
        """Move frames from the batch to an axis of their own."""
        count = self.frames_in_batch
        if count == 1:
            return values
        if values.dim() < -axis or len(values) % count:
            raise TokenLayoutError(
                f"rows of clips of {count} frames: expected the batch first, a multiple of {count}, got shape {tuple(values.shape)}. Pass "
                "rows of whole clips, (batch, ..., tokens)."
            )
        return values.reshape(len(values) // count, count, *values.shape[1:]).movedim(1, axis)

    def _unshuffle(self, patches: Tensor, order: Tensor) -> Tensor:
        if order.shape[0] not in (1, patches.shape[0]):
            raise TokenLayoutError(
                f"a row of shuffled patches: expected the batch first, {order.shape[0]} images, got shape {tuple(patches.shape)}. "
                "Pass whole rows, (batch, ..., tokens)."
            )
        index = order.to(patches.device).reshape(order.shape[0], *[1] * (patches.dim() - 2), -1).expand(patches.shape)
        grid = patches.new_full((*patches.shape[:-1], self.num_patches), float("nan"))
        return grid.scatter(-1, index, patches)

    def token_of(self, patch: PatchIndex) -> int:
        """Index in the sequence of a patch `(row, column)`, negative from the end; in a video, of its first frame. Raises `TokenLayoutError`."""
        (row, column), (height, width) = patch, self.grid
        if not (-height <= row < height and -width <= column < width):
            raise TokenLayoutError(
                f"patch {tuple(patch)} lies outside the grid: expected a row below {height} and a column below {width}."
            )
        if self.order is not None:
            raise TokenLayoutError(
                f"patch {tuple(patch)} has no fixed token: this model drops or shuffles its patches per image. "
                "Pass token indices, or turn off its masking."
            )
        return self.num_prefix_tokens + (row % height) * width + column % width

    def tokens_of(self, choice: Sequence[int | PatchIndex]) -> list[int]:
        """Indices in the sequence of a mixed choice of token indices and `(row, column)` patches, in order.

        Args:
            choice: Ints are token indices (negative from the end), pairs are patches.

        Returns:
            Indices in `range(num_tokens)`.

        Raises:
            TokenLayoutError: If a token or a patch does not exist.
        """
        tokens, count = [self.token_of(c) if isinstance(c, tuple) else int(c) for c in choice], self.num_tokens
        for token in tokens:
            if not -count <= token < count:
                raise TokenLayoutError(
                    f"token {token} does not exist: expected one of {count}, which are {self.describe()}."
                )
        return [token % count for token in tokens]

    def class_token(self) -> int:
        """Index in the sequence of the class token, in `range(num_tokens)`; raises `NoClassTokenError` if there is none."""
        if self.cls is None:
            raise NoClassTokenError(
                f"no class token: the sequence has {self.describe()}. Use rows='mean' or rows='readout'."
            )
        return self.cls % self.num_tokens

    def without_special_tokens(self) -> "TokenLayout":
        """The same grid with patches only, as an attention pooling reads it that skips the special tokens."""
        return TokenLayout(self.grid, None, frames=self.frames, order=self.order, frames_in_batch=self.frames_in_batch)

    def outside(self, row: Tensor) -> Tensor:
        """Attention mass on tokens that are not patches.

        Args:
            row: `(..., num_tokens)`.

        Returns:
            `(...)`, between 0 and 1 for softmax rows.
        """
        axes = (-3, -2, -1) if self.frames > 1 else (-2, -1)
        return self._clips(row.sum(dim=-1), -1) - torch.nan_to_num(self.patches(row)).sum(dim=axes)


class GridlessLayout(ABC):
    """Base of layouts whose rows do not cover one grid: the methods that need one raise `TokenLayoutError`."""

    @abstractmethod
    def _without_grid(self, what: str) -> str:
        """Why there is no single grid for `what`, and what to do instead."""

    def patches(self, row: Tensor) -> Tensor:
        """Raise `TokenLayoutError`: a row does not cover one grid."""
        raise TokenLayoutError(self._without_grid(f"a row of shape {tuple(row.shape)}"))

    def outside(self, row: Tensor) -> Tensor:
        """Raise `TokenLayoutError`, as `patches` does."""
        return self.patches(row)

    def tokens_of(self, choice: object) -> list[int]:
        """Raise `TokenLayoutError`: a patch is in one of several windows or images."""
        raise TokenLayoutError(self._without_grid(f"the rows {choice}"))

    def class_token(self) -> int:
        """Raise `NoClassTokenError`: there is none, or several."""
        raise NoClassTokenError(self._without_grid("a class token"))

    @property
    def patch_tokens(self) -> slice:
        """Raise `TokenLayoutError`: the patches are not one range."""
        raise TokenLayoutError(self._without_grid("the mean over patches"))


def pixels_per_step(pixels: int, positions: int) -> int:
    """Pixels per position of a grid that a CNN or the stages of a model made of an image by halving it repeatedly; 0 if there is no such step.

    Odd lengths are padded before they are halved: 240 pixels and 8 positions are steps of 32, not of 30, and the last reaches beyond the image.
    """
    step = 1
    while step < pixels:
        if -(-pixels // step) == positions:
            return step
        step *= 2
    return pixels // positions if pixels % positions == 0 else 0


def _is_grid(grid: Any) -> bool:
    if not isinstance(grid, Sequence) or isinstance(grid, str) or len(grid) != 2:
        return False
    return all(isinstance(number, SupportsIndex) and operator.index(number) >= 1 for number in grid)
