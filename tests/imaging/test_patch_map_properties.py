"""What holds for every patch map: parts, copies and files are of the same values, and heat maps are where the model looked."""

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from attnhook import PatchMap
from attnhook.options import NO_OVERLAP, Overlap
from tests.imaging.geometries import GEOMETRIES
from tests.imaging.test_heatmap_properties import EDGE, covers_a_pixel

LEADING = array_shapes(min_dims=1, max_dims=2, max_side=3)
GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 5))
FLOATS = st.floats(width=32, allow_infinity=False)  # NaN is a dropped patch
PAIRS = st.tuples(st.integers(1, 99), st.integers(1, 99))
OVERLAPS = st.just(NO_OVERLAP) | st.builds(
    Overlap, st.tuples(*[st.floats(-9, 9)] * 2), st.tuples(*[st.floats(0, 9)] * 2)
)


@st.composite
def patch_maps(draw, leading=LEADING, elements=FLOATS, **facts):
    values = draw(arrays(np.float32, (*draw(leading), *draw(GRIDS)), elements=elements))
    given_facts = {
        "input_size": st.none() | PAIRS,
        "area": st.none() | PAIRS,
        "uniform": st.none() | st.floats(1e-6, 1),
        "adds_up": st.booleans(),
        "description": st.text("abc, ü", max_size=9),
        "quantity": st.sampled_from(["attention", "rollout"]),
        "overlap": OVERLAPS,
    }
    return PatchMap(torch.from_numpy(values), **draw(st.fixed_dictionaries(given_facts | facts)))


def same(one, other):
    return np.array_equal(one.numpy().view(np.int32), other.numpy().view(np.int32)) and one.facts() == other.facts()


@given(patch_maps(), st.data())
def test_parts_are_those_of_the_first_axis_and_keep_their_place(found, data):
    count = found.values.shape[0]
    assert (len(found), found.shape, found.grid) == (count, found.values.shape, tuple(found.values.shape[-2:]))
    assert found.shape == (count, *found[0].shape)
    index = data.draw(st.integers(-count, count - 1) | st.slices(count))
    assert same(found[index], PatchMap.with_facts(torch.from_numpy(found.numpy()[index].copy()), found.facts()))
    assert all(same(one, found[number]) for number, one in enumerate(found))
    for beyond in (count, -count - 1):
        with pytest.raises(IndexError, match=f"map {beyond} does not exist: expected -{count} to {count - 1}"):
            found[beyond]


@settings(max_examples=50)
@given(patch_maps(leading=array_shapes(min_dims=0, max_dims=2, max_side=3) | st.just(())))
def test_a_file_has_the_same_bits(found):
    with tempfile.TemporaryDirectory() as folder, np.load(found.save(Path(folder) / "map.npz")) as saved:
        assert saved["values"].dtype == np.float32
        assert np.array_equal(saved["values"].view(np.int32), found.numpy().view(np.int32))
        read = {name: saved[name].tolist() for name in saved.files if name != "values"}
    outside = read.pop("outside", None)
    assert (outside is None) == (found.outside is None)
    if outside is not None:
        assert np.array_equal(np.float32(outside), found.outside.numpy(), equal_nan=True)
    known = {"input_size": found.input_size, "area": found.area, "uniform": found.uniform, "caption": found.caption}
    known |= {} if found.overlap == NO_OVERLAP else vars(found.overlap)
    assert read == {name: list(one) if isinstance(one, tuple) else one for name, one in known.items() if one}
    assert same(PatchMap.with_facts(found.values, json.loads(json.dumps(found.facts()))), found)


def seen_along(seen, axis, area):
    """Which pixels of the photo are seen for sure, and which are not: of those shown on the input, the ones that the grid covers."""
    centres = (np.arange(seen.image_size[axis]) + 0.5) * seen.scale[axis] + seen.offset[axis]
    first, last = max(seen.valid[axis], 0), min(seen.valid[axis + 2], area[axis])
    return (centres > first + EDGE) & (centres < last - EDGE), (centres < first - EDGE) | (centres > last + EDGE)


@st.composite
def placed(draw):
    """A patch map of several heads, on a geometry, whose grid may end before the input or after it; both show some pixel."""
    seen = draw(GEOMETRIES.filter(covers_a_pixel))
    area = tuple(draw(st.integers(max(1, edge - 8), edge + 8)) for edge in seen.input_size)
    if not all(seen_along(seen, axis, area)[0].any() for axis in (0, 1)):
        area = seen.input_size
    heads = st.tuples(st.integers(1, 3))
    facts = {"input_size": st.just(seen.input_size), "area": st.just(area), "overlap": st.just(NO_OVERLAP)}
    share = st.floats(0, 1, width=32)
    return draw(patch_maps(leading=heads, elements=share, **facts)), seen


@given(placed(), st.sampled_from(["bilinear", "nearest", "bicubic"]))
def test_heat_is_nan_exactly_where_the_model_did_not_look(found, mode):
    patches, seen = found
    heat = patches.heatmap(seen, mode=mode)
    assert heat.shape == (len(patches), *seen.image_size)
    (rows, no_rows), (columns, no_columns) = (seen_along(seen, axis, patches.area) for axis in (0, 1))
    missing = heat.isnan().numpy()
    assert not missing[:, rows][:, :, columns].any()
    assert missing[:, no_rows].all()
    assert missing[:, :, no_columns].all()


@given(placed(), st.sampled_from(["bilinear", "nearest", "bicubic"]))
def test_the_mean_of_the_heads_is_the_heat_maps_mean(found, mode):
    patches, seen = found
    mean = patches.like(patches.values.mean(0))
    expected = patches.heatmap(seen, mode=mode).mean(0)
    torch.testing.assert_close(mean.heatmap(seen, mode=mode), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    each = torch.stack([one.heatmap(seen, mode=mode) for one in patches])
    torch.testing.assert_close(each, patches.heatmap(seen, mode=mode), rtol=1e-5, atol=1e-6, equal_nan=True)


STYLES = [*itertools.product(["heat", "contours"], ["photo", "seen"]), ("patches", "photo"), ("mask", "photo")]


@settings(max_examples=60)
@given(placed(), st.sampled_from(STYLES), st.integers(0, 255))
def test_an_overlay_is_of_the_photos_size_or_of_the_part_that_was_seen(found, look, grey):
    patches, seen = found
    photo = Image.new("RGB", seen.image_size[::-1], (grey,) * 3)
    style, crop = look
    picture = patches[0].overlay(photo, seen, style=style, **({"crop": crop} if style != "mask" else {}))
    assert picture.mode == "RGB"
    if crop == "photo":
        assert picture.size == photo.size
    else:
        rows, columns = (~patches[0].heatmap(seen).isnan().all(axis).numpy() for axis in (1, 0))
        assert picture.size == (columns.sum(), rows.sum())
