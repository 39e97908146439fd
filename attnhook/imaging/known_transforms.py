"""Reads the resizes, crops and borders off torchvision's and timm's transforms, by class names and attributes, so that neither is imported."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from attnhook.errors import GeometryError
from attnhook.imaging.preprocessing import Crop, Resize, Step, centred_crop
from attnhook.imaging.rounding import CropRounding, kept_ratio_size, shortest_edge_size
from attnhook.options import Size

_LIBRARIES = ("torchvision.transforms", "timm.data")
_AUGMENTERS = ("torchvision", "timm", "albumentations", "kornia", "torch")
_COLOURS = frozenset(
    {
        "ConvertImageDtype",
        "Grayscale",
        "Identity",
        "MaybePILToTensor",
        "MaybeToTensor",
        "Normalize",
        "PILToTensor",
        "RGB",
        "ToDtype",
        "ToImage",
        "ToNumpy",
        "ToPILImage",
        "ToPureTensor",
        "ToTensor",
    }
)
"""Transforms that move no pixels."""
_RANDOM = frozenset(
    {"AugMix", "AutoAugment", "ColorJitter", "ColorJiggle", "CutMix", "ElasticTransform", "MixUp", "RandAugment"}
    | {"ScaleJitter", "TrivialAugmentWide"}
)


def transform_steps(size: Size, transform: Any) -> list[Step] | None:
    """Read what a transform does to a photo."""
    steps: list[Step] = []
    for one in _parts(transform):
        found = _steps(size, one)
        if found is None:
            return None
        steps += found
        size = found[-1].size if found else size
    return steps


def check_evaluation(transform: Any) -> None:
    """Refuse transforms that are random by what they are."""
    for one in _parts(transform):
        kind = type(one)
        if kind.__module__.split(".")[0] not in _AUGMENTERS:
            continue
        sometimes = kind.__module__.startswith("albumentations") and 0 < float(getattr(one, "p", 1)) < 1
        scaled = getattr(one, "random_scale_prob", 0) or getattr(one, "random_aspect_prob", 0)
        if kind.__name__.startswith("Random") or kind.__name__ in _RANDOM or sometimes or scaled:
            raise GeometryError(
                f"cannot follow the preprocessing: expected the same to be done to every photo, got the random transform {kind.__name__}. "
                "Take it out, or use the evaluation form of the transform."
            )


def nearest(interpolation: Any) -> bool:
    """Tell whether a resize takes the nearest pixel, which some libraries find half an input pixel beside the point: that is for measuring."""
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
    if not kind.__module__.startswith(_LIBRARIES):
        return None
    if kind.__name__ in _COLOURS:
        return []
    read = _READERS.get(kind.__name__)
    return None if read is None else read(size, transform)


def _plain_resize(size: Size, transform: Any) -> list[Step] | None:
    if nearest(transform.interpolation):
        return None
    return _resize(size, transform.size, getattr(transform, "max_size", None))


def _centre_crop(size: Size, transform: Any) -> list[Step] | None:
    crop = _pair(transform.size)
    if crop is None or getattr(transform, "padding_mode", "constant") != "constant":
        return None
    return [centred_crop(size, crop, CropRounding.TORCHVISION)]


def _keep_ratio(size: Size, transform: Any) -> list[Step] | None:
    if (
        nearest(transform.interpolation)
        or transform.longest not in (0.0, 1.0)
        or isinstance(transform.interpolation, list | tuple)
    ):
        return None
    return [Resize(kept_ratio_size(size, transform.size, longest=transform.longest == 1.0))]


def _trim(size: Size, transform: Any) -> list[Step] | None:
    border = transform.border_size
    left = size[0] - 2 * border, size[1] - 2 * border
    return [Crop((border, border), left)] if min(left) > 0 else None


def _preset(size: Size, transform: Any) -> list[Step] | None:
    resized, crop = _resize(size, transform.resize_size, None), _pair(transform.crop_size)
    if resized is None or crop is None or nearest(transform.interpolation):
        return None
    return [*resized, centred_crop(resized[-1].size, crop, CropRounding.TORCHVISION)]


def _resize(size: Size, wanted: Any, longest: int | None) -> list[Step] | None:
    numbers = [wanted] if isinstance(wanted, int) else list(wanted) if isinstance(wanted, list | tuple) else []
    if len(numbers) == 1:
        return [Resize(shortest_edge_size(size, int(numbers[0]), longest))]
    return [Resize((int(numbers[0]), int(numbers[1])))] if len(numbers) == 2 and longest is None else None


def _pad(size: Size, transform: Any) -> list[Step] | None:
    padding = transform.padding
    if transform.padding_mode != "constant":
        return None  # measured: what mirrors the photo is no border of one colour
    numbers = [padding] if isinstance(padding, int) else list(padding) if isinstance(padding, list | tuple) else []
    if len(numbers) == 1:
        numbers *= 4
    elif len(numbers) == 2:
        numbers *= 2
    if len(numbers) != 4 or min(numbers) < 0:
        return None
    left, top, right, bottom = numbers
    return [Crop((-top, -left), (size[0] + top + bottom, size[1] + left + right))]


def _pair(size: Any) -> Size | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) in (1, 2):
        return int(size[0]), int(size[-1])
    return None


_READERS: dict[str, Callable[[Size, Any], list[Step] | None]] = {
    "CenterCrop": _centre_crop,
    "CenterCropOrPad": _centre_crop,
    "ImageClassification": _preset,
    "Pad": _pad,
    "Resize": _plain_resize,
    "ResizeKeepRatio": _keep_ratio,
    "TrimBorder": _trim,
}
