"""The images that a monitor looks at again and again: pixels for the model, photos to draw on, and a fingerprint."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.images import ImageSource, each_image, read_image
from attnhook.imaging.model_inputs import ModelInputs, batch_key, batched
from attnhook.imaging.prepared import prepare


@dataclass(frozen=True, eq=False)
class ProbeBatch:
    """A fixed batch of images.

    Attributes:
        inputs: What the model is fed, on the CPU.
        photos: What overlays are drawn on, RGB.
        geometries: Where the model looks in each photo.
        digest: SHA-256 of the pixels, their shape and type.
    """

    inputs: ModelInputs
    photos: tuple[Image.Image, ...]
    geometries: tuple[ImageGeometry, ...]
    digest: str

    @property
    def pixels(self) -> Tensor:
        """The pixels, `(batch, 3, height, width)`."""
        return self.inputs.pixels

    def __len__(self) -> int:
        return len(self.photos)

    @classmethod
    def of_photos(cls, images: "ImageSource | Iterable[ImageSource]", preprocess: Any) -> "ProbeBatch":
        """Make a batch of photos."""
        photos = tuple(read_image(image) for image in each_image(images))
        if not photos:
            raise GeometryError("no probe images: expected at least one, got none. Pass a few photos, or pixels.")
        made = [prepare(preprocess, photo) for photo in photos]
        if len({batch_key(one.inputs) for one in made}) != 1:
            sizes = {tuple(one.inputs.pixels.shape[-2:]) for one in made}
            raise GeometryError(
                f"the probe images do not make one batch: expected one size of pixels, got {sorted(sizes)}. Take photos of one shape, "
                "or a preprocess that resizes to one."
            )
        inputs = batched([one.inputs for one in made])
        return cls(inputs, photos, tuple(one.geometry for one in made), _digest(inputs.pixels))

    @classmethod
    def of_pixels(cls, pixels: Tensor, mean: Any = None, std: Any = None) -> "ProbeBatch":
        """Make a batch of pixels as they come out of a data loader.

        Args:
            pixels: `(batch, 3, height, width)`, copied.
        """
        if pixels.dim() != 4 or pixels.shape[1] != 3 or not len(pixels):
            raise GeometryError(
                f"bad probe images: expected pixels (batch, 3, height, width), got {tuple(pixels.shape)}."
            )
        own = pixels.detach().cpu().clone()
        size = (own.shape[2], own.shape[3])
        photos = tuple(_photo(image, mean, std) for image in own.float())
        return cls(ModelInputs(own), photos, (ImageGeometry.identity(size),) * len(own), _digest(own))

    def sized(self, longest: int, *, smallest: int = 192) -> "ProbeBatch":
        """The same batch with photos to draw on of a handy size: shrunk to `longest` pixels, or enlarged pixel by pixel up to `smallest`."""
        pairs = [_sized(*pair, longest, smallest) for pair in zip(self.photos, self.geometries, strict=True)]
        return replace(self, photos=tuple(photo for photo, _ in pairs), geometries=tuple(seen for _, seen in pairs))


def _photo(image: Tensor, mean: Any, std: Any) -> Image.Image:
    def of_channels(value: Any, default: float) -> Tensor:
        return torch.as_tensor(default if value is None else value, dtype=torch.float32).reshape(-1, 1, 1)

    seen = image * of_channels(std, 1.0) + of_channels(mean, 0.0)
    low, high = float(seen.min()), float(seen.max())
    if mean is None and std is None and (low < 0 or high > 1):
        seen = (seen - low) / max(high - low, 1e-12)
    bytes_ = (seen.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(bytes_.numpy())


def _sized(
    photo: Image.Image, geometry: ImageGeometry, longest: int, smallest: int
) -> tuple[Image.Image, ImageGeometry]:
    side = max(photo.size)
    factor = min(1.0, longest / side) if side >= smallest else max(1, min(-(-smallest // side), longest // side))
    if factor == 1:
        return photo, geometry
    size = (max(1, round(photo.width * factor)), max(1, round(photo.height * factor)))
    smaller = photo.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
    scale = (geometry.scale[0] * photo.height / size[1], geometry.scale[1] * photo.width / size[0])
    return smaller, replace(geometry, image_size=(size[1], size[0]), scale=scale)


def _digest(pixels: Tensor) -> str:
    whole = hashlib.sha256(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
    whole.update(pixels.contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
