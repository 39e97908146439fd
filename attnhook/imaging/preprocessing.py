"""Reads a preprocessing configuration (timm, transformers) into the resizes and crops that it does to one photo.

Works on attributes only, so neither library is imported. What changes colours is skipped; what moves pixels in a way that is not known
here is an error, since a map in the wrong place is worse than none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from attnhook.errors import GeometryError
from attnhook.imaging.rounding import (
    CropRounding,
    crop_start,
    detection_size,
    fitted_size,
    kept_ratio_size,
    patch_budget_size,
    shortest_edge_size,
)
from attnhook.options import Size


@dataclass(frozen=True)
class Resize:
    """A resize of the whole picture.

    Attributes:
        size: Height and width afterwards, in pixels.
    """

    size: Size


@dataclass(frozen=True)
class Crop:
    """A window on the picture; where it reaches beyond the picture, it adds a border.

    Attributes:
        start: First row and column, in pixels; negative where a border comes first.
        size: Height and width of the window, in pixels.
    """

    start: Size
    size: Size


Step: TypeAlias = Resize | Crop

_TIMM_DEFAULT_CROP_PCT = 0.875
_TIMM_UNFOLLOWED = ("naflex", "tf_preprocessing", "is_training")
_YOLOS_MULTIPLE = 16
_COLOUR_STEPS = frozenset(
    {
        "do_rescale",
        "do_normalize",
        "do_convert_rgb",
        "do_reduce_labels",
        "do_convert_annotations",
        "do_flip_channel_order",
    }
)
_PIXEL_STEPS = frozenset({"do_resize", "do_center_crop", "do_pad"})
_GEOMETRY_METHODS = ("resize", "center_crop", "pad", "_preprocess")
_BACKENDS = frozenset({"TorchvisionBackend", "PilBackend", "BaseImageProcessor", "BaseImageProcessorFast"})
# Processors that bring methods of their own (before transformers 5: all of them), read here one by one.
_FOLLOWED = frozenset(
    {"ViT", "DeiT", "CLIP", "Siglip", "Siglip2", "Bit", "Beit", "DINOv3ViT", "Yolos", "Detr", "Levit"}
)


def timm_steps(size: Size, data_config: Mapping[str, Any]) -> list[Step]:
    """Read what `timm.data.create_transform(**data_config, is_training=False)` does to a photo."""
    unfollowed = [name for name in _TIMM_UNFOLLOWED if data_config.get(name)]
    if unfollowed:
        raise GeometryError(
            f"cannot follow timm's preprocessing: expected the plain evaluation transform, got {', '.join(unfollowed)}. "
            "Build the ImageGeometry from its resize and crop steps."
        )
    target = _timm_input_size(data_config.get("input_size"))
    fraction = data_config.get("crop_pct") or _TIMM_DEFAULT_CROP_PCT
    mode = data_config.get("crop_mode") or "center"
    scaled = (math.floor(target[0] / fraction), math.floor(target[1] / fraction))

    steps: list[Step] = []
    border = data_config.get("crop_border_pixels") or 0
    if border:
        size = (size[0] - 2 * border, size[1] - 2 * border)
        if min(size) < 1:
            raise GeometryError(
                f"cannot crop: expected a photo larger than twice crop_border_pixels={border}, got {size} left. "
                "Use a larger photo."
            )
        steps.append(Crop((border, border), size))

    if mode == "squash":
        resized = scaled
    elif mode == "border":
        resized = kept_ratio_size(size, scaled, longest=True)
    elif mode == "center" and scaled[0] == scaled[1]:
        resized = shortest_edge_size(size, scaled[0])
    elif mode == "center":
        resized = kept_ratio_size(size, scaled, longest=False)
    else:
        raise GeometryError(
            f"cannot follow timm's preprocessing: expected crop_mode 'center', 'squash' or 'border', got {mode!r}. "
            "Build the ImageGeometry from its resize and crop steps."
        )
    return [*steps, Resize(resized), centred_crop(resized, target, CropRounding.TORCHVISION)]


def processor_steps(size: Size, processor: Any) -> list[Step]:
    """Read what a transformers image processor does to a photo."""
    processor = getattr(processor, "image_processor", processor)
    if isinstance(getattr(processor, "data_config", None), Mapping):  # timm's checkpoints in transformers
        return timm_steps(size, processor.data_config)
    _check_followed(processor)
    family = _family(type(processor))

    steps: list[Step] = []
    if getattr(processor, "do_resize", False):
        size = _patches_size(size, processor) if family == "Siglip2" else _processor_size(size, processor, family)
        steps.append(Resize(size))
    if getattr(processor, "do_center_crop", False):
        crop = _height_and_width(getattr(processor, "crop_size", None))
        if crop is None:
            raise _unfollowed(processor, f"crop_size={processor.crop_size!r}")
        steps.append(centred_crop(size, crop, _crop_rounding(processor)))
        size = crop
    if getattr(processor, "do_pad", False) and getattr(processor, "pad_size", None) is not None:
        padded = _height_and_width(processor.pad_size)
        if padded is None:
            raise _unfollowed(processor, f"pad_size={processor.pad_size!r}")
        steps.append(Crop((0, 0), padded))
    return steps


def centred_crop(size: Size, crop: Size, rounding: CropRounding) -> Crop:
    """Place a window at the centre of a picture."""
    return Crop((crop_start(size[0], crop[0], rounding), crop_start(size[1], crop[1], rounding)), crop)


def _timm_input_size(value: Any) -> Size:
    if isinstance(value, int):
        return value, value
    if isinstance(value, tuple | list) and len(value) in (2, 3):
        return int(value[-2]), int(value[-1])
    raise GeometryError(
        f"cannot follow timm's preprocessing: expected input_size (channels, height, width), got {value!r}. "
        "Pass what timm.data.resolve_data_config returns."
    )


def _check_followed(processor: Any) -> None:
    """Refuse a processor with steps, or overridden methods, that this file does not know."""
    unknown = sorted(
        name
        for name in dir(processor)
        if name.startswith("do_") and name not in _COLOUR_STEPS | _PIXEL_STEPS and getattr(processor, name) is True
    )
    if unknown:
        raise _unfollowed(processor, ", ".join(unknown))
    if not hasattr(processor, "do_resize"):
        raise _unfollowed(processor, "no do_resize attribute")
    for method in _GEOMETRY_METHODS:
        owner = next((kind for kind in type(processor).__mro__ if method in vars(kind)), None)
        if owner is not None and owner.__name__ not in _BACKENDS and _stem(owner) not in _FOLLOWED:
            raise _unfollowed(processor, f"its own {method}() in {owner.__name__}")


def _family(kind: type) -> str:
    """Name the processor that a class is, or inherits from, as in `_FOLLOWED`."""
    return next((_stem(base) for base in kind.__mro__ if _stem(base) in _FOLLOWED), kind.__name__)


def _stem(kind: type) -> str:
    """Name a class without what tells variants of one processor apart: "CLIP" of CLIPImageProcessorFast."""
    return kind.__name__.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")


def _processor_size(size: Size, processor: Any, family: str) -> Size:
    wanted = processor.size
    shortest, longest = _entry(wanted, "shortest_edge"), _entry(wanted, "longest_edge")
    bounds = _entry(wanted, "max_height"), _entry(wanted, "max_width")
    exact = _height_and_width(wanted)
    if shortest and longest:
        return detection_size(size, shortest, longest, multiple=_YOLOS_MULTIPLE if family == "Yolos" else None)
    if shortest:
        return shortest_edge_size(size, int(256 / 224 * shortest) if family == "Levit" else shortest)
    if bounds[0] and bounds[1]:
        return fitted_size(size, (bounds[0], bounds[1]))
    if exact:
        return exact
    raise _unfollowed(processor, f"size={wanted!r}")


def _patches_size(size: Size, processor: Any) -> Size:
    patch = processor.patch_size
    side = patch if isinstance(patch, int) else _entry(patch, "height")
    if not side:
        raise _unfollowed(processor, f"patch_size={patch!r}")
    return patch_budget_size(size, side, processor.max_num_patches)


def _crop_rounding(processor: Any) -> CropRounding:
    backend = getattr(processor, "backend", None)  # transformers 5; before, the class's name tells
    if backend == "torchvision":
        return CropRounding.FAST
    if backend is None and type(processor).__name__.endswith("Fast"):
        return CropRounding.TORCHVISION
    return CropRounding.SLOW


def _entry(size: Any, name: str) -> int | None:
    """Read one entry of a size given as a dict or as transformers' SizeDict."""
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return None if value is None else int(value)


def _height_and_width(size: Any) -> Size | None:
    height, width = _entry(size, "height"), _entry(size, "width")
    return (height, width) if height and width else None


def _unfollowed(processor: Any, what: str) -> GeometryError:
    return GeometryError(
        f"cannot follow {type(processor).__name__}: expected resize, centred crop and padding only, got {what}. "
        "Build the geometry by hand: ImageGeometry.identity(size).resize(...).center_crop(...)."
    )
