"""Reads resizes, crops and borders off preprocessing that is known: transforms of torchvision and timm, image processors of transformers.

By class names and attributes, so that none of the libraries is imported. What may do more than is known here is left to the measurement.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from attnhook.errors import GeometryError
from attnhook.imaging import rounding
from attnhook.imaging.calling import image_processor_of, is_from_transformers, timm_config_of, timm_transform
from attnhook.imaging.rounding import Crop, CropRounding, Resize, Step, centred_crop
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


def known_steps(preprocess: Any, size: Size) -> list[Step] | None:
    """Read the steps of a preprocessing; None where it may do more than is known here. Refuse it if it is random."""
    _check_evaluation(preprocess)
    if (config := timm_config_of(preprocess)) is not None:
        preprocess = timm_transform(config)
    processor = image_processor_of(preprocess)
    return _transform_steps(size, preprocess) if processor is None else _processor_steps(size, processor)


def ignores_content(preprocess: Any) -> bool:
    """Whether a preprocessing is known to do the same to all photos of a size."""
    processor = image_processor_of(preprocess)
    return known_steps(preprocess, (64, 64)) is not None if processor is None else is_from_transformers(processor)


def _transform_steps(size: Size, transform: Any) -> list[Step] | None:
    steps: list[Step] = []
    for one in _parts(transform):
        found = _steps(size, one)
        if found is None:
            return None
        steps += found
        size = found[-1].size if found else size
    return steps


def _check_evaluation(transform: Any) -> None:
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


def _is_nearest(interpolation: Any) -> bool:
    """Whether a resize takes the nearest pixel, which some libraries pick half an input pixel off. Only a measurement can tell."""
    return "nearest" in str(interpolation).lower() or (isinstance(interpolation, int) and int(interpolation) == 0)


def _parts(transform: Any) -> Iterable[Any]:
    inner = transform if isinstance(transform, torch.nn.Sequential) else getattr(transform, "transforms", None)
    if isinstance(inner, list | tuple | torch.nn.ModuleList | torch.nn.Sequential):
        for one in inner:
            yield from _parts(one)
        if type(transform).__name__ in {"Compose", "ReplayCompose"} or type(transform) is torch.nn.Sequential:
            return
    yield transform


def _steps(size: Size, transform: Any) -> list[Step] | None:
    kind = type(transform)
    if not kind.__module__.startswith(_LIBRARIES) or _is_nearest(getattr(transform, "interpolation", None)):
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
        return [Resize(rounding.shortest_edge_size(size, numbers[0], longest))]
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
    return [Resize(rounding.kept_ratio_size(size, transform.size, longest=transform.longest == 1.0))]


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


def _processor_steps(size: Size, processor: Any) -> list[Step] | None:
    if hasattr(processor, "val_transforms"):  # timm's checkpoints in transformers
        return _transform_steps(size, processor.val_transforms)
    if not _is_followed(processor) or _is_nearest(getattr(processor, "resample", None)):
        return None
    steps: list[Step] = []
    if processor.do_resize:
        resized = _processor_size(size, processor)
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


def _processor_size(size: Size, processor: Any) -> Size | None:
    family = next((stem for stem in map(_stem, type(processor).__mro__) if stem in _FOLLOWED), None)
    if family == "Siglip2":
        patch = processor.patch_size
        side = patch if isinstance(patch, int) else _entry(patch, "height")
        return rounding.patch_budget_size(size, side, processor.max_num_patches) if side else None
    shortest, longest = _entry(processor.size, "shortest_edge"), _entry(processor.size, "longest_edge")
    bounds = _entry(processor.size, "max_height"), _entry(processor.size, "max_width")
    if shortest and longest:
        return rounding.detection_size(size, shortest, longest, multiple=_YOLOS_MULTIPLE if family == "Yolos" else None)
    if shortest:
        return rounding.shortest_edge_size(size, int(256 / 224 * shortest) if family == "Levit" else shortest)
    if bounds[0] and bounds[1]:
        return rounding.fitted_size(size, (bounds[0], bounds[1]))
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
