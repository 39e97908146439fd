"""The options that users choose by name, and the type aliases that several rooms share.

`choose` turns a string into an enum member where the user passes it; inside the library there are only members.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import SupportsIndex, TypeAlias, TypeVar

Size: TypeAlias = tuple[int, int]
"""Height and width, in pixels or in patches."""

PatchIndex: TypeAlias = tuple[int, int]
"""Row and column of a patch on the patch grid, counted from the top left."""

RowsOption: TypeAlias = "str | Sequence[int | PatchIndex]"
BlocksOption: TypeAlias = "int | str | Sequence[int | str] | Callable[[str], bool] | None"
HeadsOption: TypeAlias = "str | int | None"
ScaleOption: TypeAlias = "str | tuple[float, float]"


@dataclass(frozen=True)
class Overlap:
    """How patches lie if they overlap or reach into padding, (down, across) in input pixels: cells lie around the kernels' centres."""

    start: tuple[float, float] = (0.0, 0.0)  # where the first cell begins
    reach: tuple[float, float] = (0.0, 0.0)  # how far kernels reach beyond their cells


NO_OVERLAP = Overlap()


class Rows(StrEnum):
    """Which rows of the attention matrix a capture computes: the class token's, the pooling query's, the mean over patches, or all."""

    CLS = "cls"
    POOL = "pool"
    MEAN = "mean"
    READOUT = "readout"
    ALL = "all"


class HeadFusion(StrEnum):
    """How the maps of several heads become one."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"


class Scale(StrEnum):
    """How attention values become colours."""

    MINMAX = "minmax"  # each picture's own range, so that pictures cannot be compared with each other
    ROBUST = (
        "robust"  # from its 1st to its 99th percentile, so that a sink, which draws most of it, takes not all colours
    )
    UNIFORM = "uniform"  # multiples of 1/N, each token's share if attention were uniform, on one range: comparable


class Crop(StrEnum):
    """What an overlay shows: the whole photo, or only the part that the model saw."""

    PHOTO = "photo"
    SEEN = "seen"


class Interpolation(StrEnum):
    """How a patch map becomes pixels."""

    BILINEAR = "bilinear"
    NEAREST = "nearest"
    BICUBIC = "bicubic"


class Style(StrEnum):
    """How a map is drawn over its photo."""

    HEAT = "heat"  # interpolated
    PATCHES = "patches"  # every patch in one colour with its border
    CONTOURS = "contours"  # lines of equal value
    MASK = "mask"  # darkens all but the patches that hold most of the mass


class FigureStyle(StrEnum):
    """What a figure is for: its size, its resolution, and how large its text is beside its pictures. Both leave out the caption."""

    PAPER = "paper"  # as wide as the text of a two-column paper
    SLIDES = "slides"  # as wide as a screen


_Choice = TypeVar("_Choice", bound=StrEnum)


def choose(kind: type[_Choice], value: str, argument: str) -> _Choice:
    """Turn what a user passed into a member of `kind`."""
    try:
        return kind(value)
    except ValueError:
        legal = ", ".join(repr(member.value) for member in kind)
        raise ValueError(f"unknown {argument}: expected one of {legal}, got {value!r}.") from None


def checked_heads(heads: HeadsOption) -> "HeadFusion | int | None":
    """Turn `heads=` into a fusion, the index of one head, or None for all heads."""
    if heads is None:
        return None
    if isinstance(heads, SupportsIndex) and not isinstance(heads, bool | Iterable):
        return operator.index(heads)
    if not isinstance(heads, str):
        raise ValueError(  # noqa: TRY004 (as for a name that is none)
            f"unknown heads: expected 'mean', 'max', 'min', one head's index, or None, got {heads!r}. For several heads, make a map of each."
        )
    return choose(HeadFusion, heads, "heads")
