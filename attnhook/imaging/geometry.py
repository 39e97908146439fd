"""The geometry of a model's input: resize, crop and padding as one affine map per axis between photo and input.

Coordinates are continuous and measured at pixel edges: a picture of height H spans 0..H, and the centre of row i is at i + 0.5. That is
how Pillow, torchvision and `align_corners=False` resample, so no half pixel is lost on the way. Flips, rotations and random
augmentation are refused.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from attnhook.errors import GeometryError
from attnhook.imaging.calling import image_processor_of, timm_config_of
from attnhook.imaging.geometry_lookup import check_pixels, maps_of, size_and_photo
from attnhook.imaging.known_preprocessing import known_steps
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.imaging.rounding import Crop, CropRounding, Step, centred_crop, shortest_edge_size
from attnhook.options import Size, choose

_Geometry = TypeVar("_Geometry")
_Coordinate = TypeVar("_Coordinate", float, NDArray[np.floating[Any]], torch.Tensor)

Box = tuple[float, float, float, float]
"""Top, left, bottom, right, in pixels at pixel edges."""


@dataclass(frozen=True)
class ImageGeometry:
    """The affine map from a photo's pixels to a model's input: `input = photo * scale + offset`, for each axis.

    `resize`, `center_crop`, `crop`, `pad` and `pad_to` return a new geometry, so steps chain in the order of the preprocessing.

    Attributes:
        image_size: The photo's height and width, in pixels, upright.
        input_size: The model input's height and width, in pixels.
        scale: Input pixels per photo pixel, (vertical, horizontal).
        offset: Position of the photo's top left corner on the input, (vertical, horizontal), in input pixels.
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
    def of(cls, preprocess: Any, photo_or_size: Any) -> Self:
        """Find which part of a photo a preprocessing turns into the model's input.

        If the steps are known exactly (torchvision's and timm's transforms, many image processors of transformers), they are used after a
        measurement has confirmed them. Anything else is measured (see `measured`), and the result is remembered for this photo size.

        Args:
            preprocess: Whatever turns the photo into the model's input: a torchvision transform, a timm transform, data config or model, an
                image processor of transformers, or any function of one PIL image. It may also be an `ImageGeometry`, or a function that
                returns `(pixels, ImageGeometry)`.
            photo_or_size: The photo, as anything that `read_image` takes, or its (height, width).

        Returns:
            The geometry.

        Raises:
            GeometryError: If the preprocessing is random, does more than resize, crop and pad, or makes several inputs; the message says
                what was found.

        Example:
            >>> import numpy as np
            >>> ImageGeometry.of(lambda photo: np.asarray(photo.resize((224, 112))), (428, 640)).input_size
            (112, 224)
        """
        return cls._only(cls.of_each(preprocess, photo_or_size))

    @classmethod
    def of_each(cls, preprocess: Any, photo_or_size: Any) -> tuple[Self | None, ...]:
        """Find the geometry of each of several inputs, such as the tiles that LLaVA-NeXT or Idefics3 cut from one photo.

        Args:
            preprocess: As in `of`.
            photo_or_size: As in `of`.

        Returns:
            One geometry per input, in order; None for an input that shows padding only.

        Raises:
            GeometryError: As in `of`.
        """
        size, photo = size_and_photo(photo_or_size)
        start = cls.identity(size)
        size = start.image_size
        if isinstance(preprocess, ImageGeometry):
            if preprocess.image_size != size:
                swapped = "Height and width look swapped: PIL's photo.size is (width, height). "
                raise GeometryError(
                    f"the geometry is of another photo: expected image_size {size}, got {preprocess.image_size}. "
                    f"{swapped if preprocess.image_size == size[::-1] else ''}Make it from this photo's (photo.height, photo.width), after "
                    "photo = ImageOps.exif_transpose(photo) if the photo has an EXIF rotation."
                )
            return (cls(**vars(preprocess)),)
        return cls._each(preprocess, size, photo, start._after(known_steps(preprocess, size)))

    @classmethod
    def measured(cls, preprocess: Any, size: Size) -> Self:
        """Find the geometry only by looking at what a preprocessing does to synthetic photos.

        It is run on a black photo, a white photo and two ramps of the given size, and several times on a small photo to check that it does
        the same every time. The result is remembered. The global random generators are left as they were.

        Args:
            preprocess: As in `of`.
            size: The photo's height and width, in pixels.

        Returns:
            The geometry.

        Raises:
            GeometryError: As in `of`.
        """
        size = _checked_size(size, "photo")
        known_steps(preprocess, size)  # refuses random transforms
        return cls._only(cls._each(preprocess, size))

    @classmethod
    def from_timm(cls, size: Size, data_config: Any) -> Self:
        """Find the geometry of `timm.data.create_transform(**data_config, is_training=False)` without running it.

        Args:
            size: The photo's height and width, in pixels.
            data_config: What `timm.data.resolve_data_config` returns for the model, or the timm model itself.

        Returns:
            The geometry.

        Raises:
            GeometryError: If the configuration cannot be followed; the message names what.

        Example:
            >>> ImageGeometry.from_timm((428, 640), {"input_size": (3, 224, 224), "crop_pct": 0.9}).input_size
            (224, 224)
        """
        start = cls.identity(size)
        if timm_config_of(data_config) is None:
            raise GeometryError(
                f"cannot follow timm's preprocessing: expected a data config or a timm model, got {type(data_config).__name__}. Pass what "
                "timm.data.resolve_model_data_config(model) returns."
            )
        return start._after(known_steps(data_config, start.image_size)) or cls.of(data_config, size)

    @classmethod
    def from_processor(cls, size: Size, processor: Any, *, input_size: Size | None = None) -> Self:
        """Find the geometry of an image processor of transformers: the same as `of`.

        Args:
            size: The photo's height and width, in pixels.
            processor: The image processor, fast or slow, or a processor that contains one.
            input_size: Height and width of the `pixel_values`, where the photo was padded at the bottom and right to a batch.

        Returns:
            The geometry. For packed patches the input is the picture that the patches tile.

        Raises:
            GeometryError: As in `of`.
        """
        size = _checked_size(size, "photo")
        if image_processor_of(processor) is None:
            raise GeometryError(
                f"cannot follow the preprocessing: expected an image processor of transformers, got {type(processor).__name__}. For any other "
                "preprocessing use ImageGeometry.of(preprocess, size)."
            )
        geometry = cls.of(processor, size)
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
        return self.crop(*centred_crop(self.input_size, wanted, choose(CropRounding, rounding, "rounding")))

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
            top: Rows to add above.
            left: Columns to add on the left.
            bottom: Rows to add below.
            right: Columns to add on the right.

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

    def with_photo_size(self, size: Size) -> Self:
        """The same place of the input in a smaller or larger copy of the photo.

        Args:
            size: Height and width of the copy, in pixels.

        Returns:
            The geometry of the copy.
        """
        height, width = _checked_size(size, "photo")
        down, across = self.image_size[0] / height, self.image_size[1] / width
        return replace(self, image_size=(height, width), scale=(self.scale[0] * down, self.scale[1] * across))

    def to_input(self, y: _Coordinate, x: _Coordinate) -> tuple[_Coordinate, _Coordinate]:
        """Map points of the photo to the model input.

        Args:
            y: Vertical positions in photo pixels, counted at pixel edges: numbers, arrays or tensors.
            x: Horizontal positions.

        Returns:
            The vertical and horizontal positions, in input pixels.
        """
        return y * self.scale[0] + self.offset[0], x * self.scale[1] + self.offset[1]

    def to_image(self, y: _Coordinate, x: _Coordinate) -> tuple[_Coordinate, _Coordinate]:
        """Map points of the model input to the photo: the inverse of `to_input`.

        Args:
            y: Vertical positions in input pixels, counted at pixel edges: numbers, arrays or tensors.
            x: Horizontal positions.

        Returns:
            The vertical and horizontal positions, in photo pixels.
        """
        return (y - self.offset[0]) / self.scale[0], (x - self.offset[1]) / self.scale[1]

    @classmethod
    def _each(
        cls, preprocess: Any, size: Size, photo: Any = None, exact: Self | None = None
    ) -> tuple[Self | None, ...]:
        maps = maps_of(preprocess, size, photo, exact)
        if isinstance(maps, ModelInputs):  # with the geometry that the preprocessing returned
            geometry = cls.of(maps.geometry, size)
            check_pixels(maps, geometry)
            return (geometry,)
        return tuple(one and cls(size, one.input_size, one.scale, one.offset, one.valid) for one in maps)

    @staticmethod
    def _only(each: tuple[_Geometry | None, ...]) -> _Geometry:
        if len(each) == 1 and each[0] is not None:
            return each[0]
        raise GeometryError(
            f"the preprocessing makes several inputs of one photo: expected 1, got {len(each)}. Use ImageGeometry.of_each, which returns one "
            "geometry per input."
        )

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

    def _after(self, steps: Iterable[Step] | None) -> Self | None:
        if steps is None:
            return None
        geometry = self
        for step in steps:
            geometry = geometry.crop(*step) if isinstance(step, Crop) else geometry._resized(step.size)
        return geometry


def _checked_size(size: Size, what: str) -> Size:
    try:
        height, width = size
        whole = all(number == int(number) and number >= 1 for number in (height, width))
    except (TypeError, ValueError, OverflowError):  # a picture, one number, words
        whole = False
    if not whole:
        raise GeometryError(
            f"bad size of a {what}: expected (height, width), whole and positive, got {size!r}. For a PIL image, pass "
            "(image.height, image.width); its image.size is (width, height)."
        )
    return int(height), int(width)
