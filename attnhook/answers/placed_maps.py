"""A word's map, with the processor that turned the photo into pixels: the place of its grid in the photo is measured, never assumed."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnhook.errors import GeometryError
from attnhook.imaging.calling import image_processor_of
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.images import ImageSource, orientation_of, read_image
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Interpolation
from attnhook.zoo.image_tokens import ImagePart

_TOLERANCE = 0.5  # input pixels by which a tile may lie elsewhere than its row and column say


@dataclass(frozen=True, eq=False, repr=False)
class AnswerMap(PatchMap):
    """The map of a word. A `PatchMap` that needs no `where` if its capture got a processor.

    Attributes:
        part: Which grid of the image it is; None if unknown.
        inputs: How many inputs the processor made of the photo; 0 if unknown.
        processor: The processor that turned the photo into pixels; None if it was not given.
    """

    part: ImagePart | None = None
    inputs: int = 1
    processor: Any = None

    def geometry(self, photo: Any) -> ImageGeometry:
        """Where the grid lies in the photo.

        Args:
            photo: The photo, or its (height, width).

        Returns:
            The geometry of the inputs that the grid covers, cut to the grid.

        Raises:
            GeometryError: If there is no processor, or it makes other inputs of the photo than the model got.
        """
        processor = image_processor_of(self.processor)
        if processor is None or self.part is None:
            raise GeometryError(
                "cannot place the map in the photo: expected the model's processor, got none, or one without images. Pass it: "
                "AnswerCapture(model, processor). Or pass an ImageGeometry to overlay."
            )
        if not isinstance(photo, tuple | list) and orientation_of(photo) != 1:
            raise GeometryError(
                f"cannot tell which way up the model saw this photo: expected an upright one, got EXIF orientation {orientation_of(photo)}. Use "
                "photo = ImageOps.exif_transpose(photo) for both the model and the overlay."
            )
        each = ImageGeometry.of_each(processor, photo)
        part = self.part
        if (self.inputs and len(each) != self.inputs) or max(part.inputs) >= len(each):
            raise GeometryError(
                f"the photo and the answer do not match: expected {self.inputs or len(part.inputs)} inputs, as the model got, got {len(each)} "
                "from the processor. Pass the photo that was asked about, and set the same options in the processor."
            )
        return _cut(_joined([each[number] for number in part.inputs], part), part)

    def heatmap(self, where: Any = None, *, photo: Any = None, mode: str = Interpolation.BILINEAR) -> Tensor:
        """Interpolate to the pixels of the photo, as `PatchMap.heatmap` does; `where` may be left out if `photo` is given."""
        if where is None:
            where = self.geometry(photo)
        return PatchMap.heatmap(self, where, photo=photo, mode=mode)

    def overlay(self, photo: ImageSource, where: Any = None, **options: Any) -> Image.Image:
        """Draw it over its photo, as `PatchMap.overlay` does; `where` may be left out."""
        where = self.geometry(photo) if where is None else where
        return PatchMap.overlay(self, read_image(photo), where, **options)

    def figure(self, photo: ImageSource, where: Any = None, **options: Any) -> Any:
        """Draw photo, map and overlay, as `PatchMap.figure` does; `where` may be left out."""
        where = self.geometry(photo) if where is None else where
        return PatchMap.figure(self, read_image(photo), where, **options)


def _joined(each: list[ImageGeometry | None], part: ImagePart) -> ImageGeometry:
    """The geometry of inputs side by side, after checking that each lies where its row and column say."""
    rows, columns = part.arrangement
    known = [(number, one) for number, one in enumerate(each) if one is not None]
    if not known:
        raise GeometryError("the map cannot be placed: expected inputs that show the photo, got padding only.")
    number, first = known[0]
    height, width = first.input_size
    origin = (first.offset[0] + number // columns * height, first.offset[1] + number % columns * width)
    top, left, bottom, right = torch.inf, torch.inf, -torch.inf, -torch.inf
    for number, one in known:
        down, across = number // columns * height, number % columns * width
        off = (one.offset[0] + down - origin[0], one.offset[1] + across - origin[1])
        # At the far end of the photo, where a difference in scale shows most.
        far = [abs(a - b) * size for a, b, size in zip(one.scale, first.scale, one.image_size, strict=True)]
        if one.input_size != first.input_size or max(map(abs, off)) > _TOLERANCE or max(far) > _TOLERANCE:
            raise GeometryError(
                f"the tiles cannot be joined: expected input {part.inputs[number]} to lie at row {number // columns} and column "
                f"{number % columns} of {rows} x {columns}, got one that is {off[0]:.1f} pixels lower and {off[1]:.1f} further right. Use part= "
                "with one of the other grids."
            )
        top, left = min(top, one.valid[0] + down), min(left, one.valid[1] + across)
        bottom, right = max(bottom, one.valid[2] + down), max(right, one.valid[3] + across)
    size = (rows * height, columns * width)
    return ImageGeometry(first.image_size, size, first.scale, origin, (top, left, bottom, right))


def _cut(geometry: ImageGeometry, part: ImagePart) -> ImageGeometry:
    """The inputs from where the grid begins."""
    top, left, height, width = part.area
    if tuple(geometry.input_size) != tuple(part.input_size):
        raise GeometryError(
            f"the photo and the answer do not match: expected an input of {part.input_size[0]} x {part.input_size[1]} pixels, as the model got, "
            f"got {geometry.input_size[0]} x {geometry.input_size[1]} from the processor. Pass the photo that was asked about, and set the same "
            "options in the processor."
        )
    return geometry.crop((top, left), (height, width)) if top or left else geometry
