"""From a photo to the model's input and where that lies in the photo, for any preprocessing."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.calling import run
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.imaging.placing import check_fit, follows_no_content
from attnhook.imaging.resemblance import check_resemblance
from attnhook.options import Size


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
    """
    size = (photo.height, photo.width)  # before the call: a preprocessing may work in place
    alike = follows_no_content(preprocess)
    inputs = run(preprocess, photo if alike else photo.copy())  # a function may work in place, as PIL's thumbnail does
    if inputs.pictures > 1:
        raise GeometryError(
            f"cannot use preprocess=: expected one input per photo, got {inputs.pictures}, in pixels of shape {tuple(inputs.pixels.shape)}. "
            "Turn tiling off, or pass a function that returns only the input that you want to look at."
        )
    geometry = ImageGeometry.of(preprocess, size) if inputs.geometry is None else inputs.geometry
    check_fit(inputs, geometry, size)
    if inputs.pictures and inputs.geometry is None and not alike:
        check_resemblance(photo, inputs.pixels, geometry)
    return Prepared(inputs, geometry)


def seen_size(preprocess: Any, size: Size) -> Size | None:
    """Find the size of the input that a preprocessing makes from a photo."""
    try:
        return ImageGeometry.of(preprocess, size).input_size
    except Exception:  # whatever a preprocessing raises on a photo it was not made for
        return None
