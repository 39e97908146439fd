"""Heat maps against a slow loop that follows the definition pixel by pixel."""

import math

import numpy as np
import pytest
import torch

from attnhook.errors import GeometryError
from attnhook.imaging import drawing
from attnhook.imaging.geometry import ImageGeometry

SEEN = {
    "identity": ImageGeometry.identity((24, 36)),
    "crop": ImageGeometry.identity((30, 47)).resize(24).center_crop((20, 22)),
    "squash": ImageGeometry.identity((19, 41)).resize((32, 32)),
    "padded": ImageGeometry.identity((21, 33)).resize(16).pad_to((32, 40)),
    "bordered": ImageGeometry.identity((21, 33)).resize(16).center_crop((32, 32)),
}


def heatmap(patch_map, geometry, patch_area=None, **options):
    """Of a grid that covers the whole input, in patches of any size."""
    return drawing.heatmap(patch_map, geometry, patch_area=patch_area or geometry.input_size, **options)


def oracle(patch_map, geometry, area=None):
    """Bilinear, half-pixel centres, clamped, by the book: loops and scalars only."""
    rows, columns = patch_map.shape
    area = area or geometry.input_size
    result = np.full(geometry.image_size, np.nan)
    for i in range(geometry.image_size[0]):
        for j in range(geometry.image_size[1]):
            y = (i + 0.5) * geometry.scale[0] + geometry.offset[0]
            x = (j + 0.5) * geometry.scale[1] + geometry.offset[1]
            if not (0 <= y <= min(geometry.input_size[0], area[0]) and 0 <= x <= min(geometry.input_size[1], area[1])):
                continue
            p = min(max(y / area[0] * rows - 0.5, 0), rows - 1)
            q = min(max(x / area[1] * columns - 0.5, 0), columns - 1)
            r, c = min(int(p), max(rows - 2, 0)), min(int(q), max(columns - 2, 0))
            value = 0.0
            for row, weight_r in ((r, 1 - (p - r)), (r + 1, p - r)):
                for column, weight_c in ((c, 1 - (q - c)), (c + 1, q - c)):
                    if weight_r and weight_c:
                        value += weight_r * weight_c * float(patch_map[row, column])
            result[i, j] = value
    return result


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("grid", [(4, 6), (7, 3), (1, 1), (1, 5)])
def test_bilinear_follows_the_definition(seen, grid):
    patch_map = torch.rand(grid, generator=torch.Generator().manual_seed(0))
    expected = oracle(patch_map, SEEN[seen])
    got = heatmap(patch_map, SEEN[seen]).numpy()
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.allclose(got, expected, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_without_crop_it_is_torch_interpolate(mode):
    patch_map = torch.rand(2, 3, 5, 7)
    expected = torch.nn.functional.interpolate(patch_map, (80, 112), mode=mode, align_corners=False)
    got = heatmap(patch_map, ImageGeometry.identity((80, 112)), mode=mode)
    assert torch.allclose(got, expected, atol=1e-5)


def test_aligned_corners_would_be_noticed():
    patch_map = torch.rand(5, 7)
    wrong = torch.nn.functional.interpolate(patch_map[None, None], (80, 112), mode="bilinear", align_corners=True)[0, 0]
    assert (heatmap(patch_map, ImageGeometry.identity((80, 112))) - wrong).abs().max() > 0.05


@pytest.mark.parametrize(
    "size, grid", [((200, 400), (7, 14)), ((400, 200), (14, 7)), ((100, 200), (4, 8)), ((480, 640), (14, 14))]
)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_bright_patch_lands_in_that_patch(size, grid, mode):
    geometry = ImageGeometry.identity(size).resize((grid[0] * 16, grid[1] * 16))
    for row, column in ((0, 0), (grid[0] - 1, 1), (2, grid[1] - 1), (grid[0] // 2, grid[1] // 3)):
        patch_map = torch.zeros(grid)
        patch_map[row, column] = 1
        pixels = heatmap(patch_map, geometry, mode=mode)
        y, x = divmod(pixels.argmax().item(), size[1])
        assert row * size[0] / grid[0] <= y + 0.5 <= (row + 1) * size[0] / grid[0]
        assert column * size[1] / grid[1] <= x + 0.5 <= (column + 1) * size[1] / grid[1]


@pytest.mark.parametrize("size", [(480, 640), (500, 300)])
def test_a_marker_through_timms_transform_and_back(size):
    timm_data = pytest.importorskip("timm.data")
    from PIL import Image

    config = timm_data.resolve_data_config({"input_size": (3, 224, 224), "crop_pct": 0.9})
    geometry = ImageGeometry.from_timm(size, config)
    transform = timm_data.create_transform(**config, is_training=False, normalize=False)
    centre = (size[0] * 0.6, size[1] * 0.45)
    pixels = np.zeros((*size, 3), np.uint8)
    rows, columns = (slice(int(at) - 15, int(at) + 15) for at in centre)
    pixels[rows, columns] = 255
    # A "model" whose attention is the brightness of each patch.
    patch_map = transform(Image.fromarray(pixels)).float().mean(0).reshape(14, 16, 14, 16).mean((1, 3))
    mass = heatmap(patch_map, geometry).nan_to_num()
    y = (mass.sum(1) * (torch.arange(size[0]) + 0.5)).sum() / mass.sum()
    x = (mass.sum(0) * (torch.arange(size[1]) + 0.5)).sum() / mass.sum()
    half_a_patch = 8 / geometry.scale[0]
    assert abs(y - centre[0]) < half_a_patch
    assert abs(x - centre[1]) < half_a_patch


def test_nan_exactly_outside_the_crop():
    geometry = ImageGeometry.identity((480, 640)).resize(224).center_crop(196)
    seen = ~heatmap(torch.rand(14, 14), geometry).isnan()
    top, left, bottom, right = geometry.visible
    expected = torch.zeros(480, 640, dtype=torch.bool)
    expected[math.ceil(top - 0.5) : math.floor(bottom + 0.5), math.ceil(left - 0.5) : math.floor(right + 0.5)] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_values_stay_within_the_patches_range(mode):
    for scale in (1e-8, 1.0, 1e8):
        patch_map = torch.randn(3, 14, 14) * scale
        pixels = heatmap(patch_map, SEEN["crop"], mode=mode).nan_to_num(nan=patch_map[0, 0, 0].item())
        for one, patches in zip(pixels[1:], patch_map[1:], strict=True):
            seen = one[one != patch_map[0, 0, 0]]
            assert seen.min() >= patches.min()
            assert seen.max() <= patches.max()
    flat = heatmap(torch.full((14, 14), 1 / 197), SEEN["identity"])
    assert (flat == torch.tensor(1 / 197)).all()


def test_bicubic_overshoots_and_only_on_request():
    patch_map = torch.zeros(8, 8)
    patch_map[4, 4] = 1
    geometry = ImageGeometry.identity((64, 64))
    assert heatmap(patch_map, geometry).min() == 0
    assert heatmap(patch_map, geometry, mode="bicubic").min() < 0


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_a_dropped_patch_stays_in_its_own_pixels(mode):
    patch_map = torch.full((6, 6), 2.0)
    patch_map[2, 3] = math.nan
    pixels = heatmap(patch_map, ImageGeometry.identity((60, 60)), mode=mode)
    expected = torch.zeros(60, 60, dtype=torch.bool)
    expected[20:30, 30:40] = True
    assert torch.equal(pixels.isnan(), expected)
    assert torch.allclose(pixels[~expected], torch.tensor(2.0))
    assert heatmap(torch.full((6, 6), math.nan), ImageGeometry.identity((60, 60)), mode=mode).isnan().all()


def test_dropped_patches_in_one_map_leave_the_others_alone():
    patch_map = torch.rand(2, 6, 6)
    clean = heatmap(patch_map, SEEN["squash"])
    patch_map[0, 1, 1] = math.nan
    assert torch.allclose(heatmap(patch_map, SEEN["squash"])[1], clean[1], atol=1e-6)


@pytest.mark.parametrize("area", [(32, 32), (48, 48), (28, 40)])
def test_patch_areas_smaller_and_larger_than_the_input(area):
    geometry = ImageGeometry.identity((37, 39))
    patch_map = torch.rand(area[0] // 4, area[1] // 4)
    got = heatmap(patch_map, geometry, patch_area=area).numpy()
    assert np.allclose(got, oracle(patch_map, geometry, area), atol=1e-6, equal_nan=True)
    assert np.isnan(got[-1]).all() == (area[0] < 37)


def test_shapes_dtypes_and_gradients():
    geometry = SEEN["crop"]
    for shape in ((4, 5), (2, 4, 5), (2, 3, 4, 5)):
        assert heatmap(torch.rand(shape), geometry).shape == (*shape[:-2], 30, 47)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32):
        assert heatmap(torch.ones(4, 5).to(dtype), geometry).dtype == torch.float32
    assert heatmap(np.ones((4, 5)), geometry).dtype == torch.float32
    patch_map = torch.rand(2, 4, 5, requires_grad=True)
    heatmap(patch_map, geometry).nansum().backward()
    assert patch_map.grad.abs().sum() > 0


def test_a_batch_equals_its_members():
    batch = torch.rand(3, 5, 6)
    together = heatmap(batch, SEEN["squash"])
    for one, pixels in zip(batch, together, strict=True):
        assert torch.allclose(heatmap(one, SEEN["squash"]), pixels, atol=1e-7)


@pytest.mark.parametrize(
    "patch_map, options, clause",
    [
        (torch.rand(7), {}, r"\(\.\.\., h, w\).*shape \(7,\).*layout\.patches"),
        (torch.rand(0, 7), {}, r"shape \(0, 7\)"),
        (torch.tensor([[1.0, math.inf]]), {}, "infinity"),
        (torch.rand(2, 2), {"patch_area": (0, 3)}, r"patch_area.*\(0, 3\)"),
        (torch.ones(2, 2, dtype=torch.complex64), {}, "complex"),
    ],
)
def test_errors(patch_map, options, clause):
    with pytest.raises(GeometryError, match=clause):
        heatmap(patch_map, SEEN["identity"], **options)


def test_a_grid_that_covers_no_pixel_of_the_photo():
    geometry = ImageGeometry.identity((8, 8)).pad(top=64, left=64)
    with pytest.raises(GeometryError, match="cover some pixel"):
        heatmap(torch.rand(2, 2), geometry, patch_area=(32, 32))


def test_unknown_mode_lists_the_choices():
    with pytest.raises(ValueError, match="'bilinear', 'nearest', 'bicubic', got 'lanczos'"):
        heatmap(torch.rand(2, 2), SEEN["identity"], mode="lanczos")


def test_what_is_no_geometry_is_refused() -> None:
    with pytest.raises(GeometryError, match="expected an ImageGeometry, got str"):
        drawing.heatmap(torch.rand(4, 4), "photo.jpg")
