"""What an adapter says about a model: its attention modules, its special tokens, its patch grid, and what its head reads."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from attnhook.capture.sites import AttentionSite
from attnhook.capture.windows import PackedLayout
from attnhook.options import Rows, Size, choose


@dataclass(frozen=True)
class Readout:
    """What the model's head reads.

    Attributes:
        rows: The class token, the pooling query, the mean over patches; None if none of the three.
        reason: Why, in words: shown by `describe` and in the error where `rows` is None.
    """

    rows: Rows | None
    reason: str

    def __post_init__(self) -> None:
        if self.rows is not None:
            object.__setattr__(self, "rows", choose(Rows, self.rows, "rows"))


@dataclass(frozen=True, eq=False)
class SequenceInfo:
    """What one call of a model's token module says about the sequence."""

    order: Tensor | None = None  # the patches in it, `(batch, patch tokens)` int64; None: all, in order
    grid: Size | None = None  # patch rows and columns, where no patch embedding shows them
    area: Size | None = None  # pixels that this grid covers
    padding: int = 0  # number of padding tokens after the patches
    packed: PackedLayout | None = None  # the layout of images of several sizes
    problem: str | None = None  # why this sequence has no single grid


@dataclass(frozen=True, eq=False)
class ModelAnatomy:
    """An adapter's answer. Rows need only `sites`; the rest is for grids and readouts.

    Attributes:
        sites: The attention modules in the order in which they run.
        cls: Index of the class token, or None.
        registers: Number of register tokens.
        distillation: Whether there is a distillation token after the class token.
        suffix: Number of tokens after the patches.
        readout: What the head reads.
        image_module: The module whose first input of four or five dimensions is the image or video batch, `(batch, ..., height, width)`.
        grid_module: The module whose output is the patch embedding, `(batch, width, h, w)` or `(batch, width, frames, h, w)`.
        token_module: The module whose call says which patches are in the sequence, or how many, where the patch embedding cannot.
        tokens_of: Turns that call `(args, kwargs, output)` into `SequenceInfo`.
    """

    sites: tuple[AttentionSite, ...]
    cls: int | None = 0
    registers: int = 0
    distillation: bool = False
    suffix: int = 0
    readout: Readout = Readout(None, "nothing is known about what reads its tokens")
    image_module: nn.Module | None = None
    grid_module: nn.Module | None = None
    token_module: nn.Module | None = None
    tokens_of: Callable[[tuple[Any, ...], dict[str, Any], Any], SequenceInfo] | None = None

    def under(self, prefix: str) -> "ModelAnatomy":
        """The same anatomy inside a larger model, with the sites' names prefixed."""
        if not prefix:
            return self
        return replace(self, sites=tuple(replace(site, name=f"{prefix}.{site.name}") for site in self.sites))
