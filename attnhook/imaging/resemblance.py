"""Whether a model's pixels show the part of a photo that they should.

A preprocessing is measured on synthetic photos. One that crops around what it finds in a photo, such as a face, does not find it there.
So the pixels of the real photo are compared with the part of it that the measurement says they show.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnhook.errors import GeometryError

_CELLS = 16  # per edge: both pictures are averaged over so many cells, which no kind of resampling changes much
_FLAT = 3.0  # grey levels: a photo that varies less says nothing
_LEAST = 0.7  # correlation; 0.97 and more of photos through resizes, crops and colour channels in any order


def check_resemblance(photo: Image.Image, pixels: Tensor, geometry: Any) -> None:
    """Compare pixels with the part of a photo that they should show.

    Args:
        pixels: `(1, channels, height, width)`, or with more axes of length 1 in front.
    """
    top, left, bottom, right = (round(edge) for edge in geometry.valid)
    y, x = (
        (edge - offset) / scale
        for edge, offset, scale in (
            (top, geometry.offset[0], geometry.scale[0]),
            (left, geometry.offset[1], geometry.scale[1]),
        )
    )
    height, width = (bottom - top) / geometry.scale[0], (right - left) / geometry.scale[1]
    box = (max(x, 0.0), max(y, 0.0), min(x + width, photo.width), min(y + height, photo.height))
    if min(bottom - top, right - left) < _CELLS or min(box[2] - box[0], box[3] - box[1]) < _CELLS:
        return
    small = photo.resize((_CELLS, _CELLS), Image.Resampling.BOX, box=box, reducing_gap=2.0)
    expected = [np.asarray(small, np.float64).mean(axis=2), np.asarray(small.convert("L"), np.float64)]
    seen = (
        pixels.detach().to("cpu", torch.float32).reshape(1, *pixels.shape[-3:]).mean(dim=1)[:, top:bottom, left:right]
    )
    cells = torch.nn.functional.adaptive_avg_pool2d(seen, _CELLS)[0].double().numpy()
    if max(one.std() for one in expected) < _FLAT:
        return
    alike = max(_correlation(one, cells) for one in expected)
    if not alike >= _LEAST:
        raise GeometryError(
            "the preprocessing treats this photo differently from others of its size: expected pixels that resemble the part of the photo "
            f"they should show, got a correlation of {alike:.2f}. It crops around what it finds in the photo, is random, or has changed since "
            "it was measured. Let it return (pixels, ImageGeometry)."
        )


def _correlation(one: Any, other: Any) -> float:
    one, other = one - one.mean(), other - other.mean()
    product = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / product if product else 0.0
