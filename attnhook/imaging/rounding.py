"""Resizes and crops, and to which whole pixel each library rounds them.

The rules are copied from what the libraries do, not from what they document; the sources are named. Sizes are (height, width) in pixels.
"""

import math
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from attnhook.options import Size


class Resize(NamedTuple):
    """A resize of the whole picture to a size."""

    size: Size


class Crop(NamedTuple):
    """A window with its first row and column; where it reaches beyond the picture, it adds a border."""

    start: Size
    size: Size


Step: TypeAlias = Resize | Crop


class CropRounding(StrEnum):
    """Where a centred crop (or the photo inside a centred border) starts when the difference is odd."""

    TORCHVISION = "torchvision"  # half to even; also timm, and transformers' fast processors before 5.0
    FAST = "fast"  # transformers' torchvision backend: down
    SLOW = "slow"  # its PIL backend: down, but with the odd pixel of a border in front


def centred_crop(size: Size, crop: Size, rounding: CropRounding) -> Crop:
    """Put a window at the centre of a picture."""
    return Crop((_crop_start(size[0], crop[0], rounding), _crop_start(size[1], crop[1], rounding)), crop)


def _crop_start(length: int, crop: int, rounding: CropRounding) -> int:
    if crop > length:
        return -((crop - length + (rounding is CropRounding.SLOW)) // 2)
    if rounding is CropRounding.TORCHVISION:
        return round((length - crop) / 2)
    return (length - crop) // 2


def shortest_edge_size(size: Size, edge: int, longest: int | None = None) -> Size:
    """Resize so that the shorter edge has a given length (torchvision `_compute_resized_output_size`; transformers alike)."""
    short, long = min(size), max(size)
    new_short, new_long = edge, int(edge * long / short)
    if longest is not None and new_long > longest:
        new_short, new_long = int(longest * new_short / new_long), longest
    return (new_long, new_short) if size[1] <= size[0] else (new_short, new_long)


def detection_size(size: Size, shortest: int, longest: int, *, multiple: int | None = None) -> Size:
    """Resize within two bounds, as detectors do (transformers `get_size_with_aspect_ratio` and the YOLOS variant of it)."""
    height, width = size
    target: float = shortest
    if max(size) / min(size) * shortest > longest:
        target = longest * float(min(size)) / float(max(size))
    edge = round(target)
    if (height <= width and height == edge) or (multiple is None and width <= height and width == edge):
        new = size
    elif width < height:
        new = (int(target * height / width), edge)
    else:
        new = (edge, int(target * width / height))
    return new if multiple is None else (new[0] - new[0] % multiple, new[1] - new[1] % multiple)


def fitted_size(size: Size, bounds: Size) -> Size:
    """Resize to fit exactly inside bounds (transformers `get_image_size_for_max_height_width`)."""
    factor = min(bounds[0] / size[0], bounds[1] / size[1])
    return int(size[0] * factor), int(size[1] * factor)


def kept_ratio_size(size: Size, target: Size, *, longest: bool) -> Size:
    """Resize to cover a target, or to fit inside it (timm `ResizeKeepRatio`)."""
    ratios = (size[0] / target[0], size[1] / target[1])
    ratio = max(ratios) if longest else min(ratios)
    return round(size[0] / ratio), round(size[1] / ratio)


def patch_budget_size(size: Size, patch: int, budget: int) -> Size:
    """Resize to the most patches within a budget (transformers `get_image_size_for_max_num_patches`, SigLIP2 NaFlex)."""

    def scaled(factor: float) -> Size:
        height, width = (max(patch, math.ceil(edge * factor / patch) * patch) for edge in size)
        return height, width

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        factor = (low + high) / 2
        height, width = scaled(factor)
        if (height / patch) * (width / patch) <= budget:
            low = factor
        else:
            high = factor
    return scaled(low)
