"""How a model is run on images alone, for workflows that run it themselves."""

from typing import Any

from torch import Tensor


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
