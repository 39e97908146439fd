"""Small models of the vision families of the installed transformers, and inputs that they run on: what `coverage.py` walks.

A family is found through the auto mappings; its default configuration is cut to two layers a stage, its weights are random. What
default inputs do not fit stands in `_INPUTS`.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

_MAPPINGS = (
    "MODEL_MAPPING",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "MODEL_FOR_BACKBONE_MAPPING",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING",
    "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING",
    "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING",
    "MODEL_FOR_MASK_GENERATION_MAPPING",
    "MODEL_FOR_KEYPOINT_DETECTION_MAPPING",
)
_DEPTHS = {
    "num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "depth", "num_encoder_layers", "num_decoder_layers",
    "num_attention_layers", "vision_layers",
}  # fmt: skip


def families() -> dict[str, tuple[Any, Any]]:
    """Configuration class and model class of every family whose main input is pixels, by model type."""
    found = {}
    for kind in transformers.CONFIG_MAPPING:
        config = transformers.CONFIG_MAPPING[kind]
        for mapping in _MAPPINGS:
            try:
                model = getattr(modeling_auto, mapping).get(config, None)
                model = model[0] if isinstance(model, tuple) else model
                if model is not None and "pixel" in str(getattr(model, "main_input_name", "")):
                    found[kind] = (config, model)
                    break
            except (ImportError, ValueError, KeyError):
                break
    return found


def small(config: Any) -> Any:
    """Cut a configuration, and those inside it, to two layers a stage."""
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            small(value)
        elif name in _DEPTHS and isinstance(value, int) and value > 2:
            setattr(config, name, 2)
        elif name == "depths" and isinstance(value, list | tuple):
            setattr(config, name, type(value)(min(2, depth) for depth in value))
        elif name == "vocab_size" and isinstance(value, int):
            setattr(config, name, min(value, 300))
    return config


def image_side(config: Any) -> int:
    """Side of the images that a configuration is for."""
    for holder in (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None)):
        size = getattr(holder, "image_size", None)
        if isinstance(size, int):
            return size
        if isinstance(size, list | tuple) and size:
            return int(size[0])
    return 224


def build(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model of a family and what to run it on."""
    config_class, model_class = families()[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = small(config_class(**_SETTINGS.get(kind, {})))
        model = model_class(config).eval()
    inputs = _INPUTS[kind](config) if kind in _INPUTS else {"pixel_values": images(image_side(config))}
    return model, inputs


def images(height: int, width: int | None = None, batch: int = 1) -> torch.Tensor:
    """Random images."""
    return torch.randn(batch, 3, height, width or height, generator=torch.Generator().manual_seed(0))


def video(config: Any) -> torch.Tensor:
    """A random clip, `(batch, frames, channels, height, width)`."""
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", 8)
    return torch.randn(1, frames, 3, image_side(config), image_side(config), generator=torch.Generator().manual_seed(0))


def with_text(config: Any) -> dict[str, Any]:
    """Pixels and a few words."""
    words = torch.tensor([[1, 5, 6, 2]])
    return {"pixel_values": images(image_side(config)), "input_ids": words, "attention_mask": torch.ones_like(words)}


_SETTINGS: dict[str, dict[str, Any]] = {}
_INPUTS: dict[str, Any] = {
    "videomae": lambda c: {"pixel_values": video(c)},
    "vivit": lambda c: {"pixel_values": video(c)},
    "timesformer": lambda c: {"pixel_values": video(c)},
    "vjepa2": lambda c: {"pixel_values_videos": video(c)},
    "grounding-dino": with_text,
    "mm-grounding-dino": with_text,
}


def all_small() -> Iterator[str]:
    """The families' names."""
    yield from families()
