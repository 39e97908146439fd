"""From a photo to the model's input and where that is in the photo, for any preprocessing."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.calling import run
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.geometry_lookup import check_pixels
from attnhook.imaging.images import orientation_of
from attnhook.imaging.known_preprocessing import ignores_content
from attnhook.imaging.model_inputs import ModelInputs, with_pixels
from attnhook.imaging.repeatability import check_resemblance
from attnhook.options import Size


@dataclass(frozen=True, eq=False)
class Prepared:
    """One photo, ready for a model."""

    inputs: ModelInputs
    geometry: ImageGeometry  # which part of the photo the input shows


def prepare(preprocess: Any, photo: Image.Image) -> Prepared:
    """Run a preprocessing, as `ImageGeometry.of` takes it, on a photo."""
    size = (photo.height, photo.width)
    known = ignores_content(preprocess)
    inputs = run(preprocess, photo if known else photo.copy())  # a function may work in place, as PIL's thumbnail does
    if inputs.pictures > 1:
        raise GeometryError(
            f"cannot use preprocess=: expected one input per photo, got {inputs.pictures}, in pixels of shape {tuple(inputs.pixels.shape)}. "
            "Turn tiling off, or pass a function that returns only the input that you want to look at."
        )
    geometry = ImageGeometry.of(preprocess if inputs.geometry is None else inputs.geometry, size)
    inputs = _with_batch_axis(inputs, geometry)
    check_pixels(inputs, geometry)
    if not known:
        check_resemblance(photo, inputs, geometry)
    return Prepared(inputs, geometry)


def _with_batch_axis(inputs: ModelInputs, geometry: ImageGeometry) -> ModelInputs:
    """Add the batch axis that pixels of a picture lack; what has no channels either is refused."""
    shape = tuple(inputs.pixels.shape)
    if inputs.packed or len(shape) not in (2, 3) or shape[-2:] != tuple(geometry.input_size):
        return inputs
    if len(shape) == 2:
        raise GeometryError(
            f"cannot use preprocess=: expected pixels (channels, height, width), with or without a batch axis, got shape {shape}. Let it "
            "return a tensor with an axis for the channels."
        )
    return with_pixels(inputs, inputs.pixels[None])


def seen_size(preprocess: Any, size: Size) -> Size | None:
    """Find the size of the input that a preprocessing makes of a photo."""
    try:
        return ImageGeometry.of(preprocess, size).input_size
    except Exception:  # whatever a preprocessing raises on a photo it was not made for
        return None


def locate(where: Any, photo: Any = None, picture: Image.Image | None = None) -> ImageGeometry:
    """Turn whatever says where a model looked into a geometry; `picture` is the photo as it was read, if it was."""
    if isinstance(where, ImageGeometry):
        return where if picture is None else ImageGeometry.of(where, (picture.height, picture.width))
    if where is None:
        raise ValueError(
            "cannot draw a patch map over a photo: expected where=, what turned the photo into pixels, got none. Pass the transform or "
            "processor itself, or an ImageGeometry: overlay(photo, patch_map, transform)."
        )
    if photo is None:
        raise GeometryError(
            f"cannot place a patch map: expected an ImageGeometry, got {type(where).__name__} without the photo. Pass "
            "ImageGeometry.of(preprocess, photo); heatmap also takes photo=, the photo or its (height, width)."
        )
    if (orientation := orientation_of(photo)) != 1:
        raise GeometryError(
            f"cannot tell which way up the model saw this photo: expected an upright one, got EXIF orientation {orientation}, which viewers "
            "apply and transforms ignore. Use photo = ImageOps.exif_transpose(photo) for both the model and the overlay."
        )
    return ImageGeometry.of(where, photo if picture is None else picture)


def by(size: Size) -> str:
    """Write a size as in `480 x 640`."""
    return f"{size[0]} x {size[1]}"


def view_in_words(geometry: ImageGeometry) -> str:
    """Say which part of the photo the model saw, to an input pixel."""
    (height, width), (top, left, bottom, right) = geometry.image_size, geometry.visible
    margins = (top, height - bottom), (left, width - right)
    pixels = [1 / abs(scale) for scale in geometry.scale]
    if all(max(sides) <= pixel for sides, pixel in zip(margins, pixels, strict=True)):
        return "whole photo"
    centred = all(abs(first - last) <= 2 * pixel for (first, last), pixel in zip(margins, pixels, strict=True))
    return "centre crop" if centred else "crop"
