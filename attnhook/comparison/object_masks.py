"""Where the object is in a photo: masks and boxes, at the photo's pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnhook.errors import ImageError
from attnhook.imaging.images import open_image
from attnhook.options import Size

MaskSource = Any
"""A file, a PIL image, an array or a tensor `(height, width)`; or a box `(left, top, right, bottom)` in pixels, or several, also as an array."""

_OBJECT, _IGNORED = 255, 128


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """Where the object is, and which pixels are not scored.

    Attributes:
        inside: `(height, width)` bool: the object.
        ignored: `(height, width)` bool: neither object nor background.
    """

    inside: Tensor
    ignored: Tensor


def read_mask(source: MaskSource, size: Size, photo: str) -> ObjectMask:
    """Read a mask or boxes; `photo` is the name for messages."""
    if isinstance(source, Tensor | np.ndarray) and source.ndim <= 2 and source.shape[-1:] == (4,):
        source = source if tuple(source.shape) == size else source.tolist()  # boxes, unless it fits as a mask
    if is_box(source):
        return _from_boxes([source], size, photo)
    if isinstance(source, Sequence) and not isinstance(source, str) and source and all(map(is_box, source)):
        return _from_boxes(source, size, photo)
    values = _values(source, photo)
    if values.shape != size:
        raise ImageError(
            f"the mask of {photo} does not fit: expected the photo's height and width {size}, got {values.shape}. Masks are never resized."
        )
    found = set(np.unique(values).tolist())
    if not (found <= {0, 1} or found <= {0, _IGNORED, _OBJECT}):
        raise ImageError(
            f"the mask of {photo} has other values: expected 0 and 1, or 0, 128 (ignored) and 255 (object), got values such as "
            f"{sorted(found - {0, 1, _IGNORED, _OBJECT})[:3] or sorted(found)}. Choose one object, or threshold it."
        )
    inside = values == (1 if found <= {0, 1} else _OBJECT)
    if not inside.any():
        raise ImageError(
            f"the mask of {photo} is empty: expected an object, got background everywhere. Pass None for a photo without a mask."
        )
    return ObjectMask(torch.from_numpy(inside), torch.from_numpy(values == _IGNORED))


def is_box(source: Any) -> bool:
    """Whether it is one box, and not a list of them."""
    return isinstance(source, tuple | list) and len(source) == 4 and all(isinstance(edge, Real) for edge in source)


def _from_boxes(boxes: Sequence[Any], size: Size, photo: str) -> ObjectMask:
    inside = torch.zeros(size, dtype=torch.bool)
    rows, columns = (torch.arange(length) + 0.5 for length in size)
    for left, top, right, bottom in boxes:
        box = ((rows >= top) & (rows <= bottom))[:, None] & ((columns >= left) & (columns <= right))
        if not box.any():
            raise ImageError(
                f"a box of {photo} contains no pixel: expected (left, top, right, bottom) within {size[1]} x {size[0]} pixels (width x height), "
                f"got {(left, top, right, bottom)}."
            )
        inside |= box
    return ObjectMask(inside, torch.zeros_like(inside))


def _values(source: Any, photo: str) -> NDArray[Any]:
    if isinstance(source, str | Path):
        if not Path(source).exists():
            raise ImageError(f"no mask of {photo}: expected a file at {source}, got none. Check the path.")
        try:
            with open_image(source) as picture:
                source = picture.convert("L") if picture.mode in {"1", "LA", "RGB", "RGBA"} else picture.copy()
        except Exception as error:  # Pillow's decoders raise whatever damaged pixels lead them into
            raise ImageError(f"the mask of {photo} cannot be read: {source}: {error}") from error
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    try:
        values = np.asarray(source)
    except (TypeError, ValueError):
        values = np.empty(0, object)
    values = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
    if values.ndim != 2 or values.dtype == object:
        raise ImageError(
            f"this is not a mask of {photo}: expected (height, width) or boxes (left, top, right, bottom), got {type(source).__name__} of "
            f"shape {values.shape}."
        )
    return values
