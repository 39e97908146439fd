"""Where the pixels of a photo went on their way into a model: resize, crop and padding as one affine map per axis.

Coordinates are continuous and measured at pixel edges: a picture of height H spans 0..H, and the centre of row i is at i + 0.5. That is
how Pillow, torchvision and `align_corners=False` resample, so no half pixel is lost on the way. Flips, rotations and random
augmentation are out of scope.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.preprocessing import Crop, Resize, Step, centred_crop, processor_steps, timm_steps
from attnhook.imaging.rounding import CropRounding, shortest_edge_size
from attnhook.options import Size, choose

_Coordinate = TypeVar("_Coordinate", float, NDArray[np.floating[Any]], torch.Tensor)

Box = tuple[float, float, float, float]
"""Top, left, bottom, right, in pixels at pixel edges."""


@dataclass(frozen=True)
class ImageGeometry:
    """The map between a photo's pixels and a model's input: `input = photo * scale + offset`, for each axis.

    Every method that does a step returns a new geometry, so steps chain in the order of the preprocessing.

    Attributes:
        image_size: The photo's height and width, in pixels, upright.
        input_size: The model input's height and width, in pixels.
        scale: Input pixels per photo pixel, (vertical, horizontal).
        offset: Where the photo's top left corner lies on the input, (vertical, horizontal), in input pixels.
        valid: The part of the input that shows photo rather than padding, in input pixels.

    Example:
        >>> seen = ImageGeometry.identity((428, 640)).resize(248).center_crop((224, 224))
        >>> [round(edge) for edge in seen.visible]
        [21, 126, 407, 514]
    """

    image_size: Size
    input_size: Size
    scale: tuple[float, float]
    offset: tuple[float, float]
    valid: Box

    @classmethod
    def identity(cls, size: Size) -> Self:
        """Start with a photo that is its own model input.

        Args:
            size: The photo's height and width, in pixels.

        Returns:
            The geometry.
        """
        height, width = _checked_size(size, "photo")
        return cls((height, width), (height, width), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0, float(height), float(width)))

    @classmethod
    def from_timm(cls, size: Size, data_config: Mapping[str, Any]) -> Self:
        """Follow `timm.data.create_transform(**data_config, is_training=False)`.

        Args:
            size: The photo's height and width, in pixels.
            data_config: What `timm.data.resolve_data_config` returns for the model.

        Returns:
            The geometry.

        Raises:
            GeometryError: If the configuration cannot be followed; the message names what.

        Example:
            >>> ImageGeometry.from_timm((428, 640), {"input_size": (3, 224, 224), "crop_pct": 0.9}).input_size
            (224, 224)
        """
        start = cls.identity(size)
        return start._apply(timm_steps(start.image_size, data_config))

    @classmethod
    def from_processor(cls, size: Size, processor: Any, *, input_size: Size | None = None) -> Self:
        """Follow an image processor of transformers.

        Args:
            size: The photo's height and width, in pixels.
            processor: The image processor, fast or slow, or a processor that contains one.
            input_size: Height and width of the `pixel_values`, where the photo was padded at the bottom and right to a batch.

        Returns:
            The geometry. For NaFlex processors the input is the picture that the patches tile.

        Raises:
            GeometryError: If the processor has steps that cannot be followed; the message names them.
        """
        start = cls.identity(size)
        geometry = start._apply(processor_steps(start.image_size, processor))
        return geometry if input_size is None else geometry.pad_to(input_size)

    @property
    def visible(self) -> Box:
        """The part of the photo that the model saw: top, left, bottom, right, in photo pixels."""
        top, left = self.to_image(self.valid[0], self.valid[1])
        bottom, right = self.to_image(self.valid[2], self.valid[3])
        height, width = self.image_size
        return max(top, 0.0), max(left, 0.0), min(bottom, float(height)), min(right, float(width))

    def resize(self, size: int | Size, *, longest: int | None = None) -> Self:
        """Resize the whole picture.

        Args:
            size: Height and width, or one number for the shorter edge (aspect ratio kept, rounded as torchvision does).
            longest: With one number: the most that the longer edge may have, in pixels.

        Returns:
            The geometry after this step.

        Raises:
            GeometryError: If a size is not positive, or `longest` comes with two numbers.
        """
        if isinstance(size, int):
            _checked_size((size, size), "resized picture")
            return self._resized(shortest_edge_size(self.input_size, size, longest))
        if longest is not None:
            raise GeometryError(
                f"cannot resize: expected one number with longest={longest}, got {size}. Drop longest, or pass one number."
            )
        return self._resized(size)

    def center_crop(self, size: int | Size, *, rounding: str = CropRounding.TORCHVISION) -> Self:
        """Cut out the centre; where the crop is the larger one, add a border instead, as the libraries do.

        Args:
            size: Height and width of the crop, or one number for a square, in pixels.
            rounding: Whose rule for odd differences: "torchvision" (also timm), "fast" or "slow" (transformers).

        Returns:
            The geometry after this step.
        """
        wanted = _checked_size((size, size) if isinstance(size, int) else size, "crop")
        step = centred_crop(self.input_size, wanted, choose(CropRounding, rounding, "rounding"))
        return self.crop(step.start, step.size)

    def crop(self, start: Size, size: Size) -> Self:
        """Cut out a window; where it reaches beyond the picture, it adds a border.

        Args:
            start: First row and column of the window, in pixels; may be negative.
            size: Height and width of the window, in pixels.

        Returns:
            The geometry after this step.

        Raises:
            GeometryError: If nothing of the photo is left in the window.
        """
        height, width = _checked_size(size, "crop")
        top, left = start
        valid = (
            max(self.valid[0] - top, 0.0),
            max(self.valid[1] - left, 0.0),
            min(self.valid[2] - top, float(height)),
            min(self.valid[3] - left, float(width)),
        )
        if valid[0] >= valid[2] or valid[1] >= valid[3]:
            raise GeometryError(
                f"cannot crop: expected a window that shows photo, got rows {top}..{top + height} and columns "
                f"{left}..{left + width} of a {self.input_size} picture. Check the window."
            )
        offset = (self.offset[0] - top, self.offset[1] - left)
        return type(self)(self.image_size, (height, width), self.scale, offset, valid)

    def pad(self, *, top: int = 0, left: int = 0, bottom: int = 0, right: int = 0) -> Self:
        """Add a border.

        Args:
            top: Rows above.
            left: Columns to the left.
            bottom: Rows below.
            right: Columns to the right.

        Returns:
            The geometry after this step.

        Raises:
            GeometryError: If a border is negative.
        """
        if min(top, left, bottom, right) < 0:
            raise GeometryError(
                f"cannot pad: expected borders of 0 or more pixels, got top={top}, left={left}, bottom={bottom}, "
                f"right={right}. Use crop to cut."
            )
        height, width = self.input_size
        return self.crop((-top, -left), (height + top + bottom, width + left + right))

    def pad_to(self, size: Size) -> Self:
        """Add a border at the bottom and at the right, as batches of unequal pictures get it.

        Args:
            size: Height and width afterwards, in pixels.

        Returns:
            The geometry after this step.

        Raises:
            GeometryError: If the picture is larger than that.
        """
        height, width = _checked_size(size, "padded picture")
        if height < self.input_size[0] or width < self.input_size[1]:
            raise GeometryError(
                f"cannot pad: expected a size of at least {self.input_size}, got {size}. "
                "Check that the geometry and the model input are of the same photo."
            )
        return self.crop((0, 0), (height, width))

    def to_input(self, y: _Coordinate, x: _Coordinate) -> tuple[_Coordinate, _Coordinate]:
        """Map points of the photo to the model input.

        Args:
            y: Vertical positions, in photo pixels at pixel edges: a number, an array or a tensor.
            x: Horizontal positions, likewise.

        Returns:
            The vertical and horizontal positions, in input pixels.
        """
        return y * self.scale[0] + self.offset[0], x * self.scale[1] + self.offset[1]

    def to_image(self, y: _Coordinate, x: _Coordinate) -> tuple[_Coordinate, _Coordinate]:
        """Map points of the model input to the photo: the inverse of `to_input`.

        Args:
            y: Vertical positions, in input pixels at pixel edges: a number, an array or a tensor.
            x: Horizontal positions, likewise.

        Returns:
            The vertical and horizontal positions, in photo pixels.
        """
        return (y - self.offset[0]) / self.scale[0], (x - self.offset[1]) / self.scale[1]

    def _resized(self, size: Size) -> Self:
        height, width = _checked_size(size, "resized picture")
        tall, wide = height / self.input_size[0], width / self.input_size[1]
        top, left, bottom, right = self.valid
        return type(self)(
            self.image_size,
            (height, width),
            (self.scale[0] * tall, self.scale[1] * wide),
            (self.offset[0] * tall, self.offset[1] * wide),
            (top * tall, left * wide, bottom * tall, right * wide),
        )

    def _apply(self, steps: Iterable[Step]) -> Self:
        geometry = self
        for step in steps:
            match step:
                case Resize(size):
                    geometry = geometry._resized(size)
                case Crop(start, size):
                    geometry = geometry.crop(start, size)
        return geometry


def _checked_size(size: Size, what: str) -> Size:
    try:
        height, width = size
        whole = all(number == int(number) and number >= 1 for number in (height, width))
    except (TypeError, ValueError, OverflowError):  # a picture, one number, words
        whole = False
    if not whole:
        raise GeometryError(
            f"not a size of a {what}: expected (height, width), whole and positive, got {size!r}. Of a PIL image pass "
            "(image.height, image.width); its image.size is (width, height)."
        )
    return int(height), int(width)
