"""What a preprocessing made of a photo: pixels, and whatever else the model is fed with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnhook.errors import GeometryError

_PIXELS = ("pixel_values", "flattened_patches", "images", "pixels", "image")
"""Under which names libraries hand out the pixels."""
_CHANNELS = (1, 3)


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What a model is fed for one photo.

    Attributes:
        pixels: `(inputs, channels, height, width)`, one entry per input that was made of the photo; packed patches as they came.
        keywords: Everything that a dict or BatchFeature held, as tensors where that is possible, to be passed to the model as keywords; None
            where the preprocessing returned the pixels alone.
        geometry: The `ImageGeometry` that a function of the user's returned beside the pixels, or None.
    """

    pixels: Tensor
    keywords: Mapping[str, Any] | None = None
    geometry: Any = None


def as_inputs(made: Any) -> ModelInputs:
    """Read what a preprocessing returned.

    Args:
        made: A tensor or array, with or without batch axis; a list of them; a dict or BatchFeature; or `(pixels, ImageGeometry)`.

    Returns:
        The inputs, with a batch axis.

    Raises:
        GeometryError: If there are no pixels in it.
    """
    if isinstance(made, tuple) and len(made) == 2 and hasattr(made[1], "input_size"):
        return ModelInputs(_batched(_tensor(made[0])), geometry=made[1])
    if isinstance(made, Mapping) or (hasattr(made, "keys") and hasattr(made, "__getitem__")):
        keywords = {str(name): _as_tensor(made[name]) for name in made.keys()}  # noqa: SIM118 (a BatchFeature iterates otherwise)
        name = next((name for name in _PIXELS if isinstance(keywords.get(name), Tensor)), None)
        if name is None:
            raise GeometryError(
                f"preprocess= made no pixels: expected {', '.join(map(repr, _PIXELS[:1]))} in what it returned, got {sorted(keywords)}. "
                "Return the pixels alone, or a dict with pixel_values."
            )
        packed = (
            len(keywords) > 1 and keywords[name].dim() == 3 and keywords[name].shape[0] == 1
        )  # (1, patches, values), with their positions
        keywords[name] = keywords[name] if packed else _batched(keywords[name])
        return ModelInputs(keywords[name], keywords)
    return ModelInputs(_batched(_tensor(made)))


def _as_tensor(value: Any) -> Any:
    """A tensor where that is possible, else the value."""
    try:
        return _tensor(value)
    except GeometryError:
        return value


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple) and value and all(hasattr(one, "shape") for one in value):
        parts = [_tensor(one) for one in value]
        if len({part.shape for part in parts}) == 1:
            return parts[0][None] if len(parts) == 1 else torch.stack(parts)
    elif isinstance(value, np.ndarray | list) and np.asarray(value).dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(value))
    raise GeometryError(
        f"preprocess= made no pixels: expected a tensor, an array, a dict with pixel_values, or (pixels, ImageGeometry), got "
        f"{type(value).__name__}. Return what the model is fed."
    )


def _batched(pixels: Tensor) -> Tensor:
    """With a batch axis, channels first; packed patches as they are."""
    if pixels.dim() in (3, 4) and pixels.shape[-1] in _CHANNELS and pixels.shape[-3] not in _CHANNELS:
        pixels = pixels.movedim(-1, -3)
    return pixels[None] if pixels.dim() == 3 and pixels.shape[0] in _CHANNELS else pixels
