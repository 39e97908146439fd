"""Styles: lines where the value is, patches bare, masks that hold the mass; the photo where nothing is to be seen."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.drawing import heatmap, overlay
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.overlays import colorize
from attnhook.imaging.patch_maps import PatchMap
from attnhook.imaging.styles import mass_mask

SIZE = (96, 160)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))
SEEN = ImageGeometry.identity(SIZE).resize(64).center_crop(56)
LEFT_AS_IT_IS = ImageGeometry.identity(SIZE)
MAP = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)) + 0.1


def pixels(picture):
    return np.asarray(picture).astype(int)


def draw(style, alpha=0.5, scale="minmax"):
    look = {"contours": {"scale": scale}, "patches": {"scale": scale, "alpha": alpha}, "mask": {"alpha": alpha}}
    return overlay(PHOTO, MAP, SEEN, style=style, uniform=1 / 8, **look[style])


@pytest.mark.parametrize("style", ["patches", "mask", "contours"])
@pytest.mark.parametrize("scale", ["minmax", "robust", "uniform", (0.0, 0.5)])
def test_what_the_model_did_not_see_is_the_photo(style, scale):
    outside = heatmap(MAP, SEEN, mode="nearest").isnan().numpy()
    assert 0 < outside.mean() < 1
    for alpha in (0.5, 1.0):
        changed = (pixels(draw(style, alpha, scale)) != pixels(PHOTO)).any(axis=-1)
        assert not changed[outside].any()
        assert changed[~outside].mean() > 0.2
    if style != "contours":
        assert draw(style, 0, scale).tobytes() == PHOTO.tobytes()


def test_patches_have_one_colour_each_and_the_hottest_the_top_one():
    black = Image.new("RGB", (160, 96))
    picture = pixels(overlay(black, MAP, SEEN, style="patches", alpha=1.0))
    colors = colorize(MAP)
    for row in range(7):
        for column in range(7):
            top, left, bottom, right = PatchMap(MAP).box(SEEN, (row, column))
            at = picture[int((top + bottom) / 2), int((left + right) / 2)]
            assert (at == colors[row, column]).all()
    hottest = divmod(int(MAP.argmax()), 7)
    assert (colors[hottest] == np.rint(np.array(mpl.colormaps["viridis"](1.0)[:3]) * 255)).all()


def test_contours_run_where_the_value_is():
    ramp = np.tile(np.linspace(0, 1, 160, dtype=np.float32), (96, 1))
    grey = Image.new("RGB", (160, 96), (128, 128, 128))
    changed = set(np.flatnonzero((pixels(overlay(grey, ramp, LEFT_AS_IT_IS, style="contours")) != 128).any((0, 2))))
    lines = [round(160 * share) for share in (0.2, 0.4, 0.6, 0.8)]
    assert {at + step for at in lines for step in (-1, 0)} <= changed
    assert changed <= {at + step for at in lines for step in range(-3, 3)}
    assert overlay(grey, np.ones_like(ramp), LEFT_AS_IT_IS, style="contours").tobytes() == grey.tobytes()


def test_a_mask_holds_the_mass_in_the_fewest_patches():
    for keep in (0.1, 0.6, 0.95, 1.0):
        mask = mass_mask(MAP, keep)
        share = float(MAP[mask].sum() / MAP.sum())
        assert share >= keep - 1e-6
        assert share - float(MAP[mask].min() / MAP.sum()) < keep
        assert mask.all() or MAP[mask].min() >= MAP[~mask].max()
    dropped = MAP.clone()
    dropped[0, 0] = float("nan")
    assert not mass_mask(dropped)[0, 0]
    with pytest.raises(ValueError, match=r"0 < keep <= 1, got 0"):
        mass_mask(MAP, 0)


def test_a_mask_darkens_the_rest_only():
    white = Image.new("RGB", (160, 96), (255, 255, 255))
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[2:5, 2:5] = True
    picture = pixels(overlay(white, mask, SEEN, style="mask", alpha=0.5))
    y, x = (int(sum(PatchMap(MAP).box(SEEN, (3, 3))[at::2]) / 2) for at in (0, 1))
    assert (picture[y, x] == 255).all()
    y, x = (int(sum(PatchMap(MAP).box(SEEN, (0, 0))[at::2]) / 2) for at in (0, 1))
    assert (np.abs(picture[y, x] - 127) <= 1).all()
    assert overlay(white, mask.float(), SEEN, style="mask", alpha=0.5, keep=1.0) == overlay(
        white, mask, SEEN, style="mask", alpha=0.5
    )


def test_patches_lie_where_the_heat_map_has_them():
    nearest = heatmap(torch.arange(49.0).reshape(7, 7), SEEN, mode="nearest").numpy()
    rows, columns = PatchMap(MAP).edges(SEEN)
    assert (len(rows), len(columns)) == (8, 8)
    for number in range(49):
        top, left, bottom, right = PatchMap(MAP).box(SEEN, divmod(number, 7))
        ys, xs = np.nonzero(nearest == number)
        assert (np.abs([ys.min() - top, ys.max() + 1 - bottom, xs.min() - left, xs.max() + 1 - right]) <= 0.51).all()
    assert PatchMap(MAP).box(SEEN, (-1, -1)) == PatchMap(MAP).box(SEEN, (6, 6))
    with pytest.raises(GeometryError, match=r"patch \(7, 0\) lies outside the grid"):
        PatchMap(MAP).box(SEEN, (7, 0))
