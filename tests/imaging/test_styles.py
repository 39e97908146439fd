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
from attnhook.imaging.styles import mass_mask, without_small_parts
from tests.imaging.expected import PLAIN, differs_little, frame_around, greyed, painted, robust

SIZE = (96, 160)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))
SEEN = ImageGeometry.identity(SIZE).resize(64).center_crop(56)
LEFT_AS_IT_IS = ImageGeometry.identity(SIZE)
MAP = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)) + 0.1


def pixels(picture):
    return np.asarray(picture).astype(int)


def draw(style, alpha=0.5, scale="minmax"):
    colors = {"scale": scale, "colormap": "viridis"}
    look = {"contours": colors, "patches": colors | {"alpha": alpha, "weighted": False}, "mask": {"alpha": alpha}}
    return overlay(PHOTO, MAP, SEEN, style=style, uniform=1 / 8, fade=0, **look[style])


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
    picture = pixels(overlay(black, MAP, SEEN, style="patches", alpha=1.0, **PLAIN))
    colors = colorize(MAP)
    for row in range(7):
        for column in range(7):
            top, left, bottom, right = PatchMap(MAP).box(SEEN, (row, column))
            at = picture[int((top + bottom) / 2), int((left + right) / 2)]
            assert (at == colors[row, column]).all()
    hottest = divmod(int(MAP.argmax()), 7)
    assert (colors[hottest] == np.rint(np.array(mpl.colormaps["viridis"](1.0)[:3]) * 255)).all()


@pytest.mark.parametrize("style", ["patches", "mask", "contours"])
def test_the_rest_is_greyed_behind_a_frame_in_every_style(style):
    outside = heatmap(MAP, SEEN, mode="nearest").isnan().numpy()
    rows, columns = (np.flatnonzero((~outside).any(axis)) for axis in (1, 0))
    frame = frame_around((rows[0], columns[0], rows[-1] + 1, columns[-1] + 1), SIZE)
    plain, faded = (pixels(overlay(PHOTO, MAP, SEEN, style=style, **look)) for look in ({"fade": 0}, {}))
    assert (faded[~outside] == plain[~outside]).all()
    assert (faded[frame] == 96).all()
    assert np.abs(faded - greyed(PHOTO))[outside & ~frame].max() <= 1.2


def test_patches_in_the_default_look_follow_its_formula():
    values = heatmap(MAP, SEEN, mode="nearest").numpy()
    picture = pixels(overlay(PHOTO, MAP, SEEN, style="patches", fade=0))
    low, high, floor = robust([values])
    assert differs_little(picture, painted(PHOTO, values, low, high, floor))
    cold = values < floor - (high - low) / 510
    assert 0.2 < cold.sum() / np.isfinite(values).sum() <= 0.5
    assert (picture[cold] == pixels(PHOTO)[cold]).all()


