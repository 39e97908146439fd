"""How photos become pixels, and how a model is run on images alone, for workflows that run it themselves."""

from typing import Any

from PIL import Image
from torch import Tensor

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.zoo.loading import Preprocess


def prepared(preprocess: Preprocess, photo: Image.Image) -> tuple[Tensor, ImageGeometry]:
    """What a function of the user's makes of a photo.

    Args:
        preprocess: The function.
        photo: The photo.

    Returns:
        Pixels and their geometry.

    Raises:
        GeometryError: If it gives anything else.
    """
    made: Any = preprocess(photo)
    parts = made if isinstance(made, tuple) else (made,)
    if len(parts) != 2 or not isinstance(parts[0], Tensor) or not isinstance(parts[1], ImageGeometry):
        raise GeometryError(
            "preprocess= does not say where its pixels are in the photo: expected (pixels, ImageGeometry), got "
            f"{', '.join(type(part).__name__ for part in parts)}. Return both; of a photo that was only resized the second is "
            "ImageGeometry.identity((photo.height, photo.width)).resize((height, width))."
        )
    return parts[0], parts[1]


def run_vision(model: Any, pixels: Tensor) -> Any:
    """Run a model on images alone, in its own dtype and on its own device.

    Args:
        model: The model; of a model with a text tower (CLIP) the image tower runs.
        pixels: `(batch, 3, height, width)`.

    Returns:
        What the model answers.
    """
    parameter = next(model.parameters(), pixels)
    pixels = pixels.to(parameter.device, parameter.dtype)
    return model.get_image_features(pixels) if hasattr(model, "get_image_features") else model(pixels)
