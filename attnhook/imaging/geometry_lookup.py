"""Decides where a preprocessing puts a photo of any size: by steps that are known, by measuring, or by the geometry that it returns."""

import math
from typing import Any

from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.affine_maps import AffineMap, UnmeasurableError, agree
from attnhook.imaging.calling import calibratable_call_of, image_processor_of, is_from_transformers, run
from attnhook.imaging.geometry_cache import Cache, cache_of
from attnhook.imaging.images import orientation_of, read_image
from attnhook.imaging.known_preprocessing import ignores_content
from attnhook.imaging.measurement import measure
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.imaging.repeatability import check_resemblance
from attnhook.imaging.synthetic_photos import constant_photo
from attnhook.options import Size

_SWAPPED = 5  # EXIF orientations from here on swap height and width
_REPEATS = 8
_SHIPPED_REPEATS = 1  # transformers' own processors: no random steps unless a generator is used


def size_and_photo(photo_or_size: Any) -> tuple[Size, Image.Image | None]:
    """Tell a photo from a size."""
    if isinstance(photo_or_size, tuple | list):
        size: Any = tuple(photo_or_size)  # checked by the caller
        return size, None
    photo = photo_or_size if isinstance(photo_or_size, Image.Image) else read_image(photo_or_size)
    return (photo.size if orientation_of(photo) >= _SWAPPED else (photo.height, photo.width)), photo


def maps_of(preprocess: Any, size: Size, photo: Image.Image | None, exact: Any) -> tuple[Any, ...] | ModelInputs:
    """Find the map of every input that a preprocessing makes of a photo, or the input if it has its geometry."""
    cache = cache_of(preprocess)  # `exact` is the geometry after the steps that are known
    if exact is not None and _is_confirmed(exact, preprocess, size, cache):
        return (exact,)
    found = cache.get(size) or _measured(preprocess, size)
    if found is not None:
        cache[size] = found
        if photo is None or len(found) > 1 or ignores_content(preprocess):
            return found
    upright = constant_photo(size, 128) if photo is None else read_image(photo)
    inputs = run(preprocess, upright.copy())
    if found is not None:
        check_resemblance(upright, inputs, found[0])
        return found
    if inputs.geometry is None:
        raise GeometryError(
            "cannot follow the preprocessing: expected (pixels, ImageGeometry) for every photo, got pixels alone for this one. Return both."
        )
    return inputs


def _is_confirmed(exact: Any, preprocess: Any, size: Size, cache: Cache) -> bool:
    """Whether a measurement agrees with the known steps; done once for photos of about this size and shape."""
    kind = ("confirmed", size[0] > size[1], *(math.floor(math.log2(edge)) for edge in size))
    if kind not in cache:
        try:
            found = _measured(preprocess, size, repeats=0)
            cache[kind] = found is not None and len(found) == 1 and found[0] is not None and agree(exact, found[0])
        except UnmeasurableError:
            cache[kind] = True
    return bool(cache[kind])


def _measured(preprocess: Any, size: Size, repeats: int | None = None) -> tuple[AffineMap | None, ...] | None:
    processor = image_processor_of(preprocess)
    if repeats is None:
        repeats = _SHIPPED_REPEATS if processor is not None and is_from_transformers(processor) else _REPEATS
    side: Any = getattr(processor, "patch_size", None)
    if not isinstance(side, int):
        side = side.get("height") if hasattr(side, "get") else getattr(side, "height", None)
    return measure(calibratable_call_of(preprocess), size, repeats=repeats, patch_side=side)


def check_pixels(inputs: ModelInputs, geometry: Any) -> None:
    """Check that a geometry that came with pixels is of their size."""
    shape, (height, width) = tuple(inputs.pixels.shape[-2:]), geometry.input_size
    if inputs.pictures and shape != (height, width):
        raise GeometryError(
            f"the pixels and the geometry of a photo of {geometry.image_size[0]} x {geometry.image_size[1]} do not match: expected pixels of "
            f"{height} x {width}, the geometry's input_size, got {shape[0]} x {shape[1]}. Let preprocess= return the geometry of the steps that "
            "it does, or the pixels alone."
        )
