"""Reads resizes, crops and borders off torchvision's and timm's transforms, by class names and attributes, so that neither is imported."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from attnhook.errors import GeometryError
from attnhook.imaging.rounding import (
    Crop,
    CropRounding,
    Resize,
    Step,
    centred_crop,
    kept_ratio_size,
    shortest_edge_size,
)
from attnhook.options import Size

_LIBRARIES = ("torchvision.transforms", "timm.data")
_AUGMENTERS = ("torchvision", "timm", "albumentations", "kornia", "torch")
_MOVE_NO_PIXELS = frozenset(
    {"ConvertImageDtype", "Grayscale", "Identity", "MaybePILToTensor", "MaybeToTensor", "Normalize", "PILToTensor"}
    | {"RGB", "ToDtype", "ToImage", "ToNumpy", "ToPILImage", "ToPureTensor", "ToTensor"}
)
_RANDOM = frozenset(
    {"AugMix", "AutoAugment", "ColorJitter", "ColorJiggle", "CutMix", "ElasticTransform", "MixUp", "RandAugment"}
    | {"ScaleJitter", "TrivialAugmentWide"}
)


def transform_steps(size: Size, transform: Any) -> list[Step] | None:
    """Read what a transform does to a photo; None where it may do more than is known here."""
    steps: list[Step] = []
    for one in _parts(transform):
        found = _steps(size, one)
        if found is None:
            return None
        steps += found
        size = found[-1].size if found else size
    return steps


def check_evaluation(transform: Any) -> None:
    """Refuse transforms that are random by their class."""
    for one in _parts(transform):
        kind = type(one)
        if kind.__module__.split(".")[0] not in _AUGMENTERS:
            continue
        sometimes = kind.__module__.startswith("albumentations") and 0 < float(getattr(one, "p", 1)) < 1
        scaled = getattr(one, "random_scale_prob", 0) or getattr(one, "random_aspect_prob", 0)
        if kind.__name__.startswith("Random") or kind.__name__ in _RANDOM or sometimes or scaled:
            raise GeometryError(
                f"cannot follow the preprocessing: expected the same steps for every photo, got the random transform {kind.__name__}. "
                "Remove it, or pass the transform that you use for evaluation."
            )


def is_nearest(interpolation: Any) -> bool:
    """Whether a resize takes the nearest pixel, which some libraries pick half an input pixel off. Only a measurement can tell."""
    return "nearest" in str(interpolation).lower() or (isinstance(interpolation, int) and int(interpolation) == 0)


def _parts(transform: Any) -> Iterable[Any]:
    inner = getattr(transform, "transforms", None)
    if isinstance(inner, list | tuple | torch.nn.ModuleList):
        for one in inner:
            yield from _parts(one)
        if type(transform).__name__ in {"Compose", "ReplayCompose"}:
            return
    elif isinstance(transform, torch.nn.Sequential):
        for one in transform:
            yield from _parts(one)
        if type(transform) is torch.nn.Sequential:
            return
    yield transform


def _steps(size: Size, transform: Any) -> list[Step] | None:
    kind = type(transform)
    if not kind.__module__.startswith(_LIBRARIES) or is_nearest(getattr(transform, "interpolation", None)):
        return None
    if kind.__name__ in _MOVE_NO_PIXELS:
        return []
    read = _READERS.get(kind.__name__)
    return None if read is None else read(size, transform)


def _resize(size: Size, transform: Any) -> list[Step] | None:
    return _resized(size, transform.size, getattr(transform, "max_size", None))


def _resized(size: Size, wanted: Any, longest: int | None = None) -> list[Step] | None:
    numbers = _numbers(wanted)
    if len(numbers) == 1:
        return [Resize(shortest_edge_size(size, numbers[0], longest))]
    return [Resize((numbers[0], numbers[1]))] if len(numbers) == 2 and longest is None else None


def _center_crop(size: Size, transform: Any) -> list[Step] | None:
    if getattr(transform, "padding_mode", "constant") != "constant":
        return None
    return _cropped(size, transform.size)


def _cropped(size: Size, wanted: Any) -> list[Step] | None:
    numbers = _numbers(wanted)
    if len(numbers) not in (1, 2):
        return None
    return [centred_crop(size, (numbers[0], numbers[-1]), CropRounding.TORCHVISION)]


def _keep_ratio(size: Size, transform: Any) -> list[Step] | None:
    if transform.longest not in (0.0, 1.0) or isinstance(transform.interpolation, list | tuple):
        return None
    return [Resize(kept_ratio_size(size, transform.size, longest=transform.longest == 1.0))]


def _trim(size: Size, transform: Any) -> list[Step] | None:
    border = transform.border_size
    height, width = size[0] - 2 * border, size[1] - 2 * border
    if min(height, width) < 1:
        raise GeometryError(
            f"cannot crop: expected a photo larger than twice crop_border_pixels={border}, got {size[0]} x {size[1]} pixels. "
            "Use a larger photo."
        )
    return [Crop((border, border), (height, width))]


def _preset(size: Size, transform: Any) -> list[Step] | None:
    resized = _resized(size, transform.resize_size)
    cropped = _cropped(resized[-1].size, transform.crop_size) if resized else None
    return resized + cropped if resized and cropped else None


def _pad(size: Size, transform: Any) -> list[Step] | None:
    numbers = _numbers(transform.padding)
    if transform.padding_mode != "constant" or len(numbers) not in (1, 2, 4) or min(numbers) < 0:
        return None  # a border that mirrors the photo is left to the measurement
    left, top, right, bottom = numbers * (4 // len(numbers))
    return [Crop((-top, -left), (size[0] + top + bottom, size[1] + left + right))]


def _numbers(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [int(number) for number in value] if isinstance(value, list | tuple) else []


_READERS: dict[str, Callable[[Size, Any], list[Step] | None]] = {
    "CenterCrop": _center_crop,
    "CenterCropOrPad": _center_crop,
    "ImageClassification": _preset,
    "Pad": _pad,
    "Resize": _resize,
    "ResizeKeepRatio": _keep_ratio,
    "TrimBorder": _trim,
}
