"""What holds for every chain of resizes, crops and borders: points go there and back, boxes stay inside bounds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry
from tests.imaging.geometries import BORDERS, EDGES, GEOMETRIES, SIZES, journeys, one_step

POINTS = st.tuples(st.floats(-100, 200), st.floats(-100, 200))
ROUNDINGS = st.sampled_from(["torchvision", "fast", "slow"])
REL, ABS = 1e-9, 1e-6


def near(pair):
    return pytest.approx(pair, rel=REL, abs=ABS)


def same(one, other):
    assert (one.image_size, one.input_size) == (other.image_size, other.input_size)
    for name in ("scale", "offset", "valid"):
        assert getattr(one, name) == near(getattr(other, name)), name


def inside(inner, outer):
    return all(i >= o - ABS for i, o in zip(inner[:2], outer[:2], strict=True)) and all(
        i <= o + ABS for i, o in zip(inner[2:], outer[2:], strict=True)
    )


@given(GEOMETRIES, POINTS)
def test_points_go_there_and_back(seen, point):
    assert seen.to_image(*seen.to_input(*point)) == near(point)
    assert seen.to_input(*seen.to_image(*point)) == near(point)


@given(journeys(), POINTS)
def test_a_chain_is_its_steps_one_after_the_other(journey, point):
    seen, moves = journey
    expected = point
    for move in moves:
        expected = move(*expected)
    assert seen.to_input(*point) == near(expected)


@given(GEOMETRIES)
def test_boxes_lie_inside_their_pictures_and_show_something(seen):
    height, width = seen.input_size
    assert inside(seen.valid, (0, 0, height, width))
    assert inside(seen.visible, (0, 0, *seen.image_size))
    for top, left, bottom, right in (seen.valid, seen.visible):
        assert top < bottom
        assert left < right


@given(GEOMETRIES)
def test_what_is_visible_is_what_is_valid(seen):
    top, left, bottom, right = seen.visible
    corners = (*seen.to_input(top, left), *seen.to_input(bottom, right))
    assert corners == near(seen.valid)


@given(st.data())
def test_no_step_shows_more_than_the_one_before(data):
    seen = data.draw(GEOMETRIES)
    after, _ = one_step(data.draw, seen)
    assert inside(after.visible, seen.visible)


@given(GEOMETRIES, SIZES)
def test_resizing_and_back_is_nothing(seen, size):
    same(seen.resize(size).resize(seen.input_size), seen)


@given(GEOMETRIES, SIZES, SIZES)
def test_of_two_resizes_the_last_one_counts(seen, first, second):
    same(seen.resize(first).resize(second), seen.resize(second))


@given(GEOMETRIES, BORDERS, BORDERS, BORDERS, BORDERS)
def test_a_border_cut_off_again_is_nothing(seen, top, left, bottom, right):
    same(seen.pad(top=top, left=left, bottom=bottom, right=right).crop((top, left), seen.input_size), seen)


@given(GEOMETRIES, ROUNDINGS)
def test_a_crop_of_the_same_size_is_nothing(seen, rounding):
    same(seen.center_crop(seen.input_size, rounding=rounding), seen)


@given(SIZES, st.data(), ROUNDINGS)
def test_a_centred_crop_is_at_the_centre(size, data, rounding):
    crop = tuple(data.draw(st.integers(1, edge)) for edge in size)
    seen = ImageGeometry.identity(size).center_crop(crop, rounding=rounding)
    top, left, bottom, right = seen.visible
    assert (bottom - top, right - left) == crop
    assert abs((top + bottom) - size[0]) <= 1
    assert abs((left + right) - size[1]) <= 1


@given(SIZES, EDGES, st.one_of(st.none(), EDGES))
def test_the_shortest_edge_is_the_one_that_was_asked_for(size, edge, longest):
    photo, longer = ImageGeometry.identity(size), edge * max(size) // min(size)
    if longest is not None and longest * edge < longer > longest:  # so narrow that an edge would vanish
        with pytest.raises(GeometryError, match="whole and positive"):
            photo.resize(edge, longest=longest)
        return
    seen = photo.resize(edge, longest=longest)
    if longest is None or max(seen.input_size) < longest:
        assert min(seen.input_size) == edge
    assert longest is None or max(seen.input_size) <= longest
    assert (seen.input_size[0] - seen.input_size[1]) * (size[0] - size[1]) >= 0


@given(GEOMETRIES, st.integers(1, 99), st.booleans())
def test_windows_beside_the_photo_are_refused(seen, far, below):
    bottom, left = int(seen.valid[2]) + 1 + far, int(seen.valid[1]) - 1 - far
    start = (bottom, 0) if below else (0, left)
    size = (5, 5) if below else (5, far)
    with pytest.raises(GeometryError, match="expected a window that shows photo"):
        seen.crop(start, size)


@given(GEOMETRIES, st.integers(1, 50))
def test_padding_never_cuts(seen, less):
    height, width = seen.input_size
    for size in ((max(1, height - less), width), (height, max(1, width - less))):
        if size != seen.input_size:
            with pytest.raises(GeometryError, match="expected a size of at least"):
                seen.pad_to(size)
    for border in ("top", "left", "bottom", "right"):
        with pytest.raises(GeometryError, match=f"{border}=-{less}"):
            seen.pad(**{border: -less})


@settings(max_examples=200)
@given(
    st.tuples(st.integers(20, 900), st.integers(20, 900)),
    st.integers(16, 96),
    st.sampled_from([0.8, 0.875, 0.9, 0.95, 1.0]),
    st.sampled_from(["center", "squash", "border"]),
)
def test_timms_input_is_of_its_size_and_centred(size, edge, fraction, mode):
    config = {"input_size": (3, edge, edge), "crop_pct": fraction, "crop_mode": mode}
    seen = ImageGeometry.from_timm(size, config)
    assert seen.input_size == (edge, edge)
    top, left, bottom, right = seen.visible
    for first, last, length, scale in ((top, bottom, size[0], seen.scale[0]), (left, right, size[1], seen.scale[1])):
        assert abs(first + last - length) * scale <= 1 + ABS
    if mode == "border" and fraction == 1.0:
        assert seen.visible == near((0, 0, *size))
