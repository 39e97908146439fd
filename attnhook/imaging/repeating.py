"""Whether a preprocessing does the same every time, and to every photo."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.imaging.synthetic_photos import coloured_photo, constant_photo, small_size
from attnhook.options import Size

Array = NDArray[np.float32]

_SAME = 1e-4  # of the largest value: what a kernel that sums in another order may leave
_ALIKE = 0.06  # of the way from black to white: 8-bit rounding, bfloat16
_MOST_UNLIKE = 0.01  # share of the pixels that may lie beyond that
_MORE = 128  # repeats where a generator was used: a step that one photo in twenty undergoes is missed once in 700 times
_SQUARE = (48, 64)  # beside a long and narrow photo, in which a random crop may have no room
_REMEDY = "Take the random step out, or use the evaluation form of the transform."


@contextmanager
def untouched_generators() -> Iterator[Callable[[], bool]]:
    """Put the states of the global random generators back at the end."""
    states = _states()
    initialised: Callable[[], bool] = torch.cuda.is_initialized
    on_gpu = torch.cuda.get_rng_state_all() if initialised() else None
    try:
        yield lambda: not _equal(states, _states())
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 (the global generator, put back)
        torch.set_rng_state(states[2])
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)


def check_repeats(
    call: Callable[[Image.Image], ModelInputs], size: Size, *, repeats: int, drew: Callable[[], bool]
) -> None:
    """Run a preprocessing again and again, on a small photo where it takes one."""
    for small in dict.fromkeys((small_size(size), _SQUARE if max(size) > 2 * min(size) else small_size(size))):
        _check_at(call, small, size, repeats, drew)


def _check_at(
    call: Callable[[Image.Image], ModelInputs], small: Size, size: Size, repeats: int, drew: Callable[[], bool]
) -> None:
    try:
        first = _pixels(call, coloured_photo(small))
    except Exception:  # whatever the preprocessing raises on a photo so small
        small, repeats = size, 2
        first = _pixels(call, coloured_photo(small))
    photo = coloured_photo(small)
    done = 0
    while done < repeats or (drew() and done < _MORE):
        done += 1
        _check_same(first, _pixels(call, photo), done)
    _check_content(call, photo, first)


def _pixels(call: Callable[[Image.Image], ModelInputs], photo: Image.Image) -> Array:
    pixels: Array = call(photo).pixels.detach().to("cpu", torch.float32).numpy()
    return pixels


def _check_same(first: Array, again: Array, repeats: int) -> None:
    if first.shape != again.shape:
        raise GeometryError(
            f"cannot follow the preprocessing: expected the same input every time, got {first.shape} and then {again.shape} "
            f"of the same photo (run {repeats + 1}). {_REMEDY}"
        )
    off = 0.0 if np.array_equal(first, again) else float(np.abs(first - again).max())
    if not off <= _SAME * float(np.abs(first).max(initial=0)):
        raise GeometryError(
            f"cannot follow the preprocessing: expected the same input every time, got pixels that differ by up to {off:.3g} between two runs "
            f"on the same photo (run {repeats + 1}). {_REMEDY}"
        )


def _check_content(call: Callable[[Image.Image], ModelInputs], photo: Image.Image, seen: Array) -> None:
    """What photo, negative and a photo of half the contrast become must add up, or the preprocessing looks at what it moves."""
    size = photo.height, photo.width
    black, white, negative, dull = (
        _pixels(call, other)
        for other in (
            constant_photo(size, 0),
            constant_photo(size, 255),
            photo.point(lambda value: 255 - value),
            photo.point(lambda value: value // 2 + 64),
        )
    )
    if len({one.shape for one in (seen, black, white, negative, dull)}) > 1:
        raise GeometryError(
            f"cannot follow the preprocessing: expected an input whose size depends on the photo's size alone, got {seen.shape} and "
            f"{negative.shape} of a photo and its negative. Leave out the step that looks at the photo's content, such as cropping margins."
        )
    gain = white - black
    reach = float(np.abs(gain).max(initial=0))
    halves = dull - black - gain * (63.75 / 255) - (seen - black) / 2
    unlike = max(float((np.abs(off) > _ALIKE * reach).mean()) for off in (seen + negative - black - white, halves))
    if unlike > _MOST_UNLIKE:
        raise GeometryError(
            "cannot follow the preprocessing: expected the same to be done to every photo of a size, got "
            f"{unlike:.0%} of the pixels of a photo, its negative and a dull copy that do not add up. Leave out the step that looks at the "
            "photo's content (cropping margins, equalising, stretching contrast), or return (pixels, ImageGeometry)."
        )


def _states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _equal(one: tuple[Any, Any, torch.Tensor], other: tuple[Any, Any, torch.Tensor]) -> bool:
    mine, theirs = one[1], other[1]
    same_numpy = all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    return one[0] == other[0] and same_numpy and torch.equal(one[2], other[2])
