"""Where one model input lies in its photo, as plain numbers, and whether two accounts of that agree."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.options import Size

_AGREEMENT = 0.3
"""How far two placements of one pixel may lie apart, in input pixels, photo pixels or grey levels, whichever is the coarsest. Exact steps and
their measurement usually differ by less than 0.1; another rounding of a crop shows as 1."""


class UnmeasurableError(GeometryError):
    """The photo or the input has too few pixels to be measured. Nothing speaks against the geometry, or for it."""


@dataclass(frozen=True, eq=False)
class Placement:
    """The affine map from a photo to one model input: `input = photo * scale + offset`, per axis.

    Attributes:
        input_size: Height and width of the input, in pixels; for packed patches, of the picture that they tile.
        scale: Input pixels per photo pixel, (vertical, horizontal).
        offset: Where the photo's top left corner lies on the input, in input pixels.
        valid: Top, left, bottom, right of the part of the input that shows photo, in input pixels.
        unit: What the measurement resolves, in input pixels, (vertical, horizontal): an input pixel, a photo pixel or a grey level,
            whichever is the coarsest. 1 where the steps are known.
        patches: For packed patches: the centre (y, x) of every patch on the photo, in the order they came; NaN for padding.
        grid: For packed patches: row and column of every patch on the grid, in the order they came; -1 for padding.
    """

    input_size: Size
    scale: tuple[float, float]
    offset: tuple[float, float]
    valid: tuple[float, float, float, float]
    unit: tuple[float, float] = (1.0, 1.0)
    patches: NDArray[np.float64] | None = None
    grid: NDArray[np.int64] | None = None


def disagreement(known: Placement, measured: Placement) -> str | None:
    """Compare the steps that are known with what was measured."""
    if known.input_size != measured.input_size:
        return f"an input of {measured.input_size} pixels rather than {known.input_size}"
    for axis, name in enumerate(("vertically", "horizontally")):
        slack = _AGREEMENT * measured.unit[axis]
        ends = known.valid[axis], known.valid[axis + 2]
        for edge in ends:
            there = (edge - known.offset[axis]) / known.scale[axis]
            seen = there * measured.scale[axis] + measured.offset[axis]
            if abs(seen - edge) > slack:
                return f"the photo {name} {seen - edge:+.2f} input pixels from where its steps say"
        for edge, found in zip(ends, (measured.valid[axis], measured.valid[axis + 2]), strict=True):
            if abs(edge - found) > 1 + slack:
                return f"photo {name} up to {found:.1f} input pixels rather than {edge:.1f}"
    return None
