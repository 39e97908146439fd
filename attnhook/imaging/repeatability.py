"""Whether a preprocessing does the same every time, and to every photo.

A preprocessing is measured on synthetic photos. One that crops around what it finds in a photo, such as a face, finds none in these.
So the pixels of the real photo, too, are compared with the part of it that the measurement says they show.
"""

import pickle
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
from attnhook.imaging.synthetic_photos import coloured_photo, constant_photo, framed_photos, small_size
from attnhook.options import Size

Array = NDArray[np.float32]
Call = Callable[[Image.Image], ModelInputs]

_SAME = 1e-4  # of the largest value: what a kernel that sums in another order may leave
_ALIKE = 0.06  # of the way from black to white: 8-bit rounding, bfloat16
_MOST_UNLIKE = 0.01  # share of the pixels that may be further off
_FRAMED = 32  # pixels per edge from which on a margin can be added without a sharp edge
_MORE = 128  # repeats where a generator was used: a step that one photo in twenty undergoes is missed once in 700 times
_CELLS = 16  # per edge: both pictures are averaged over so many cells, which no kind of resampling changes much
_FLAT = 3.0  # grey levels: a photo that varies less cannot be recognised
_LEAST = 0.7  # correlation; 0.97 and more of photos through resizes, crops and colour channels in any order
_SQUARE = (48, 64)  # used as well for a long and narrow photo, in which a random crop may have no room


@contextmanager
def untouched_generators() -> Iterator[Callable[[], bool]]:
    """Put the states of the global random generators back at the end; yields whether one was used since."""
    states = _states()
    initialised: Callable[[], bool] = torch.cuda.is_initialized
    on_gpu = torch.cuda.get_rng_state_all() if initialised() else None
    try:
        yield lambda: pickle.dumps(states) != pickle.dumps(_states())
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002 (the global generator, put back)
        torch.set_rng_state(torch.from_numpy(states[2]))
        if on_gpu is not None:
            torch.cuda.set_rng_state_all(on_gpu)


def _states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()  # noqa: NPY002


def check_repeats(call: Call, size: Size, *, repeats: int, drew: Callable[[], bool]) -> None:
    """Run a preprocessing again and again, on a small photo where it takes one."""
    smalls = {small_size(size), _SQUARE} if max(size) > 2 * min(size) else {small_size(size)}
    for photo in map(coloured_photo, smalls):
        try:
            first, wanted = _pixels(call, photo), repeats
        except Exception:  # whatever the preprocessing raises on a photo so small
            photo, wanted = coloured_photo(size), 2  # noqa: PLW2901
            first = _pixels(call, photo)
        done = 0
        while done < wanted or (drew() and done < _MORE):
            done += 1
            _check_same(first, _pixels(call, photo), done + 1)
        _check_content(call, photo, first)


def _pixels(call: Call, photo: Image.Image) -> Array:
    pixels: Array = call(photo.copy()).pixels.detach().to("cpu", torch.float32).numpy()  # it may work in place
    return pixels


def _check_same(first: Array, again: Array, run: int) -> None:
    seen = f"{first.shape}, then {again.shape}"
    if first.shape == again.shape:
        if np.allclose(again, first, rtol=0, atol=_SAME * np.abs(first).max()):
            return
        seen = f"pixels that differ by up to {np.abs(first - again).max():.3g}"
    raise GeometryError(
        f"cannot follow the preprocessing: expected the same input every time, got {seen} from the same photo (run {run}). "
        "Remove the random step, or pass the transform that you use for evaluation."
    )


def _check_content(call: Call, photo: Image.Image, seen: Array) -> None:
    """What photo, negative, a photo of half the contrast and its parts become must add up, or the preprocessing looks at the content."""
    size = photo.height, photo.width
    negative, dull = (photo.point(change) for change in (lambda value: 255 - value, lambda value: value // 2 + 64))
    parts = framed_photos(photo) if min(size) >= _FRAMED else []
    changed = (constant_photo(size, 0), constant_photo(size, 255), negative, dull, *parts)
    others = [_pixels(call, other) for other in changed]
    if different := next((other.shape for other in others if other.shape != seen.shape), None):
        raise GeometryError(
            f"cannot follow the preprocessing: expected an input whose size depends on the photo's size alone, got {seen.shape} and {different} "
            f"from photos of {size[0]} x {size[1]}. Leave out the step that depends on the photo's content, such as cropping margins."
        )
    black, white, inverted, faded, *framed = others
    gain = white - black
    reach = float(np.abs(gain).max(initial=0))
    halves = faded - black - gain * (63.75 / 255) - (seen - black) / 2
    sums = [seen + inverted - black - white, halves]
    if framed:
        dark, its_margin, bright, its_rest = framed
        sums += [dark + its_margin - seen - black, bright + its_rest - seen - white]
    unlike = max(float((np.abs(off) > _ALIKE * reach).mean()) for off in sums)
    if unlike > _MOST_UNLIKE:
        raise GeometryError(
            "cannot follow the preprocessing: expected the same treatment of every photo of one size, got pixels of a photo, of its "
            f"negative, of its parts and of a copy with less contrast that do not add up ({unlike:.0%} of them). Leave out the step "
            "that depends on the photo's content (cropping margins, equalising, stretching contrast), or let your preprocessing return "
            "(pixels, ImageGeometry)."
        )


def check_resemblance(photo: Image.Image, inputs: ModelInputs, geometry: Any) -> None:
    """Compare a picture with the part of a photo that it should show, by an affine map."""
    if inputs.pictures != 1 or inputs.geometry is not None:
        return
    top, left, bottom, right = (round(edge) for edge in geometry.valid)
    (y0, y1), (x0, x1) = (
        [(edge - geometry.offset[axis]) / geometry.scale[axis] for edge in edges]
        for axis, edges in enumerate(((top, bottom), (left, right)))
    )
    box = max(x0, 0.0), max(y0, 0.0), min(x1, photo.width), min(y1, photo.height)
    if min(bottom - top, right - left, box[2] - box[0], box[3] - box[1]) < _CELLS:
        return
    small = photo.resize((_CELLS, _CELLS), Image.Resampling.BOX, box=box, reducing_gap=2.0)
    expected = [np.asarray(small, np.float64).mean(axis=2), np.asarray(small.convert("L"), np.float64)]
    if max(one.std() for one in expected) < _FLAT:
        return
    pixels = inputs.pixels.detach().to("cpu", torch.float32)
    seen = pixels.reshape(1, *pixels.shape[-3:]).mean(dim=1)[:, top:bottom, left:right]
    cells = torch.nn.functional.adaptive_avg_pool2d(seen, _CELLS)[0].double().numpy()
    alike = max(_correlation(one, cells) for one in expected)
    if not alike >= _LEAST:
        raise GeometryError(
            "the preprocessing treats this photo differently from others of its size: expected pixels that resemble the part of the photo "
            f"they should show, got a correlation of {alike:.2f}. It crops around what it finds in the photo, is random, or has changed since "
            "it was measured. Let it return (pixels, ImageGeometry)."
        )


def _correlation(one: Any, other: Any) -> float:
    one, other = one - one.mean(), other - other.mean()
    product = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / product if product else 0.0
