"""Tiles of one map put together are that map again; tiles that differ meet without a jump."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import resize, to_tensor

from attnhook import AttentionCapture, ImageGeometry, PatchMap, join_tiles, overlay, raw_attention
from attnhook.errors import GeometryError
from tests.models import TIMM

PATCH = 12  # photo pixels
INPUT = 16  # of the model, per patch


def cut(grid: torch.Tensor, size: tuple[int, int], step: tuple[int, int]) -> tuple[list[PatchMap], list[ImageGeometry]]:
    """Tiles of `size` patches, every `step` patches."""
    rows, columns = grid.shape
    whole, maps, places = ImageGeometry.identity((rows * PATCH, columns * PATCH)), [], []
    fed = (size[0] * INPUT, size[1] * INPUT)
    for top, left in itertools.product(range(0, rows - size[0] + 1, step[0]), range(0, columns - size[1] + 1, step[1])):
        maps.append(PatchMap(grid[top : top + size[0], left : left + size[1]].clone(), fed, fed))
        corner, pixels = (top * PATCH, left * PATCH), (size[0] * PATCH, size[1] * PATCH)
        places.append(whole.crop(corner, pixels).resize(fed))
    return maps, places


def expected(grid: torch.Tensor) -> torch.Tensor:
    return PatchMap(grid).heatmap(ImageGeometry.identity((grid.shape[0] * PATCH, grid.shape[1] * PATCH)))


@pytest.mark.parametrize(
    ("size", "step"),
    [((4, 5), (4, 5)), ((4, 5), (3, 4)), ((4, 5), (2, 3)), ((8, 5), (4, 5))],
    ids=["side by side", "a patch", "two", "half"],
)
def test_tiles_of_one_map_give_its_heat_map(size, step) -> None:
    grid = torch.rand(
        16 if size[0] == 8 else 4 + 3 * step[0], 5 + 3 * step[1], generator=torch.Generator().manual_seed(0)
    )
    maps, places = cut(grid, size, step)
    assert len(maps) >= 9
    torch.testing.assert_close(join_tiles(maps, places), expected(grid), rtol=1e-5, atol=1e-6)
    order = torch.randperm(len(maps)).tolist()
    shuffled = join_tiles([maps[i] for i in order], [places[i] for i in order])
    torch.testing.assert_close(shuffled, expected(grid), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [6, 5, 4, 3])
def test_tiles_that_differ_meet_without_a_jump(step) -> None:
    grid = torch.zeros(6 + 3 * step, 6 + 3 * step)
    maps, places = cut(grid, (6, 6), (step, step))
    for number, one in enumerate(maps):
        one.values.fill_(float(number % 2))
    joined = join_tiles(maps, places)
    assert not joined.isnan().any()
    assert joined.min() >= 0
    assert joined.max() <= 1
    steepest = max(float(joined.diff(dim=axis).abs().max()) for axis in (0, 1))
    assert (
        steepest <= 1.0 / PATCH / max(1, 6 - step) + 1e-6
    )  # from one tile's value to the next over a patch, or over the overlap


def test_a_tile_beside_a_gap_keeps_its_own_values_and_the_gap_is_not_seen() -> None:
    maps, places = cut(torch.rand(4, 12), (4, 4), (4, 8))
    joined = join_tiles(maps, places)
    assert joined[:, 4 * PATCH : 8 * PATCH].isnan().all()
    torch.testing.assert_close(joined[:, : 4 * PATCH], maps[0].heatmap(places[0])[:, : 4 * PATCH], rtol=1e-5, atol=1e-6)


def test_dropped_patches_and_tiles_of_padding_leave_the_others_alone() -> None:
    grid = torch.rand(4, 8)
    maps, places = cut(grid, (4, 4), (4, 4))
    maps[0].values[1, 2] = float("nan")
    joined = join_tiles([*maps, maps[0]], [*places, None])
    missing = torch.zeros(joined.shape, dtype=torch.bool)
    missing[PATCH : 2 * PATCH, 2 * PATCH : 3 * PATCH] = True
    assert torch.equal(joined.isnan(), missing)
    torch.testing.assert_close(joined[:, 5 * PATCH :], expected(grid)[:, 5 * PATCH :], rtol=1e-5, atol=1e-6)


def test_a_model_over_the_crops_of_a_photo() -> None:
    model = next(case for case in TIMM if case.name == "vit").build()
    height, width = model.patch_embed.img_size
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4 * 60, 4 * 100, 3), np.uint8))
    whole = ImageGeometry.identity((photo.height, photo.width))
    corners = list(itertools.product(range(0, 240, 60), range(0, 400, 100)))
    crops = [to_tensor(photo.crop((left, top, left + 100, top + 60))) for top, left in corners]
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(torch.stack([resize(crop, [height, width]) for crop in crops]))
    places = [whole.crop(corner, (60, 100)).resize((height, width)) for corner in corners]
    joined = join_tiles(raw_attention(capture.maps), places)
    assert joined.shape == (240, 400)
    for number, (top, left) in enumerate(corners):  # the middle of each crop is its own
        own = raw_attention(capture.maps)[number].heatmap(places[number])
        middle = slice(top + 20, top + 40), slice(left + 20, left + 80)
        torch.testing.assert_close(joined[middle], own[middle], rtol=1e-5, atol=1e-6)
    assert overlay(photo, joined).size == photo.size


def test_tiles_that_do_not_belong_together() -> None:
    maps, places = cut(torch.rand(4, 8), (4, 4), (4, 4))
    with pytest.raises(GeometryError, match="expected one geometry per map, got 2 maps and 1 geometries"):
        join_tiles(maps, places[:1])
    with pytest.raises(GeometryError, match="expected geometries of one photo"):
        join_tiles(maps, [places[0], ImageGeometry.identity((9, 9)).resize(places[0].input_size)])
    with pytest.raises(GeometryError, match="expected geometries of one photo, got photos of no size"):
        join_tiles([], [])
    with pytest.raises(GeometryError, match="do not match: expected an input of 64 x 64"):
        join_tiles(maps, [place.resize((80, 80)) for place in places])
    with pytest.raises(TypeError, match=r"got Tensor\. Tensors become maps with PatchMap"):
        join_tiles([one.values for one in maps], places)
    with pytest.raises(TypeError, match="expected PatchMaps and ImageGeometries, got tuple"):
        join_tiles(maps, [(0, 0, 4, 4)] * 2)
    with pytest.raises(GeometryError, match="expected one map, got shape"):
        join_tiles([PatchMap(torch.rand(2, 4, 4)), maps[1]], places)
