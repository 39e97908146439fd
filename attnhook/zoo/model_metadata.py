"""What a model knows about itself: its library, name, preprocessing, classes, and the patch grid that it was trained with."""

import math
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor, nn

from attnhook.capture.wrapped_models import unwrapped
from attnhook.imaging.calling import timm_config_of
from attnhook.options import Size

LIBRARIES = ("timm", "transformers", "torchvision", "open_clip")

_MOST_SPECIAL = 9
"""Most special tokens in a table of position embeddings: a class token, a distillation token, registers."""


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside wrappers, such as DDP's and PEFT's."""
    inner = unwrapped(model)
    base: Any = getattr(inner, "get_base_model", None)
    found = base() if isinstance(base, MethodType) else inner
    return found if isinstance(found, nn.Module) else inner


def library_of(model: nn.Module) -> str | None:
    """The library that a model comes from."""
    roots = [kind.__module__.partition(".")[0] for kind in type(inner_model(model)).__mro__]
    return next((root for root in roots if root in LIBRARIES), None)


def name_of(model: nn.Module) -> str:
    """A model's name for captions: its architecture, its checkpoint, or its class."""
    inner = inner_model(model)
    config = _timm_config(inner)
    if config is not None and config.get("architecture"):
        return str(config["architecture"])
    if checkpoint := _checkpoint(inner):
        return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint
    return type(inner).__name__


def timm_data_config(model: nn.Module) -> Mapping[str, Any] | None:
    """The preprocessing that a timm model expects; None for other models."""
    inner = inner_model(model)
    return None if _timm_config(inner) is None else timm_config_of(inner)


def labels_of(model: nn.Module) -> tuple[str, ...] | None:
    """The names of a model's classes, if it knows them."""
    inner = inner_model(model)
    if (config := _timm_config(inner)) is not None:
        return _timm_labels(config, getattr(inner, "num_classes", None))
    transformers: Any = sys.modules.get("transformers")
    if transformers is None or library_of(inner) != "transformers":
        return None
    # Every configuration has an id2label, even for a model without a classifier or without class names.
    settings: Any = getattr(inner, "config", None)
    own = not type(inner).__module__.startswith("transformers.")  # a class of the user's
    if not own and not isinstance(inner, transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(settings), ())):
        return None
    labels = tuple(str(label) for _, label in sorted(settings.id2label.items()))
    return None if labels == tuple(f"LABEL_{number}" for number in range(len(labels))) else labels


def missing_preprocess(model: nn.Module) -> str:
    """The message for a model without preprocessing."""
    inner = inner_model(model)
    library = library_of(inner)
    suggestion = "transform, which turns a PIL image into the model's input"
    if library == "transformers":
        checkpoint = _checkpoint(inner)
        suggestion = f"AutoImageProcessor.from_pretrained({checkpoint or 'the checkpoint of the model'!r})"
    elif library == "torchvision":
        suggestion = f"{_torchvision_weights(inner)}.DEFAULT.transforms()"
    elif library == "open_clip":
        suggestion = "preprocess_val, the last value that open_clip.create_model_and_transforms returns"
    return (
        f"cannot prepare photos for a bare {type(inner).__name__}: expected preprocess=, got none, and the model brings no preprocessing of its "
        f"own; pass preprocess={suggestion}, or where a call has no preprocess=, pass VisionModel(model, preprocess)."
    )


def trained_grid(model: nn.Module) -> Size | None:
    """The patch grid of a model's position embeddings, which are resampled at other sizes."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(config, dict) and config.get("input_size") and isinstance(patch, tuple):
        if not isinstance(getattr(model, "pos_embed", None), Tensor):  # rotary and relative positions are not resampled
            return None
        return config["input_size"][1] // patch[0], config["input_size"][2] // patch[1]
    own = getattr(model, "config", None)
    own = getattr(own, "vision_config", own)
    grid = _configured_grid(getattr(own, "image_size", None), getattr(own, "patch_size", None))
    for name, parameter in model.named_parameters():
        if ("pos_embed" in name or "position_embedding" in name) and "text" not in name and parameter.dim() in (2, 3):
            if grid is not None and parameter.shape[-2] >= grid[0] * grid[1]:
                return grid
            for special in range(_MOST_SPECIAL + 1):
                edge = math.isqrt(max(parameter.shape[-2] - special, 0))
                if edge > 1 and edge * edge == parameter.shape[-2] - special:
                    return edge, edge
    return None


def _configured_grid(image: Any, patch: Any) -> Size | None:
    sizes = [(size, size) if isinstance(size, int) else size for size in (image, patch)]
    if not all(isinstance(size, tuple | list) and len(size) == 2 for size in sizes):
        return None
    (height, width), (patch_height, patch_width) = sizes
    return height // patch_height, width // patch_width


def _timm_config(model: nn.Module) -> Mapping[str, Any] | None:
    config: Any = getattr(model, "pretrained_cfg", None)
    return config if library_of(model) == "timm" and isinstance(config, Mapping) else None


def _timm_labels(config: Mapping[str, Any], num_classes: Any) -> tuple[str, ...] | None:
    named = config.get("label_names")
    if named and len(named) == num_classes:
        return tuple(map(str, named))
    import timm

    subset = timm.data.infer_imagenet_subset({"num_classes": num_classes})
    return _imagenet_labels(subset) if subset else None


@cache  # timm reads its tables of names anew each time
def _imagenet_labels(subset: str) -> tuple[str, ...]:
    import timm

    return tuple(timm.data.ImageNetInfo(subset).label_descriptions())


def _checkpoint(model: nn.Module) -> str | None:
    """The id or directory that transformers loaded the model from."""
    if library_of(model) != "transformers":
        return None
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def _torchvision_weights(model: nn.Module) -> str:
    """The most likely weights enum of a torchvision model."""
    kind, width = type(model).__name__, getattr(model, "hidden_dim", None)
    if kind == "VisionTransformer":
        letter = {1024: "L", 1280: "H"}.get(width or 0, "B")
        return f"ViT_{letter}_{getattr(model, 'patch_size', 16)}_Weights"
    return {"SwinTransformer": "Swin_T_Weights", "MaxVit": "MaxVit_T_Weights"}.get(kind, f"{kind}_Weights")
