"""From a photo to what the model is fed and where that lies in the photo, whatever the preprocessing is."""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.model_inputs import ModelInputs


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
        GeometryError: If it cannot be told where the pixels lie, or they are not of the size that the geometry says.
    """
    raise NotImplementedError
