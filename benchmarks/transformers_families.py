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
        config = config_class(**_SETTINGS.get(kind, {}))
        config = config if kind in _WHOLE else small(config)
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


def packed(config: Any, name: str = "grid_thw") -> dict[str, Any]:
    """Patches of one image of 8 by 12, as the towers of Qwen's kind take them."""
    channels, patch = getattr(config, "in_channels", getattr(config, "num_channels", 3)), config.patch_size
    width = channels * getattr(config, "temporal_patch_size", 1) * patch * patch
    pixels = torch.randn(96, width, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels, name: torch.tensor([[1, 8, 12]])}


def naflex(config: Any) -> dict[str, Any]:
    """Patches of one image of 8 by 12, padded to 100, as SigLIP2 takes them."""
    vision = getattr(config, "vision_config", config)
    pixels = torch.randn(1, 100, 3 * vision.patch_size**2, generator=torch.Generator().manual_seed(0))
    mask = torch.cat([torch.ones(1, 96), torch.zeros(1, 4)], dim=1).long()
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor([[8, 12]])}


def wide(config: Any) -> dict[str, Any]:
    """As `packed`, for towers that take two frames a patch."""
    inputs = packed(config)
    return {**inputs, "pixel_values": inputs["pixel_values"].repeat(1, 2)}


def pairs(config: Any) -> dict[str, Any]:
    """Two images to be matched."""
    return {"pixel_values": torch.randn(1, 2, 3, 96, 128, generator=torch.Generator().manual_seed(0))}


# Backbones that hand out the output of numbered layers.
_WHOLE = {
    "depth_anything",
    "prompt_depth_anything",
    "zoedepth",
    "tipsv2_dpt",
    "chmv2",
    "eomt",
    "eomt_dinov3",
    "lw_detr",
    "rf_detr",
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "vjepa2": {"image_size": 64, "crop_size": 64, "frames_per_clip": 4, "hidden_size": 96, "num_attention_heads": 4},
    "vivit": {"image_size": 64, "num_frames": 4},
    "pixtral": {"image_size": 256},
}
_INPUTS: dict[str, Any] = {
    "cosmos3_edge_vision": packed,
    "glm_image_vision": packed,
    "hunyuan_vl_vision": packed,
    "hy_v4_vl_vision": packed,
    "muse_glimmer_vision": wide,
    "muse_spark_vision": wide,
    "inkling2_vision": lambda c: packed(c, "image_grid_thw"),
    "video_llama_3_vision": lambda c: {**packed(c), "merge_sizes": torch.tensor([1])},
    "siglip2": naflex,
    "siglip2_vision_model": naflex,
    "efficientloftr": pairs,
    "lightglue": pairs,
    "mgp-str": lambda c: {"pixel_values": images(32, 128)},
    "vitpose_backbone": lambda c: {"pixel_values": images(256, 192)},
    "depth_pro": lambda c: {"pixel_values": images(1536)},
    "videoprism_vision_model": lambda c: {"pixel_values_videos": video(c)},
    "videomt": lambda c: {"pixel_values_videos": video(c)},
    "sam2": lambda c: {"pixel_values": images(1024)},
    "pe_video_encoder": lambda c: {"pixel_values_videos": torch.randn(1, 2, 3, 336, 336)},
    "instructblip": lambda c: {
        "pixel_values": images(224),
        "qformer_input_ids": torch.tensor([[1, 5, 6, 2]]),
        "input_ids": torch.tensor([[1, 5, 6, 2]]),
        "decoder_input_ids": torch.tensor([[1]]),
    },
    "sam3": with_text,
    "sam3_lite_text": with_text,
    "seggpt": lambda c: {
        "pixel_values": images(448),
        "prompt_pixel_values": images(448),
        "prompt_masks": images(448),
    },
    "oneformer": lambda c: {"pixel_values": images(128), "task_inputs": torch.ones(1, 77).long()},
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
