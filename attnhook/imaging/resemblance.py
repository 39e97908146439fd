"""Whether a model's pixels show the part of a photo that they should.

A preprocessing is measured on synthetic photos. One that crops around what it finds in a photo, such as a face, finds none in these.
So the pixels of the real photo are compared with the part of it that the measurement says they show.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.model_inputs import ModelInputs

_CELLS = 16  # per edge: both pictures are averaged over so many cells, which no kind of resampling changes much
_FLAT = 3.0  # grey levels: a photo that varies less cannot be recognised
_LEAST = 0.7  # correlation; 0.97 and more of photos through resizes, crops and colour channels in any order


def check_resemblance(photo: Image.Image, inputs: ModelInputs, geometry: Any) -> None:
    """Compare a picture with the part of a photo that it should show, by an affine map."""
    if inputs.pictures != 1 or inputs.geometry is not None:
        return
    top, left, bottom, right = (round(edge) for edge in geometry.valid)
    (y0, y1), (x0, x1) = (
        [(edge - geometry.offset[axis]) / geometry.scale[axis] for edge in edges]
        for axis, edges in enumerate(((top, bottom), (left, right)))
    )
    box = max(x0, 0.0), max(y0, 0.0), min(x1, photo.width), min(y1, photo.height)
    if min(bottom - top, right - left, box[2] - box[0], box[3] - box[1]) < _CELLS:
        return
    small = photo.resize((_CELLS, _CELLS), Image.Resampling.BOX, box=box, reducing_gap=2.0)
    expected = [np.asarray(small, np.float64).mean(axis=2), np.asarray(small.convert("L"), np.float64)]
    if max(one.std() for one in expected) < _FLAT:
        return
    pixels = inputs.pixels.detach().to("cpu", torch.float32)
    seen = pixels.reshape(1, *pixels.shape[-3:]).mean(dim=1)[:, top:bottom, left:right]
    cells = torch.nn.functional.adaptive_avg_pool2d(seen, _CELLS)[0].double().numpy()
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