@pytest.mark.parametrize(("patch", "lined"), [(19, False), (20, True), (40, True)])
def test_only_patches_of_some_size_have_borders(patch, lined):
    """Smaller ones would be covered by them."""
    size = patch * 4, patch * 6
    values = torch.rand(4, 6, generator=torch.Generator().manual_seed(3))
    picture = pixels(overlay(Image.new("RGB", size[::-1]), values, ImageGeometry.identity(size), style="patches"))
    inside = picture.reshape(4, patch, 6, patch, 3)
    flat = (inside == inside[:, patch // 2, :, patch // 2][:, None, :, None]).all(-1)
    assert flat[:, 3:-3, :, 3:-3].all()
    assert flat.all() != lined
    if lined:
        assert not flat[:, 0, :, 3:-3].any()
        assert not flat[:, 3:-3, :, 0].any()


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("style", ["contours", "mask"])
def test_lines_have_a_dark_and_a_light_casing_on_any_photo(style, grey):
    photo = Image.new("RGB", (600, 600), (grey,) * 3)
    values = torch.zeros(6, 6)
    values[:, 3:] = 1.0
    options = {"alpha": 0.02} if style == "mask" else {"mode": "bilinear"}
    row = pixels(overlay(photo, values, ImageGeometry.identity((600, 600)), style=style, **options))[300]
    changed = np.abs(row - grey).max(-1)
    darkest, lightest = row.max(-1).min(), row.min(-1).max()
    assert darkest <= max(0, grey * 0.55)
    assert lightest >= 225
    assert changed.max() > 120


def test_contours_run_where_the_value_is():
    ramp = np.tile(np.linspace(0, 1, 160, dtype=np.float32), (96, 1))
    grey = Image.new("RGB", (160, 96), (128, 128, 128))
    lined = overlay(grey, ramp, LEFT_AS_IT_IS, style="contours", scale="minmax", colormap="viridis")
    changed = set(np.flatnonzero((pixels(lined) != 128).any((0, 2))))
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


def test_a_mask_without_an_opacity_of_its_own_shades_by_three_fifths():
    white = Image.new("RGB", (160, 96), (255, 255, 255))
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[2:5, 2:5] = True
    picture = pixels(overlay(white, mask, SEEN, style="mask"))
    top, left, bottom, right = (int(edge) for edge in PatchMap(MAP).box(SEEN, (0, 0)))
    assert (np.abs(picture[top + 3 : bottom - 3, left + 3 : right - 3] - 255 * 0.4) <= 1).all()
    top, left, bottom, right = (int(edge) for edge in PatchMap(MAP).box(SEEN, (3, 3)))
    assert (picture[top:bottom, left:right] == 255).all()


def parts(rows):
    """Patches marked with a letter hold the mass; the letters are the connected parts."""
    return torch.tensor([[float(sign != ".") for sign in row] for row in rows])


def test_small_parts_are_left_out_of_a_mask():
    rows = ["aa..b", "a....", "...c.", "..c..", "d...."]  # c: two patches that touch at a corner; b and d alone
    values = parts(rows)

    def kept(smallest):
        return without_small_parts(mass_mask(values, 1.0), smallest)

    def expected(letters):
        return torch.tensor([[sign in letters for sign in row] for row in rows])

    for smallest, letters in ((1, "abcd"), (2, "ac"), (3, "a"), (4, "")):
        assert torch.equal(kept(smallest), expected(letters)), smallest
    assert torch.equal(mass_mask(values, 1.0), expected("abcd"))
    black, white = (Image.new("RGB", (50, 50), (grey,) * 3) for grey in (0, 255))
    where = ImageGeometry.identity((50, 50))
    drawn = {n: overlay(white, values, where, style="mask", keep=1.0, smallest=n, alpha=0.5) for n in (1, 2)}
    assert drawn[1].getpixel((45, 5)) == (255, 255, 255)  # b
    assert max(drawn[2].getpixel((45, 5))) <= 128
    assert drawn[1].getpixel((4, 4)) == drawn[2].getpixel((4, 4)) == (255, 255, 255)  # a
    own = overlay(white, PatchMap(values > 0), where, style="mask", smallest=2, alpha=0.5)
    assert own == drawn[2]  # a mask of one's own loses its small parts, too
    strong = overlay(white, values, where, style="mask", keep=1.0, alpha=0.85)
    assert strong.getpixel((25, 5)) == (round(255 * (1 - round(0.85 * 255) / 255)),) * 3
    assert overlay(black, values, where, style="mask", keep=1.0, smallest=9).getpixel((4, 4)) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("smallest", [2, 4])
def test_parts_of_random_masks_by_flooding(seed, smallest):
    """Each part grows from its first patch by sweeps over the grid until nothing is added."""
    chosen = torch.rand(9, 8, generator=torch.Generator().manual_seed(seed)) > 0.72
    expected = torch.zeros_like(chosen)
    for start in chosen.nonzero().tolist():
        part = torch.zeros_like(chosen)
        part[tuple(start)] = True
        for _ in range(72):
            near = torch.nn.functional.max_pool2d(part[None].float(), 3, stride=1, padding=1)[0] > 0
            part = near & chosen
        if part.sum() >= smallest:
            expected |= part
    assert 0 < expected.sum() < chosen.sum()
    assert torch.equal(without_small_parts(chosen, smallest), expected)


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
