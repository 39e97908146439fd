"""What holds for every chain of steps that a preprocessing may be: it is measured as it is, or refused, and never put in another place."""

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import functional

from attnhook import PatchMap
from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.synthetic_photos import LEVELS

EDGES = st.integers(48, 400)
SIZES = st.tuples(EDGES, EDGES)
BORDERS = st.integers(0, 60)
RESAMPLING = st.sampled_from([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
AFFINE = ("resize", "shortest", "centre", "crop", "pad")
TOLERANCE = 0.3  # input pixels, photo pixels or grey levels of the ramps, whichever are the coarsest
EDGE = 1.0  # and a pixel more for where the photo ends
FEWEST = 40  # pixels of the photo, and of the input that show it


@st.composite
def affine_steps(draw, most=3):
    """A photo's size, functions of a picture that resize, crop or pad it, and the geometry that follows."""
    seen, steps = ImageGeometry.identity(draw(SIZES)), []
    for _ in range(draw(st.integers(1, most))):
        try:
            seen, step = one_step(draw, seen)
        except GeometryError:  # a window beside the photo
            reject()
        steps.append(step)
    return seen, steps


def one_step(draw, seen):
    kind = draw(st.sampled_from(AFFINE))
    height, width = seen.input_size
    if kind in ("resize", "shortest"):
        after = seen.resize(draw(SIZES) if kind == "resize" else draw(EDGES))
        size, mode = after.input_size[::-1], draw(RESAMPLING)
        return after, lambda picture: picture.resize(size, mode)
    if kind == "pad":
        top, left, bottom, right = (draw(BORDERS) for _ in range(4))
        fill = (draw(st.integers(0, 255)),) * 3
        after = seen.pad(top=top, left=left, bottom=bottom, right=right)
        return after, lambda picture: ImageOps.expand(picture, (left, top, right, bottom), fill)
    if kind == "centre":
        size = draw(st.tuples(st.integers(FEWEST, height + 40), st.integers(FEWEST, width + 40)))
        return seen.center_crop(size), lambda picture: functional.center_crop(picture, list(size))
    (top, tall), (left, wide) = (window(draw, edge) for edge in (height, width))
    box = left, top, left + wide, top + tall
    if top >= seen.valid[2] or left >= seen.valid[3] or top + tall <= seen.valid[0] or left + wide <= seen.valid[1]:
        reject()
    return seen.crop((top, left), (tall, wide)), lambda picture: picture.crop(box)


def window(draw, edge):
    """First pixel and length of a window that may reach beyond a picture."""
    start = draw(st.integers(-40, max(0, edge - FEWEST)))
    return start, draw(st.integers(FEWEST, edge + 40)) - min(start, 0)


def shows_enough(seen):
    top, left, bottom, right = seen.valid
    first, second, third, fourth = seen.visible
    return min(bottom - top, right - left, third - first, fourth - second) >= FEWEST


def preprocessing(steps):
    def preprocess(photo):
        for step in steps:
            photo = step(photo)
        return np.asarray(photo, np.float32).transpose(2, 0, 1) / 255

    return preprocess


def measured(preprocess, size):
    """As it is, or why not."""
    try:
        return ImageGeometry.measured(preprocess, size)
    except GeometryError as error:
        return error


def runs_of(made):
    """A chain whose picture shows enough after every step, so that nothing in it is lost."""
    return made.filter(lambda found: shows_enough(found[0]))


CHAINS = runs_of(affine_steps())


MIRRORS = st.sampled_from([ImageOps.mirror, ImageOps.flip])
ANGLES = st.floats(5, 85) | st.sampled_from([90, 180, 270])


@settings(max_examples=20)
@given(CHAINS, MIRRORS, st.integers(1, 2), st.data())
def test_a_mirror_is_refused_and_two_are_none(chain, mirror, count, data):
    exact, steps = chain
    at = data.draw(st.integers(0, len(steps)))
    made = preprocessing([*steps[:at], *[mirror] * count, *steps[at:]])
    if count == 1:
        with pytest.raises(GeometryError):
            ImageGeometry.measured(made, exact.image_size)
    else:
        once, twice = (measured(one, exact.image_size) for one in (preprocessing(steps), made))
        assert type(once) is type(twice)
        assert isinstance(once, GeometryError) or once == twice


@settings(max_examples=20)
@given(CHAINS, ANGLES, st.booleans())
def test_what_is_no_line_per_axis_is_refused(chain, angle, perspective):
    exact, steps = chain

    def warp(picture):
        if not perspective:
            return picture.rotate(angle, Image.Resampling.BILINEAR, expand=angle % 90 == 0)
        corners = [[0, 0], [picture.width - 1, 0], [picture.width - 1, picture.height - 1], [0, picture.height - 1]]
        return functional.perspective(picture, corners, [[picture.width // 5, picture.height // 6], *corners[1:]])

    with pytest.raises(GeometryError):
        ImageGeometry.measured(preprocessing([*steps, warp]), exact.image_size)


@settings(max_examples=40)
@given(CHAINS, st.integers(0, 3), st.data())
def test_what_is_painted_on_a_patch_is_seen_in_that_patch(chain, flips, data):
    """The oracle is the pixels: the patch whose part of the photo is painted changes the most. Two flips in a row are none."""
    exact, steps = chain
    at = data.draw(st.integers(0, len(steps)))
    made = preprocessing([*steps[:at], *[ImageOps.mirror] * flips, *steps[at:]])
    try:
        seen = ImageGeometry.measured(made, exact.image_size)
    except GeometryError:
        return
    grid = tuple(max(1, edge // 24) for edge in seen.input_size)
    patches = PatchMap(torch.zeros(grid), input_size=seen.input_size, area=seen.input_size)
    patch = tuple(data.draw(st.integers(0, edge - 1)) for edge in grid)
    ys, xs = (edges[[at, at + 1]] for edges, at in zip(patches.edges(seen), patch, strict=True))
    inside = ys[0] >= seen.visible[0] and ys[1] <= seen.visible[2]
    if not inside or xs[0] < seen.visible[1] or xs[1] > seen.visible[3]:
        return  # some of it is border
    pixels = np.full((*seen.image_size, 3), 110, np.uint8)
    before = made(Image.fromarray(pixels))
    top, left, bottom, right = (round(edge) for edge in patches.box(seen, patch))
    pixels[top:bottom, left:right] = 230
    change = torch.from_numpy(np.abs(made(Image.fromarray(pixels)) - before).mean(0))[None]
    each = torch.nn.functional.adaptive_avg_pool2d(change, grid)[0]
    assert int(each.argmax()) == patch[0] * grid[1] + patch[1]


@settings(max_examples=40)
@given(CHAINS)
def test_what_resizes_crops_and_pads_is_measured_as_it_is(chain):
    exact, steps = chain
    found = measured(preprocessing(steps), exact.image_size)
    if isinstance(found, GeometryError):
        return  # steps that blur or clip, such as a Lanczos resize of a border
    assert found.input_size == exact.input_size
    for axis in (0, 1):
        pixel = max(1.0, exact.scale[axis], exact.image_size[axis] / LEVELS * exact.scale[axis])
        for end in (axis, axis + 2):
            on_photo = (exact.valid[end] - exact.offset[axis]) / exact.scale[axis]
            off = abs(on_photo * found.scale[axis] + found.offset[axis] - exact.valid[end])
            assert off <= TOLERANCE * pixel, (off / pixel, found, exact)
            assert abs(found.valid[end] - exact.valid[end]) <= EDGE + TOLERANCE * pixel, (found, exact)
