"""The images that a monitor runs the model on again and again: pixels for the model, photos to draw on, and a fingerprint."""

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
    """A fixed batch of images."""

    inputs: ModelInputs  # on the CPU
    photos: tuple[Image.Image, ...]  # what overlays are drawn on, RGB
    geometries: tuple[ImageGeometry, ...]  # where the model looks in each photo
    digest: str  # SHA-256 of the pixels, their shape and type

    def __len__(self) -> int:
        return len(self.photos)

    @classmethod
    def of_photos(cls, images: "ImageSource | Iterable[ImageSource]", preprocess: Any) -> "ProbeBatch":
        """Make a batch of photos."""
        photos = tuple(read_image(image) for image in each_image(images))
        if not photos:
            raise GeometryError("no probe images: expected at least one, got none. Pass a few photos, or pixels.")
        prepared = [prepare(preprocess, photo) for photo in photos]
        if len({batch_key(one.inputs) for one in prepared}) != 1:
            sizes = {tuple(one.inputs.pixels.shape[-2:]) for one in prepared}
            raise GeometryError(
                f"the probe images do not fit into one batch: expected one size of pixels, got {sorted(sizes)}. Use photos of one shape, "
                "or a preprocess that resizes all of them to one size."
            )
        inputs = batched([one.inputs for one in prepared])
        return cls(inputs, photos, tuple(one.geometry for one in prepared), _digest(inputs.pixels))

    @classmethod
    def of_pixels(cls, pixels: Tensor, mean: Any = None, std: Any = None) -> "ProbeBatch":
        """Make a batch of pixels `(batch, 3, height, width)` as a data loader returns them; they are copied."""
        if pixels.dim() != 4 or pixels.shape[1] != 3 or not len(pixels):
            raise GeometryError(
                f"bad probe images: expected pixels (batch, 3, height, width), got {tuple(pixels.shape)}."
            )
        own = pixels.detach().cpu().clone()
        geometry = ImageGeometry.identity((own.shape[2], own.shape[3]))
        photos = tuple(_photo(image, mean, std) for image in own.float())
        return cls(ModelInputs(own), photos, (geometry,) * len(own), _digest(own))

    def resized(self, longest: int, *, smallest: int = 192) -> "ProbeBatch":
        """Shrink the photos to draw on to `longest` pixels, or enlarge them pixel by pixel up to `smallest`."""
        pairs = [_resized(*pair, longest, smallest) for pair in zip(self.photos, self.geometries, strict=True)]
        return replace(self, photos=tuple(photo for photo, _ in pairs), geometries=tuple(one for _, one in pairs))


def _photo(image: Tensor, mean: Any, std: Any) -> Image.Image:
    """Undo normalisation; without `mean` and `std`, stretch values outside 0 to 1."""
    scale = torch.as_tensor(1.0 if std is None else std, dtype=torch.float32, device="cpu").reshape(-1, 1, 1)
    offset = torch.as_tensor(0.0 if mean is None else mean, dtype=torch.float32, device="cpu").reshape(-1, 1, 1)
    image = image * scale + offset
    low, high = float(image.min()), float(image.max())
    if mean is None and std is None and (low < 0 or high > 1):
        image = (image - low) / max(high - low, 1e-12)
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _resized(
    photo: Image.Image, geometry: ImageGeometry, longest: int, smallest: int
) -> tuple[Image.Image, ImageGeometry]:
    side = max(photo.size)
    factor = min(1.0, longest / side) if side >= smallest else max(1, min(-(-smallest // side), longest // side))
    if factor == 1:
        return photo, geometry
    width, height = max(1, round(photo.width * factor)), max(1, round(photo.height * factor))
    resample = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    scale = (geometry.scale[0] * photo.height / height, geometry.scale[1] * photo.width / width)
    return photo.resize((width, height), resample), replace(geometry, image_size=(height, width), scale=scale)


def _digest(pixels: Tensor) -> str:
    content = hashlib.sha256(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
    content.update(pixels.contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
