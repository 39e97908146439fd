"""Decides, for any preprocessing and photo size, where the inputs lie: by steps that are known, by measuring, or by what it says itself."""

import math
from collections.abc import Callable
from typing import Any

from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.calling import colourless_call_of, image_processor_of, run, shipped, timm_config_of
from attnhook.imaging.images import orientation_of, read_image
from attnhook.imaging.known_transforms import check_evaluation, nearest, transform_steps
from attnhook.imaging.measurement import measure
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.imaging.placements import Placement, UnmeasurableError, disagreement
from attnhook.imaging.preprocessing import Step, processor_steps, timm_steps
from attnhook.imaging.remembering import memory_of
from attnhook.imaging.resemblance import check_resemblance
from attnhook.imaging.synthetic_photos import constant_photo
from attnhook.options import Size

_OWN = "says it itself"
_SWAPPED = 5  # EXIF orientations from here on swap height and width
_REPEATS = 8
_SHIPPED_REPEATS = 1  # transformers' own processors: no random steps unless a generator is used


def size_and_photo(photo_or_size: Any) -> tuple[Size, Image.Image | None]:
    """Tell a photo from a size."""
    if isinstance(photo_or_size, tuple | list):
        size: Any = tuple(photo_or_size)  # checked by the caller
        return size, None
    if isinstance(photo_or_size, Image.Image):
        width, height = photo_or_size.size
        return ((height, width) if orientation_of(photo_or_size) < _SWAPPED else (width, height)), photo_or_size
    photo = read_image(photo_or_size)
    return (photo.height, photo.width), photo


def known_steps(preprocess: Any, size: Size) -> list[Step] | None:
    """Read the steps of a preprocessing where they are known exactly."""
    check_evaluation(preprocess)
    if (config := timm_config_of(preprocess)) is not None:
        return None if nearest(config.get("interpolation")) else timm_steps(size, config)
    if (processor := image_processor_of(preprocess)) is not None:
        if nearest(getattr(processor, "resample", None)):
            return None
        try:
            return processor_steps(size, processor)
        except GeometryError:
            return None
    return transform_steps(size, preprocess)


def placements_of(
    preprocess: Any, size: Size, photo: Image.Image | None, known: Callable[[], Placement | None]
) -> tuple[Placement | None, ...] | Any:
    """Find where the inputs lie that a preprocessing makes of a photo."""
    memory = memory_of(preprocess)
    if memory.answers.get(_OWN):
        return _own_geometry(preprocess, size, photo)
    exact = known()
    if exact is not None:
        kind = ("agrees", size[0] > size[1], *(math.floor(math.log2(edge)) for edge in size))
        agrees = memory.answers.get(kind)
        if agrees is None:
            agrees = memory.keep(kind, _agree(exact, preprocess, size, memory))
        if agrees:
            return (exact,)
    if size not in memory.answers and memory.keep(size, _measured(preprocess, size)) is None:
        del memory.answers[size]
        memory.keep(_OWN, True)
        return _own_geometry(preprocess, size, photo)
    found = memory.answers[size]
    if photo is not None and len(found) == 1 and found[0] is not None and not follows_no_content(preprocess):
        upright = read_image(photo)
        inputs = run(preprocess, upright.copy())
        if inputs.geometry is None and inputs.pictures == 1:
            check_resemblance(upright, inputs.pixels, found[0])
    return found


def follows_no_content(preprocess: Any) -> bool:
    """Say whether a preprocessing is known to treat all photos of a size alike."""
    processor = image_processor_of(preprocess)
    return shipped(processor) if processor is not None else known_steps(preprocess, (64, 64)) is not None


def measured_placements(preprocess: Any, size: Size) -> tuple[Placement | None, ...] | Any:
    """Find where the inputs lie by measuring alone."""
    check_evaluation(preprocess)
    return placements_of(preprocess, size, None, lambda: None)


def _agree(exact: Placement, preprocess: Any, size: Size, memory: Any) -> bool:
    try:
        found = _measured(preprocess, size, repeats=0)
    except UnmeasurableError:
        return True
    if found is not None:
        if len(found) == 1 and found[0] is not None and disagreement(exact, found[0]) is None:
            return True
        memory.keep(size, _measured(preprocess, size))  # the steps are not what they seem: nothing is taken for granted
    return False


def _measured(preprocess: Any, size: Size, repeats: int | None = None) -> tuple[Placement | None, ...] | None:
    processor = image_processor_of(preprocess)
    if repeats is None:
        repeats = _SHIPPED_REPEATS if processor is not None and shipped(processor) else _REPEATS
    side = getattr(processor, "patch_size", None)
    if side is not None and not isinstance(side, int):
        side = side.get("height") if hasattr(side, "get") else getattr(side, "height", None)
    return measure(colourless_call_of(preprocess), size, repeats=repeats, patch_side=side)


def _own_geometry(preprocess: Any, size: Size, photo: Image.Image | None) -> Any:
    inputs = run(preprocess, constant_photo(size, 128) if photo is None else read_image(photo))
    if inputs.geometry is None:
        raise GeometryError(
            "cannot follow the preprocessing: expected (pixels, ImageGeometry) of every photo, as of the first, got pixels alone. Return both."
        )
    check_fit(inputs, inputs.geometry, size)
    return inputs.geometry


def check_fit(inputs: ModelInputs, geometry: Any, size: Size) -> None:
    """Check that a geometry is that of a photo and of the pixels made from it."""
    if tuple(geometry.image_size) != tuple(size):
        raise GeometryError(
            f"preprocess= returned the geometry of another photo: expected image_size {tuple(size)}, got {geometry.image_size}. Start it with "
            "ImageGeometry.identity((photo.height, photo.width))."
        )
    shape = tuple(inputs.pixels.shape[-2:])
    if inputs.pictures and shape != tuple(geometry.input_size):
        raise GeometryError(
            f"the pixels and the geometry of a photo of {size[0]} x {size[1]} do not match: expected pixels of "
            f"{geometry.input_size[0]} x {geometry.input_size[1]}, the geometry's input_size, got {shape[0]} x {shape[1]}. Let preprocess= "
            "return the geometry of the steps that it does, or the pixels alone."
        )
