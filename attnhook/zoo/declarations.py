"""What a model says about itself: its library, its name, its preprocessing and the names of its classes."""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn

from attnhook.capture.plan import unwrapped
from attnhook.imaging.calling import timm_config_of

LIBRARIES = ("timm", "transformers", "torchvision", "open_clip")


def innermost(model: nn.Module) -> nn.Module:
    """Unwrap a model."""
    inner = unwrapped(model)
    base: Any = getattr(inner, "get_base_model", None)
    found = base() if isinstance(base, MethodType) else inner
    return found if isinstance(found, nn.Module) else inner


def library_of(model: nn.Module) -> str | None:
    """Say which library a model comes from."""
    roots = [kind.__module__.partition(".")[0] for kind in type(innermost(model)).__mro__]
    return next((root for root in roots if root in LIBRARIES), None)


def name_of(model: nn.Module) -> str:
    """Name a model for captions."""
    inner = innermost(model)
    config = _timm_config(inner)
    if config is not None and config.get("architecture"):
        return str(config["architecture"])
    if checkpoint := _checkpoint(inner):
        return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint
    return type(inner).__name__


def timm_data_config(model: nn.Module) -> Mapping[str, Any] | None:
    """Read how a timm model expects photos to be prepared."""
    inner = innermost(model)
    if _timm_config(inner) is None:
        return None
    return timm_config_of(inner)


def labels_of(model: nn.Module) -> tuple[str, ...] | None:
    """Read the names of a model's classes."""
    inner = innermost(model)
    config = _timm_config(inner)
    if config is not None:
        return _timm_labels(config, getattr(inner, "num_classes", None))
    transformers: Any = sys.modules.get("transformers")
    if transformers is None or library_of(inner) != "transformers":
        return None
    # Every configuration has an id2label, even for a model without a classifier or without class names.
    settings: Any = getattr(inner, "config", None)
    if not isinstance(inner, transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(settings), ())):
        return None
    labels = tuple(str(label) for _, label in sorted(settings.id2label.items()))
    return None if labels == tuple(f"LABEL_{number}" for number in range(len(labels))) else labels


def missing_preprocess(model: nn.Module) -> str:
    """Ask for the preprocessing of a model that does not bring its own."""
    inner = innermost(model)
    library = library_of(inner)
    asked = "transform, which turns a PIL image into the model's input"
    if library == "transformers":
        checkpoint = _checkpoint(inner)
        asked = f"AutoImageProcessor.from_pretrained({checkpoint or 'the checkpoint of the model'!r})"
    elif library == "torchvision":
        asked = f"{_torchvision_weights(inner)}.DEFAULT.transforms()"
    elif library == "open_clip":
        asked = "preprocess_val, the last value that open_clip.create_model_and_transforms returns"
    return (
        f"cannot prepare photos for a bare {type(inner).__name__}: expected preprocess=, got none, and the model brings no preprocessing of its "
        f"own; pass preprocess={asked}, or where a call has no preprocess=, pass VisionModel(model, preprocess)."
    )


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


@cache
def _imagenet_labels(subset: str) -> tuple[str, ...]:
    import timm

    return tuple(timm.data.ImageNetInfo(subset).label_descriptions())


def _checkpoint(model: nn.Module) -> str | None:
    """What transformers loaded the model from."""
    if library_of(model) != "transformers":
        return None
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def _torchvision_weights(model: nn.Module) -> str:
    """The name of the weights enum for a torchvision model, as far as the model shows it."""
    kind, width = type(model).__name__, getattr(model, "hidden_dim", None)
    if kind == "VisionTransformer":
        letter = {1024: "L", 1280: "H"}.get(width or 0, "B")
        return f"ViT_{letter}_{getattr(model, 'patch_size', 16)}_Weights"
    return {"SwinTransformer": "Swin_T_Weights", "MaxVit": "MaxVit_T_Weights"}.get(kind, f"{kind}_Weights")
