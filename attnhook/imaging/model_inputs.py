"""What a preprocessing makes of a photo: pixels, and whatever else goes into the model with them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnhook.errors import GeometryError

# The names under which libraries return the pixels.
_PIXELS = (
    "pixel_values",
    "flattened_patches",
    "image_pixel_values",
    "pixel_values_images",
    "images",
    "pixels",
    "image",
)
_CHANNELS = (1, 3)
# What libraries return next to pixels that are a sequence of patches rather than pictures.
_PACKED = frozenset(
    {"flattened_patches", "image_grid_thw", "image_grid_hw", "image_grids", "image_position_ids"}
    | {"image_token_pooling", "num_soft_tokens_per_image", "spatial_shapes"}
)


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """A model's input for one photo, or for a batch of photos.

    `pixels` are `(inputs, channels, height, width)`, an entry for each input that was made from the photo; with more
    than one leading axis, or as packed patches, if the preprocessing returns them that way.
    """

    pixels: Tensor
    keywords: Mapping[str, Any] | None = None  # all that a dict or BatchFeature held, for the model's forward
    geometry: Any = None  # the `ImageGeometry` that the user's own function returned with the pixels

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
    """Read what a preprocessing returned: a tensor or array, a list of them, a dict, or `(pixels, ImageGeometry)`."""
    if isinstance(made, tuple) and len(made) == 2 and hasattr(made[1], "input_size"):
        return replace(as_inputs(made[0]), geometry=made[1])
    if isinstance(made, Mapping) or (hasattr(made, "keys") and hasattr(made, "__getitem__")):
        keywords = {str(name): _tensor_if_possible(made[name]) for name in made.keys()}  # noqa: SIM118 (a BatchFeature iterates otherwise)
        name = next((name for name in _PIXELS if isinstance(keywords.get(name), Tensor)), None)
        if name is None:
            raise GeometryError(
                f"cannot read what the preprocessing returned: expected {_PIXELS[0]!r} in it, got {sorted(keywords)}. "
                "Return the pixels alone, or a dict with pixel_values."
            )
        if _PACKED.isdisjoint(keywords):
            keywords[name] = _with_batch_axis(keywords[name])
        return ModelInputs(keywords[name], keywords)
    return ModelInputs(_with_batch_axis(_tensor(made)))


def pixels_name(inputs: ModelInputs) -> str | None:
    """Find the keyword under which the pixels are passed."""
    return next((name for name, value in (inputs.keywords or {}).items() if value is inputs.pixels), None)


def with_pixels(inputs: ModelInputs, pixels: Tensor) -> ModelInputs:
    """Replace the pixels."""
    return each_tensor(inputs, lambda tensor: pixels if tensor is inputs.pixels else tensor)


def each_tensor(inputs: ModelInputs, change: Callable[[Tensor], Tensor]) -> ModelInputs:
    """Apply a function to every tensor."""
    pixels = change(inputs.pixels)
    keywords = inputs.keywords and {
        name: pixels if value is inputs.pixels else change(value) if isinstance(value, Tensor) else value
        for name, value in inputs.keywords.items()
    }
    return replace(inputs, pixels=pixels, keywords=keywords)


def batch_key(inputs: ModelInputs) -> tuple[Any, ...]:
    """Make a key that is the same for inputs that fit into one batch."""
    others = sorted((inputs.keywords or {}).items())
    tensors = [(name, value) for name, value in others if isinstance(value, Tensor) and value.dim()]
    return tuple((name, tensor.shape[1:], tensor.dtype) for name, tensor in [("", inputs.pixels), *tensors])


def batched(several: Sequence[ModelInputs]) -> ModelInputs:
    """Put the inputs of several photos into one batch."""
    first = several[0]
    pixels = torch.cat([one.pixels for one in several])
    keywords = first.keywords and {
        name: pixels if value is first.pixels else _joined([(one.keywords or {}).get(name) for one in several])
        for name, value in first.keywords.items()
    }
    return ModelInputs(pixels, keywords)


def _joined(values: list[Any]) -> Any:
    if all(isinstance(value, Tensor) and value.dim() for value in values):
        return torch.cat(values)
    if all(isinstance(value, list) for value in values):
        return [item for value in values for item in value]
    return values[0]


def _tensor_if_possible(value: Any) -> Any:
    try:
        return _tensor(value)
    except GeometryError:
        return value


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.as_subclass(Tensor)  # torchvision's Image is one
    if _holds_arrays(value):
        parts = [_tensor(one) for one in value]
        if len({part.shape for part in parts}) == 1:
            return torch.stack(parts)
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


def _holds_arrays(value: Any) -> bool:
    """Whether a list holds arrays or tensors, as slow processors return them."""
    each = value if isinstance(value, list | tuple) else ()
    return len(each) > 0 and all(hasattr(one, "shape") or _holds_arrays(one) for one in each)


def _with_batch_axis(pixels: Tensor) -> Tensor:
    """The pixels with a batch axis, channels first."""
    if pixels.dim() in (3, 4) and pixels.shape[-1] in _CHANNELS and pixels.shape[-3] not in _CHANNELS:
        pixels = pixels.movedim(-1, -3)
    return pixels[None] if pixels.dim() == 3 and pixels.shape[0] in _CHANNELS else pixels
