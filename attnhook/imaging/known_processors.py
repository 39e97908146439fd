"""Reads resizes, crops and borders off image processors of transformers, by attributes, so that the library is not imported."""

from collections.abc import Mapping
from typing import Any

from attnhook.imaging.known_transforms import is_nearest, transform_steps
from attnhook.imaging.rounding import (
    Crop,
    CropRounding,
    Resize,
    Step,
    centred_crop,
    detection_size,
    fitted_size,
    patch_budget_size,
    shortest_edge_size,
)
from attnhook.options import Size

_YOLOS_MULTIPLE = 16
_KNOWN_OPTIONS = frozenset(
    {"do_rescale", "do_normalize", "do_convert_rgb", "do_reduce_labels", "do_convert_annotations"}
    | {"do_flip_channel_order", "do_resize", "do_center_crop", "do_pad"}
)
_GEOMETRY_METHODS = ("resize", "center_crop", "pad", "_preprocess")
_BACKENDS = frozenset({"TorchvisionBackend", "PilBackend", "BaseImageProcessor", "BaseImageProcessorFast"})
# Processors with methods of their own (before transformers 5: all of them) that do what is read here.
_FOLLOWED = frozenset(
    {"ViT", "DeiT", "CLIP", "Siglip", "Siglip2", "Bit", "Beit", "DINOv3ViT", "Yolos", "Detr", "Levit"}
)


def processor_steps(size: Size, processor: Any) -> list[Step] | None:
    """Read what an image processor does to a photo; None where it may do more than is known here."""
    if hasattr(processor, "val_transforms"):  # timm's checkpoints in transformers
        return transform_steps(size, processor.val_transforms)
    if not _is_followed(processor) or is_nearest(getattr(processor, "resample", None)):
        return None
    steps: list[Step] = []
    if processor.do_resize:
        resized = _resized(size, processor)
        if resized is None:
            return None
        steps.append(Resize(resized))
        size = resized
    if getattr(processor, "do_center_crop", False):
        crop = _height_and_width(getattr(processor, "crop_size", None))
        if crop is None:
            return None
        steps.append(centred_crop(size, crop, _crop_rounding(processor)))
    if getattr(processor, "do_pad", False) and getattr(processor, "pad_size", None) is not None:
        padded = _height_and_width(processor.pad_size)
        if padded is None:
            return None
        steps.append(Crop((0, 0), padded))
    return steps


def _is_followed(processor: Any) -> bool:
    """Whether a processor has only options and methods that are known here."""
    options = {name for name in dir(processor) if name.startswith("do_") and getattr(processor, name) is True}
    if not options <= _KNOWN_OPTIONS or not hasattr(processor, "do_resize"):
        return False
    for method in _GEOMETRY_METHODS:
        owner = next((kind for kind in type(processor).__mro__ if method in vars(kind)), None)
        if owner is not None and owner.__name__ not in _BACKENDS and _stem(owner) not in _FOLLOWED:
            return False
    return True


def _stem(kind: type) -> str:
    """The name of a class without what distinguishes the variants of a processor: "CLIP" of CLIPImageProcessorFast."""
    return kind.__name__.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")


def _resized(size: Size, processor: Any) -> Size | None:
    family = next((stem for stem in map(_stem, type(processor).__mro__) if stem in _FOLLOWED), None)
    if family == "Siglip2":
        patch = processor.patch_size
        side = patch if isinstance(patch, int) else _entry(patch, "height")
        return patch_budget_size(size, side, processor.max_num_patches) if side else None
    shortest, longest = _entry(processor.size, "shortest_edge"), _entry(processor.size, "longest_edge")
    bounds = _entry(processor.size, "max_height"), _entry(processor.size, "max_width")
    if shortest and longest:
        return detection_size(size, shortest, longest, multiple=_YOLOS_MULTIPLE if family == "Yolos" else None)
    if shortest:
        return shortest_edge_size(size, int(256 / 224 * shortest) if family == "Levit" else shortest)
    if bounds[0] and bounds[1]:
        return fitted_size(size, (bounds[0], bounds[1]))
    return _height_and_width(processor.size)


def _crop_rounding(processor: Any) -> CropRounding:
    backend = getattr(processor, "backend", None)  # transformers 5; before, the class's name tells
    if backend == "torchvision":
        return CropRounding.FAST
    if backend is None and type(processor).__name__.endswith("Fast"):
        return CropRounding.TORCHVISION
    return CropRounding.SLOW


def _entry(size: Any, name: str) -> int | None:
    """One entry of a size given as a dict or as transformers' SizeDict."""
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return None if value is None else int(value)


def _height_and_width(size: Any) -> Size | None:
    height, width = _entry(size, "height"), _entry(size, "width")
    return (height, width) if height and width else None
