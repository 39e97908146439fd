"""How each kind of preprocessing is called on a photo."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.model_inputs import ModelInputs, as_inputs

_BFLOAT16 = "Llama4ImageProcessor"
_PROCESSOR_BASES = frozenset({"ImageProcessingMixin", "BaseImageProcessor"})


def run(preprocess: Any, photo: Image.Image) -> ModelInputs:
    """Run a preprocessing on a photo."""
    return as_inputs(call_of(preprocess)(photo))


def call_of(preprocess: Any) -> Callable[[Image.Image], Any]:
    """Find out how a preprocessing is called."""
    if (processor := image_processor_of(preprocess)) is not None:
        return lambda photo: processor(images=photo, return_tensors="pt")
    if (config := timm_config_of(preprocess)) is not None:
        import timm.data

        known = inspect.signature(timm.data.create_transform).parameters
        options = {name: value for name, value in config.items() if name in known and name != "is_training"}
        transform: Callable[[Image.Image], Any] = timm.data.create_transform(**options, is_training=False)
        return transform
    if type(preprocess).__module__.split(".")[0] == "albumentations":
        return lambda photo: preprocess(image=np.asarray(photo))["image"]
    if type(preprocess).__module__.startswith("torchvision.transforms.v2"):
        return lambda photo: _of_image_or_tensor(preprocess, photo)
    if callable(preprocess):
        call: Callable[[Image.Image], Any] = preprocess
        return call
    raise GeometryError(
        "cannot preprocess a photo: expected a transform, an image processor, a timm data config or a function of one PIL image, got "
        f"{type(preprocess).__name__}. Pass whatever turns your photo into the model's input."
    )


def _of_image_or_tensor(transform: Any, photo: Image.Image) -> Any:
    """Run a transform of torchvision's v2, many of which take tensors only: there `decode_image` makes the photo."""
    try:
        return transform(photo)
    except TypeError as error:
        if "PIL" not in str(error):
            raise
        return transform(torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous())


def colourless_call_of(preprocess: Any) -> Callable[[Image.Image], Any]:
    """Like `call_of`, without a standardisation of brightness that is known to move no pixels and would leave little to measure.

    Pix2Struct and Kosmos-2.5 divide every image by its own standard deviation. Llama 4 rounds its pixels to bfloat16 on the way, which keeps
    0..255 apart but not what they are normalised to.
    """
    processor = image_processor_of(preprocess)
    if processor is None or not shipped(processor):
        return call_of(preprocess)
    options = {"return_tensors": "pt", "do_normalize": False, "input_data_format": "channels_last"}
    if getattr(processor, "do_normalize", False) and getattr(processor, "image_mean", None) is None:
        return lambda photo: processor(images=np.asarray(photo, np.float32), **options)
    if any(base.__name__.startswith(_BFLOAT16) for base in type(processor).__mro__):
        return lambda photo: processor(images=np.asarray(photo, np.float32), do_rescale=False, **options)
    return call_of(preprocess)


def image_processor_of(preprocess: Any) -> Any:
    """Find the image processor of transformers that something is or contains."""
    for candidate in (preprocess, getattr(preprocess, "image_processor", None)):
        if any(base.__name__ in _PROCESSOR_BASES for base in type(candidate).__mro__):
            return candidate
    return None


def shipped(processor: Any) -> bool:
    """Tell a processor of transformers from a subclass of somebody's."""
    return type(processor).__module__.split(".")[0] == "transformers"


def timm_config_of(preprocess: Any) -> Mapping[str, Any] | None:
    """Read timm's data configuration off something."""
    if isinstance(preprocess, torch.nn.Module) and hasattr(preprocess, "pretrained_cfg"):
        import timm.data

        config: dict[str, Any] = timm.data.resolve_model_data_config(preprocess)
        built = getattr(getattr(preprocess, "patch_embed", None), "img_size", None)
        return config if built is None else config | {"input_size": (config["input_size"][0], *built)}
    return preprocess if isinstance(preprocess, Mapping) else None
