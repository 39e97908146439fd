"""Turns whatever says where a model looked into an `ImageGeometry`."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.images import orientation_of
from attnhook.options import Size


def locate(where: Any, photo: Any = None, picture: Image.Image | None = None) -> ImageGeometry:
    """Find where a model's input lies in a photo."""
    if isinstance(where, ImageGeometry):
        if picture is not None and (picture.height, picture.width) != tuple(where.image_size):
            size = (picture.height, picture.width)
            swapped = tuple(where.image_size) == size[::-1]
            remedy = (
                "Height and width look swapped: photo.size is (width, height). Make the geometry from (photo.height, photo.width), after "
                "photo = ImageOps.exif_transpose(photo) if the photo has an EXIF rotation."
                if swapped
                else "Make the geometry from this photo's (photo.height, photo.width), or pass the preprocessing itself."
            )
            raise GeometryError(
                f"the geometry is of another photo: expected {by(where.image_size)} pixels (height x width), got {by(size)}. {remedy}"
            )
        return where
    if where is None:
        raise ValueError(
            "cannot draw a patch map over a photo: expected where=, what turned the photo into pixels, got none. Pass the transform or "
            "processor itself, or an ImageGeometry: overlay(photo, patch_map, transform)."
        )
    if isinstance(where, Image.Image | torch.Tensor | np.ndarray) or (
        hasattr(where, "keys") and "pixel_values" in where
    ):
        raise GeometryError(
            f"cannot place a patch map: expected what turned the photo into pixels, got {type(where).__name__}, a picture or what came out of a "
            "preprocessing. Pass the transform or the processor itself."
        )
    if photo is None:
        raise GeometryError(
            f"cannot place a patch map: expected an ImageGeometry, got {type(where).__name__} without the photo. Pass "
            "ImageGeometry.of(preprocess, photo); heatmap also takes photo=, the photo or its (height, width)."
        )
    orientation = orientation_of(photo)
    if orientation != 1:
        raise GeometryError(
            "cannot tell which way up the model saw this photo: expected an upright one, got EXIF orientation "
            f"{orientation}, which viewers apply and transforms ignore. Pass the photo that the model was fed, after "
            "photo = ImageOps.exif_transpose(photo) for both the model and the overlay."
        )
    return ImageGeometry.of(where, photo if picture is None else picture)


def by(size: Size) -> str:
    """Write a size as in `480 x 640`."""
    return f"{size[0]} x {size[1]}"
