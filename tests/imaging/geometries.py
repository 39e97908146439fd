"""Geometries for property tests: chains of steps, and what each step does to a point by itself."""

import math

from hypothesis import strategies as st

from attnhook.imaging.geometry import ImageGeometry

EDGES = st.integers(1, 60)
SIZES = st.tuples(EDGES, EDGES)
BORDERS = st.integers(0, 9)
STEPS = ("resize", "shortest", "centre", "crop", "pad", "pad_to")


def mirrored(seen):
    """The geometry of the photo's mirror image, left to right, whose input is mirrored, too."""
    width = seen.input_size[1]
    top, left, bottom, right = seen.valid
    offset = width - seen.offset[1] - seen.image_size[1] * seen.scale[1]
    return ImageGeometry(
        seen.image_size,
        seen.input_size,
        seen.scale,
        (seen.offset[0], offset),
        (top, width - right, bottom, width - left),
    )


def transposed(seen):
    """The geometry of the photo with rows and columns swapped."""
    top, left, bottom, right = seen.valid
    return ImageGeometry(
        seen.image_size[::-1],
        seen.input_size[::-1],
        seen.scale[::-1],
        seen.offset[::-1],
        (left, top, right, bottom),
    )


@st.composite
def journeys(draw, most=4):
    """A geometry and, for each of its steps, the function that moves a point (y, x) of the picture before to the one after."""
    seen, moves = ImageGeometry.identity(draw(SIZES)), []
    for _ in range(draw(st.integers(0, most))):
        seen, move = one_step(draw, seen)
        moves.append(move)
    return seen, moves


GEOMETRIES = journeys().map(lambda journey: journey[0])


def one_step(draw, seen):
    kind = draw(st.sampled_from(STEPS))
    height, width = seen.input_size
    if kind in {"resize", "shortest"}:
        after = seen.resize(draw(SIZES) if kind == "resize" else draw(EDGES))
        tall, wide = after.input_size[0] / height, after.input_size[1] / width
        return after, lambda y, x: (y * tall, x * wide)
    if kind == "pad":
        top, left, bottom, right = (draw(BORDERS) for _ in range(4))
        return seen.pad(top=top, left=left, bottom=bottom, right=right), lambda y, x: (y + top, x + left)
    if kind == "pad_to":
        return seen.pad_to((height + draw(BORDERS), width + draw(BORDERS))), lambda y, x: (y, x)
    if kind == "centre" and draw(st.booleans()):  # the larger one: a border
        size = height + draw(BORDERS), width + draw(BORDERS)
        rounding = draw(st.sampled_from(["torchvision", "fast", "slow"]))
        after = seen.center_crop(size, rounding=rounding)
        down, across = after.offset[0] - seen.offset[0], after.offset[1] - seen.offset[1]
        assert abs(down - (size[0] - height) / 2) <= 0.5
        assert abs(across - (size[1] - width) / 2) <= 0.5
        return after, lambda y, x: (y + round(down), x + round(across))
    (top, down), (left, across) = (window(draw, seen, axis) for axis in (0, 1))
    return seen.crop((top, left), (down, across)), lambda y, x: (y - top, x - left)


def window(draw, seen, axis):
    """First pixel and length of a window along one axis that shows some of the photo."""
    first, last = math.floor(seen.valid[axis]), math.ceil(seen.valid[axis + 2])
    start = draw(st.integers(first - 5, last - 1))
    reach = max(first + 1, start + 1)
    return start, draw(st.integers(reach, last + 5)) - start
