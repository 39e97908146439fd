"""What a preprocessing made from a photo: pixels, and whatever else goes into the model with them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnhook.errors import GeometryError

_PIXELS = (
    "pixel_values",
    "flattened_patches",
    "image_pixel_values",
    "pixel_values_images",
    "images",
    "pixels",
    "image",
)
"""The names under which libraries return the pixels."""
_CHANNELS = (1, 3)
_PACKED = frozenset(
    {
        "flattened_patches",
        "image_grid_thw",
        "image_grid_hw",
        "image_grids",
        "image_position_ids",
        "image_token_pooling",
        "num_soft_tokens_per_image",
        "spatial_shapes",
    }
)
"""What libraries return beside pixels that are a sequence of patches rather than pictures."""


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """A model's input for one photo.

    Attributes:
        pixels: `(inputs, channels, height, width)`, one entry per input that was made from the photo; with more than one leading axis, or as
            packed patches, if the preprocessing returns them that way.
        keywords: Everything that a dict or BatchFeature held, as tensors where possible, to pass to the model as keyword arguments; None if the
            preprocessing returned only the pixels.
        geometry: The `ImageGeometry` that the user's own function returned with the pixels, or None.
    """

    pixels: Tensor
    keywords: Mapping[str, Any] | None = None
    geometry: Any = None

    @property
    def packed(self) -> bool:
        """Whether the pixels are a sequence of patches, judging by what came with them."""
        return self.keywords is not None and not _PACKED.isdisjoint(self.keywords)

    @property
    def pictures(self) -> int:
        """How many pictures the pixels hold; 0 for packed patches."""
        shape = self.pixels.shape
        if self.packed or len(shape) not in (4, 5) or shape[-3] not in _CHANNELS:
            return 0
        return math.prod(shape[:-3])


def as_inputs(made: Any) -> ModelInputs:
    """Read what a preprocessing returned.

    Args:
        made: A tensor or array, with or without a batch axis; a list of them; a dict or BatchFeature; or `(pixels, ImageGeometry)`.
    """
    if isinstance(made, tuple) and len(made) == 2 and hasattr(made[1], "input_size"):
        inputs = as_inputs(made[0])
        return ModelInputs(inputs.pixels, inputs.keywords, made[1])
    if isinstance(made, Mapping) or (hasattr(made, "keys") and hasattr(made, "__getitem__")):
        keywords = {str(name): _as_tensor(made[name]) for name in made.keys()}  # noqa: SIM118 (a BatchFeature iterates otherwise)
        name = next((name for name in _PIXELS if isinstance(keywords.get(name), Tensor)), None)
        if name is None:
            raise GeometryError(
                f"cannot read what the preprocessing returned: expected {_PIXELS[0]!r} in it, got {sorted(keywords)}. "
                "Return the pixels alone, or a dict with pixel_values."
            )
        if _PACKED.isdisjoint(keywords):
            keywords[name] = _batched(keywords[name])
        return ModelInputs(keywords[name], keywords)
    return ModelInputs(_batched(_tensor(made)))


def _as_tensor(value: Any) -> Any:
    """The value as a tensor if possible, else unchanged."""
    try:
        return _tensor(value)
    except GeometryError:
        return value


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)  # torchvision's Image is one
    if isinstance(value, list | tuple) and value and all(hasattr(one, "shape") or _nested(one) for one in value):
        parts = [_tensor(one) for one in value]
        if len({part.shape for part in parts}) == 1:
            return parts[0][None] if len(parts) == 1 else torch.stack(parts)
    elif isinstance(value, np.ndarray | list):
        try:
            array = np.asarray(value)
        except ValueError:  # a ragged list
            array = np.empty(0, object)
        if array.dtype.kind in "fiub":
            if array.dtype.kind == "u" and array.dtype.itemsize > 1:
                array = array.astype(np.int64)
            return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())
    raise GeometryError(
        "cannot read what the preprocessing returned: expected a tensor, an array, a dict with pixel_values, or (pixels, ImageGeometry), got "
        f"{type(value).__name__}. Let the preprocessing return the model's input."
    )


def _nested(value: Any) -> bool:
    """Whether a list holds arrays or tensors, as slow processors return them."""
    return (
        isinstance(value, list | tuple) and bool(value) and all(hasattr(one, "shape") or _nested(one) for one in value)
    )


def _batched(pixels: Tensor) -> Tensor:
    """The pixels with a batch axis, channels first."""
    if pixels.dim() in (3, 4) and pixels.shape[-1] in _CHANNELS and pixels.shape[-3] not in _CHANNELS:
        pixels = pixels.movedim(-1, -3)
    return pixels[None] if pixels.dim() == 3 and pixels.shape[0] in _CHANNELS else pixels
