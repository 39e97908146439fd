"""From a photo to what the model is fed and where that lies in the photo, whatever the preprocessing is."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.calling import run
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.options import Size

_CHANNELS = (1, 3)


@dataclass(frozen=True, eq=False)
class Prepared:
    """One photo, ready for a model.

    Attributes:
        inputs: What the model is fed.
        geometry: Where that lies in the photo.
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
        GeometryError: If the preprocessing made several inputs of the photo, if it cannot be told where the pixels lie, or if they are not
            of the size that the geometry says.
    """
    size = (photo.height, photo.width)  # before the call: a preprocessing may work in place
    inputs = run(preprocess, photo)
    shape = tuple(inputs.pixels.shape)
    pictures = len(shape) in (4, 5) and shape[-3] in _CHANNELS
    count = shape[0] * (shape[1] if len(shape) == 5 else 1)
    if pictures and count != 1:
        raise GeometryError(
            f"preprocess= made {count} inputs of one photo: expected one, got pixels {shape}. Turn tiling off, or return the input that you "
            "want to look at."
        )
    geometry = ImageGeometry.of(preprocess, size) if inputs.geometry is None else inputs.geometry
    if geometry.image_size != size:
        raise GeometryError(
            f"preprocess= returned the geometry of another photo: expected image_size {size}, got {geometry.image_size}. Begin it with "
            "ImageGeometry.identity((photo.height, photo.width))."
        )
    if pictures and shape[-2:] != tuple(geometry.input_size):
        raise GeometryError(
            f"the pixels and the geometry of a photo of {size[0]} x {size[1]} do not go together: expected pixels of "
            f"{geometry.input_size[0]} x {geometry.input_size[1]}, which the geometry says, got {shape[-2]} x {shape[-1]}. Let preprocess= "
            "return the geometry of the steps that it does."
        )
    return Prepared(inputs, geometry)


def seen_size(preprocess: Any, size: Size) -> Size | None:
    """Say what size of input a preprocessing makes of a photo.

    Args:
        preprocess: As in `prepare`.
        size: The photo's height and width, in pixels.

    Returns:
        The input's height and width, or None where that is not known; `prepare` says why.
    """
    try:
        return ImageGeometry.of(preprocess, size).input_size
    except Exception:  # whatever a preprocessing raises on a photo that it was not made for
        return None
