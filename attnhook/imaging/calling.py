"""How each kind of preprocessing is called on a photo."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.geometry_cache import cache_of
from attnhook.imaging.model_inputs import ModelInputs, as_inputs

_TRANSFORM = "transform"
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
        preprocess = timm_transform(config)
    kind = type(preprocess)
    if kind.__module__.split(".")[0] == "albumentations":
        return lambda photo: preprocess(image=np.asarray(photo))["image"]
    if kind.__module__.startswith("torchvision.transforms.v2"):
        return lambda photo: _of_image_or_tensor(preprocess, photo)
    if callable(preprocess):
        call: Callable[[Image.Image], Any] = preprocess
        return call
    raise GeometryError(
        "cannot preprocess a photo: expected a transform, an image processor, a timm data config or a function of one PIL image, got "
        f"{kind.__name__}. Pass what turns your photo into the model's input, not its output."
    )


def _of_image_or_tensor(transform: Any, photo: Image.Image) -> Any:
    """Run a torchvision v2 transform; many accept only tensors, as `decode_image` returns them."""
    try:
        return transform(photo)
    except TypeError as error:
        if "PIL" not in str(error):
            raise
        return transform(torch.from_numpy(np.array(photo)).permute(2, 0, 1).contiguous())


def calibratable_call_of(preprocess: Any) -> Callable[[Image.Image], Any]:
    """Like `call_of`, but without a normalisation of a known processor that would leave little brightness to measure.

    Pix2Struct and Kosmos-2.5 divide every image by its own standard deviation. Llama 4 rounds its pixels to bfloat16 on the way, which
    tells 0..255 apart but not what they are normalised to. Neither moves pixels.
    """
    processor = image_processor_of(preprocess)
    if processor is None or not is_from_transformers(processor):
        return call_of(preprocess)
    options = {"return_tensors": "pt", "do_normalize": False, "input_data_format": "channels_last"}
    if any(base.__name__.startswith(_BFLOAT16) for base in type(processor).__mro__):
        options["do_rescale"] = False
    elif not getattr(processor, "do_normalize", False) or getattr(processor, "image_mean", None) is not None:
        return call_of(preprocess)
    return lambda photo: processor(images=np.asarray(photo, np.float32), **options)


def image_processor_of(preprocess: Any) -> Any:
    """Find the image processor of transformers that an object is or contains."""
    for candidate in (preprocess, getattr(preprocess, "image_processor", None)):
        if any(base.__name__ in _PROCESSOR_BASES for base in type(candidate).__mro__):
            return candidate
    return None


def is_from_transformers(processor: Any) -> bool:
    """Whether a processor's class is part of transformers, and not a subclass of the user's."""
    return type(processor).__module__.split(".")[0] == "transformers"


def timm_config_of(preprocess: Any) -> Mapping[str, Any] | None:
    """Read timm's data config: it is one, or a timm model has one."""
    if isinstance(preprocess, torch.nn.Module) and hasattr(preprocess, "pretrained_cfg"):
        import timm.data

        config: dict[str, Any] = timm.data.resolve_model_data_config(preprocess)
        built = getattr(getattr(preprocess, "patch_embed", None), "img_size", None)
        return config if built is None else config | {"input_size": (config["input_size"][0], *built)}
    return preprocess if isinstance(preprocess, Mapping) and "pixel_values" not in preprocess else None


def timm_transform(config: Mapping[str, Any]) -> Callable[[Image.Image], Any]:
    """Build the evaluation transform that a timm data config describes."""
    unusable = [name for name in ("naflex", "tf_preprocessing", "is_training") if config.get(name)]
    if not config.get("input_size"):
        unusable.append("input_size")
    if (config.get("crop_mode") or "center") not in ("center", "squash", "border"):
        unusable.append("crop_mode")
    if unusable:
        got = ", ".join(f"{name}={config.get(name)!r}" for name in unusable)
        raise GeometryError(
            "cannot follow timm's preprocessing: expected a data config with an input_size, of a plain evaluation transform (crop_mode "
            f"'center', 'squash' or 'border'), got {got}. Pass what timm.data.resolve_model_data_config(model) returns, or your transform."
        )
    cache = cache_of(config)
    if _TRANSFORM not in cache:
        import timm.data

        known = inspect.signature(timm.data.create_transform).parameters
        options = {name: value for name, value in config.items() if name in known and name != "is_training"}
        with torch.device("cpu"):  # it has tensors, and outlives this call
            cache[_TRANSFORM] = timm.data.create_transform(**options, is_training=False)
    transform: Callable[[Image.Image], Any] = cache[_TRANSFORM]
    return transform
