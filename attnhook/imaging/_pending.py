"""Temporary: runs a preprocessing and finds its geometry, until `ImageGeometry.of` and its `run` take over."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.model_inputs import ModelInputs, as_inputs
from attnhook.imaging.rounding import kept_ratio_size
from attnhook.options import Size

_COLOUR = {"ToTensor", "MaybeToTensor", "PILToTensor", "ToImage", "ToDtype", "ConvertImageDtype", "Normalize"}


def run(preprocess: Any, photo: Image.Image) -> ModelInputs:
    """Call any kind of preprocessing on a photo.

    Args:
        preprocess: The preprocessing.
        photo: The photo.

    Returns:
        What it made.

    Raises:
        GeometryError: If it is not a preprocessing.
    """
    if isinstance(preprocess, Mapping):
        import timm

        return as_inputs(timm.data.create_transform(**preprocess, is_training=False)(photo))
    if _is_processor(preprocess):
        return as_inputs(getattr(preprocess, "image_processor", preprocess)(images=photo, return_tensors="pt"))
    if not callable(preprocess):
        raise GeometryError(
            f"cannot use preprocess=: expected a transform, an image processor, a timm data config or a function, got "
            f"{type(preprocess).__name__}. Pass what turns a photo into the model's pixels."
        )
    return as_inputs(preprocess(photo))


def geometry_of(preprocess: Any, size: Size) -> ImageGeometry:
    """Find where the pixels of a photo go.

    Args:
        preprocess: The preprocessing.
        size: The photo's height and width.

    Returns:
        The geometry.
    """
    if isinstance(preprocess, Mapping):
        return ImageGeometry.from_timm(size, preprocess)
    if _is_processor(preprocess):
        return ImageGeometry.from_processor(size, preprocess)
    if hasattr(preprocess, "crop_size") and hasattr(preprocess, "resize_size"):
        return ImageGeometry.identity(size).resize(preprocess.resize_size[0]).center_crop(preprocess.crop_size[0])
    geometry: ImageGeometry | None = ImageGeometry.identity(size)
    for step in getattr(preprocess, "transforms", (None,)):
        geometry = None if geometry is None else _followed(geometry, step)
    return _measured(preprocess, size) if geometry is None else geometry


def _followed(geometry: ImageGeometry, step: Any) -> ImageGeometry | None:
    kind = type(step).__name__
    size: Any = getattr(step, "size", None)
    if kind in _COLOUR:
        return geometry
    if kind == "Resize":
        if isinstance(size, int) or len(size) == 1:
            return geometry.resize(size if isinstance(size, int) else size[0], longest=step.max_size)
        return geometry.resize((size[0], size[1]))
    if kind == "ResizeKeepRatio" and step.longest in (0, 1):
        return geometry.resize(kept_ratio_size(geometry.input_size, size, longest=bool(step.longest)))
    if kind in {"CenterCrop", "CenterCropOrPad"}:
        return geometry.center_crop(size if isinstance(size, int) else (size[0], size[1]))
    return None


def _measured(preprocess: Any, size: Size) -> ImageGeometry:
    height, width = size
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    across = np.linspace(0, 255, width)[None].repeat(height, 0)
    shown = [run(preprocess, _grey(values)) for values in (0 * down, 0 * down + 255, down, across)]
    if shown[0].geometry is not None:
        geometry: ImageGeometry = shown[0].geometry
        return geometry
    black, white, *ramps = (one.pixels[0].double().mean(0) for one in shown)
    inside = (white - black).abs() > 1e-6
    scales, offsets, edges = [], [], []
    for axis, ramp in enumerate(ramps):
        value = ((ramp - black) / (white - black)).masked_fill(~inside, 0).sum(1 - axis) / inside.sum(1 - axis)
        places = torch.arange(len(value), dtype=torch.float64) + 0.5
        seen = inside.any(1 - axis)
        edges.append((float(places[seen][0] - 0.5), float(places[seen][-1] + 0.5)))
        middle = seen & (value > 0.05) & (value < 0.95)
        table = torch.stack([places[middle], torch.ones(int(middle.sum()), dtype=torch.float64)], dim=1)
        photo = value[middle] * (size[axis] - 1) + 0.5
        slope, start = torch.linalg.lstsq(table, photo[:, None]).solution.flatten().tolist()
        scales.append(1 / slope)
        offsets.append(-start / slope)
    (top, bottom), (left, right) = edges
    input_size = (black.shape[0], black.shape[1])
    return ImageGeometry(size, input_size, (scales[0], scales[1]), (offsets[0], offsets[1]), (top, left, bottom, right))


def _grey(values: Any) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")


def _is_processor(preprocess: Any) -> bool:
    return hasattr(preprocess, "save_pretrained") or hasattr(preprocess, "image_processor")
