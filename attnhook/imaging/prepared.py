"""From a photo to the model's input and where that lies in the photo, for any preprocessing."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.calling import run
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.imaging.placing import follows_no_content
from attnhook.imaging.resemblance import check_resemblance
from attnhook.options import Size

_CHANNELS = (1, 3)


@dataclass(frozen=True, eq=False)
class Prepared:
    """One photo, ready for a model.

    Attributes:
        inputs: The model's input.
        geometry: Where the input lies in the photo.
    """

    inputs: ModelInputs
    geometry: ImageGeometry


def prepare(preprocess: Any, photo: Image.Image) -> Prepared:
    """Run a preprocessing on a photo.

    Args:
        preprocess: A transform, an image processor, a timm data config, any callable, or a function that returns `(pixels, ImageGeometry)`.
        photo: The photo, RGB, upright.

    Returns:
        Inputs and geometry.

    Raises:
        GeometryError: If the preprocessing makes several inputs from the photo, if attnhook cannot find out where the pixels lie, or if
            their size differs from the geometry's.
    """
    size = (photo.height, photo.width)  # before the call: a preprocessing may work in place
    alike = follows_no_content(preprocess)
    inputs = run(preprocess, photo if alike else photo.copy())  # a function may work in place, as PIL's thumbnail does
    shape = tuple(inputs.pixels.shape)
    pictures = len(shape) in (4, 5) and shape[-3] in _CHANNELS
    count = shape[0] * (shape[1] if len(shape) == 5 else 1)
    if pictures and count != 1:
        raise GeometryError(
            f"cannot use preprocess=: expected one input per photo, got {count}, in pixels of shape {shape}. Turn tiling off, or pass a "
            "function that returns only the input that you want to look at."
        )
    geometry = ImageGeometry.of(preprocess, size) if inputs.geometry is None else inputs.geometry
    if geometry.image_size != size:
        raise GeometryError(
            f"preprocess= returned the geometry of another photo: expected image_size {size}, got {geometry.image_size}. Start it with "
            "ImageGeometry.identity((photo.height, photo.width))."
        )
    if pictures and shape[-2:] != tuple(geometry.input_size):
        raise GeometryError(
            f"the pixels and the geometry of a photo of {size[0]} x {size[1]} do not match: expected pixels of "
            f"{geometry.input_size[0]} x {geometry.input_size[1]}, the geometry's input_size, got {shape[-2]} x {shape[-1]}. Let preprocess= "
            "return the geometry of the steps that it does, or the pixels alone."
        )
    if pictures and inputs.geometry is None and not alike:
        check_resemblance(photo, inputs.pixels.reshape(1, *shape[-3:]), geometry)
    return Prepared(inputs, geometry)


def seen_size(preprocess: Any, size: Size) -> Size | None:
    """Find the size of the input that a preprocessing makes from a photo.

    Args:
        preprocess: As in `prepare`.
        size: The photo's height and width, in pixels.

    Returns:
        The input's height and width, or None if unknown; `prepare` then raises the reason.
    """
    try:
        return ImageGeometry.of(preprocess, size).input_size
    except Exception:  # whatever a preprocessing raises on a photo it was not made for
        return None
