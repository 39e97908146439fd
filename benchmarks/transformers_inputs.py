"""Inputs and settings for the tiny models of `transformers_families`: the general case, and what differs by class."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

DROPPED = object()  # a setting to be left at its default
# Parts of models that are no models: they take what another part makes.
PARTS = frozenset({"UnlimitedOcrVisionEncoder", "UVDocBackbone", "InklingVisionModel", "TimmBackbone"})
# Classes that take words beside an image, and see images themselves (of a language model with a tower, the tower is walked).
WITH_TEXT = frozenset(
    {"ViltModel", "FlavaModel", "CLIPModel", "SiglipModel", "GroundingDinoModel", "MMGroundingDinoModel", "BridgeTowerModel",
     "OwlViTModel", "OwlViTForObjectDetection", "Owlv2ForObjectDetection", "GroupViTModel", "AltCLIPModel", "LayoutLMv3Model",
     "TvpModel", "BlipModel", "Sam3Model", "GitModel", "VisionTextDualEncoderModel", "XCLIPModel", "CLIPSegForImageSegmentation",
     "ChineseCLIPModel", "Aimv2Model", "UdopEncoderModel"}
)  # fmt: skip
# Modules (`path/Class`) with a softmax that is known not to be token attention, or that belong to a text tower.
REVIEWED = re.compile(
    r"MultiscaleDeformableAttention$|LinearSelfAttention$|EfficientAdditiveAttention$|Integral$|LQE$|AssignAttention$"
    r"|(^|\.)(text_model|text_backbone|text_encoder|language_model)\."
)
SETTINGS: dict[str, dict[str, Any]] = {
    "DetrForSegmentation": {"encoder_attention_heads": 8, "decoder_attention_heads": 8},
    "ConditionalDetrForSegmentation": {"encoder_attention_heads": 8, "decoder_attention_heads": 8},
    "CvtConfig": {},
    "BeitConfig": {"use_relative_position_bias": True},
    "Data2VecVisionConfig": {"use_relative_position_bias": True},
    "DPTConfig": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "Dots3NoteVisionConfig": {"adapter_in_dim": 96},
    "HieraForPreTraining": {"decoder_hidden_size": 96, "decoder_depth": 1, "decoder_num_heads": 4},
    "PerceiverForImageClassificationFourier": {"num_cross_attention_heads": 1},
    "PerceiverForImageClassificationConvProcessing": {"num_cross_attention_heads": 1},
    "PvtConfig": {"image_size": 64},
    "EfficientNetConfig": {"width_coefficient": 0.5, "depth_coefficient": 0.5},
    "AlignVisionConfig": {"width_coefficient": 0.5, "depth_coefficient": 0.5},
}
INPUTS: dict[str, Callable[[Any], dict[str, Any]]] = {}


def draw(*shape: int) -> torch.Tensor:
    """Random numbers, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def side(config: Any) -> tuple[int, int]:
    """Height and width of the images that a configuration is for."""
    for holder in (config, *(getattr(config, name, None) for name in ("vision_config", "backbone_config"))):
        size = getattr(holder, "image_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) >= 2:
            return int(size[-2]), int(size[-1])
    return 64, 64


def candidates(kind: type[Any], config: Any) -> Iterator[dict[str, Any]]:
    """Inputs to try, the more telling first: images that are not square, then those of the configuration."""
    if kind.__name__ in INPUTS:
        yield INPUTS[kind.__name__](config)
        return
    taken = set(inspect.signature(kind.forward).parameters)
    more = words() if "input_ids" in taken else {}
    if "grid_thw" in taken:
        yield packed(config, "hidden_states" if "hidden_states" in taken else "pixel_values")
        return
    name = next(n for n in ("pixel_values_videos", "pixel_values", "flattened_patches", "image") if n in taken)
    height, width = side(config)
    channels = int(getattr(config, "num_channels", 3) or 3)
    frames = int(getattr(config, "num_frames", 0) or getattr(config, "frames_per_clip", 0) or 0)
    for size in ((height, 3 * width // 2), (height, width), (128, 128), (224, 224)):
        if frames:
            yield {name: draw(2, frames, channels, *size), **more}
        yield {name: draw(2, channels, *size), **more}


def words(batch: int = 2) -> dict[str, torch.Tensor]:
    """A few words an image."""
    ids = torch.tensor([[1, 5, 6, 7, 8, 2]] * batch)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def packed(config: Any, name: str) -> dict[str, Any]:
    """Patches of two images, of 8 by 12 and 4 by 8, one behind the other, as the towers of Qwen's kind take them."""
    channels = getattr(config, "in_channels", None) or getattr(config, "num_channels", 3)
    width = channels * getattr(config, "temporal_patch_size", 1) * config.patch_size**2
    return {name: draw(8 * 12 + 4 * 8, width), "grid_thw": torch.tensor([[1, 8, 12], [1, 4, 8]])}
