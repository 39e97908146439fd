"""What holds for every heat map: it stays within its patches, flat stays flat, it is painted where the model looked and nowhere else."""

import math

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from attnhook.imaging import drawing
from tests.imaging.geometries import GEOMETRIES, mirrored, transposed

GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 7))
SMOOTH = st.sampled_from(["bilinear", "bicubic"])
MODES = st.sampled_from(["bilinear", "nearest", "bicubic"])
EDGE = 1e-6  # nearer to an edge than this, a pixel's centre may fall on either side


def pixels_between(seen, axis):
    """Which pixels of the photo the model saw for sure along one axis, and which it did not."""
    first, last = seen.visible[axis], seen.visible[axis + 2]
    centres = np.arange(seen.image_size[axis]) + 0.5
    within = (centres > first + EDGE) & (centres < last - EDGE)
    return torch.from_numpy(within), torch.from_numpy((centres < first - EDGE) | (centres > last + EDGE))


def covers_a_pixel(seen):
    return all(pixels_between(seen, axis)[0].any() for axis in (0, 1))


def heatmap(patches, seen, **options):
    """Of a grid that covers the whole input, in patches of any size."""
    return drawing.heatmap(patches, seen, patch_area=seen.input_size, **options)


SEEN = GEOMETRIES.filter(covers_a_pixel)


@st.composite
def patch_maps(draw, leading=()):
    grid, seed = draw(GRIDS), draw(st.integers(0, 2**16))
    values = torch.randn(*leading, *grid, generator=torch.Generator().manual_seed(seed))
    return values * draw(st.sampled_from([1e-8, 1.0, 1e6]))


@given(patch_maps(), SEEN, MODES)
def test_painted_where_the_model_looked_and_nowhere_else(patches, seen, mode):
    painted = ~heatmap(patches, seen, mode=mode).isnan()
    (rows, no_rows), (columns, no_columns) = (pixels_between(seen, axis) for axis in (0, 1))
    assert painted.shape == seen.image_size
    assert painted[rows][:, columns].all()
    assert not painted[no_rows].any()
    assert not painted[:, no_columns].any()


@given(patch_maps(), SEEN, st.sampled_from(["bilinear", "nearest"]))
def test_values_stay_within_the_patches(patches, seen, mode):
    values = heatmap(patches, seen, mode=mode)
    values = values[~values.isnan()]
    assert values.min() >= patches.min()
    assert values.max() <= patches.max()
    if mode == "nearest":
        assert set(values.tolist()) <= set(patches.flatten().tolist())


@given(GRIDS, SEEN, MODES, st.floats(-1e6, 1e6, width=32))
def test_flat_stays_flat(grid, seen, mode, value):
    values = heatmap(torch.full(grid, value), seen, mode=mode)
    values = values[~values.isnan()]
    if mode == "bicubic":
        torch.testing.assert_close(values, torch.full_like(values, value), rtol=1e-5, atol=0)
    else:
        assert (values == torch.tensor(value)).all()


@given(patch_maps(), SEEN, SMOOTH)
def test_the_mirror_images_map_is_the_maps_mirror_image(patches, seen, mode):
    there = heatmap(patches.flip(-1), mirrored(seen), mode=mode)
    here = heatmap(patches, seen, mode=mode).flip(-1)
    both = ~(there.isnan() | here.isnan())
    sure = pixels_between(seen, 1)[0].flip(0)
    assert both[pixels_between(seen, 0)[0]][:, sure].all()
    torch.testing.assert_close(there[both], here[both], rtol=1e-4, atol=1e-4 * float(patches.abs().max()))


@given(patch_maps(), SEEN, SMOOTH)
def test_rows_and_columns_are_treated_alike(patches, seen, mode):
    there = heatmap(patches.mT, transposed(seen), mode=mode)
    here = heatmap(patches, seen, mode=mode).mT
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5 * float(patches.abs().max()), equal_nan=True)


@given(patch_maps(leading=(2, 3)), SEEN, MODES, st.booleans())
def test_a_batch_is_its_members(patches, seen, mode, holes):
    if holes:
        patches[0, 1, 0, 0] = math.nan
    together = heatmap(patches, seen, mode=mode)
    for image in range(2):
        for head in range(3):
            alone = heatmap(patches[image, head], seen, mode=mode)
            bound = 1e-5 * float(patches.nan_to_num().abs().max())
            torch.testing.assert_close(together[image, head], alone, rtol=1e-5, atol=bound, equal_nan=True)


@given(patch_maps(), SEEN, MODES, st.sampled_from([-2.0, 0.5, 3.0]))
def test_twice_the_patches_is_twice_the_map(patches, seen, mode, factor):
    bound = 1e-5 * float(patches.abs().max())
    expected = factor * heatmap(patches, seen, mode=mode)
    torch.testing.assert_close(
        heatmap(factor * patches, seen, mode=mode), expected, rtol=1e-5, atol=bound, equal_nan=True
    )


@given(patch_maps(), SEEN, MODES, st.data())
def test_a_dropped_patch_takes_its_own_pixels_and_no_others(patches, seen, mode, data):
    rows, columns = patches.shape
    assume(rows * columns > 1)
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    whole = heatmap(patches, seen, mode=mode)
    patches[row, column] = math.nan
    lost = heatmap(patches, seen, mode=mode).isnan() & ~whole.isnan()
    height, width = seen.input_size
    y, x = seen.to_input(*(torch.arange(edge, dtype=torch.float64) + 0.5 for edge in seen.image_size))
    down, across = y * rows / height - row, x * columns / width - column  # from the patch's first edge, in patches
    own = ((down > EDGE) & (down < 1 - EDGE))[:, None] & ((across > EDGE) & (across < 1 - EDGE))
    others = ((down < -EDGE) | (down > 1 + EDGE))[:, None] | ((across < -EDGE) | (across > 1 + EDGE))
    assert lost[own & ~whole.isnan()].all()
    assert not lost[others].any()
