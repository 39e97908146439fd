"""Overlays: hot is hot, alpha is the heat map's, what is cold or unseen by the model stays as it was."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.drawing import heatmap, overlay
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.looks import Look
from attnhook.imaging.overlays import colorize, common_look, common_range, overlay_batch, value_range
from tests.imaging.expected import PLAIN, differs_little, frame_around, greyed, painted, robust, table

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def ramp(dtype=np.float32):
    """Cold at the left, hot at the right."""
    line = np.linspace(0, 1, 60)
    return np.tile(line if np.issubdtype(dtype, np.floating) else line * 255, (40, 1)).astype(dtype)


def color(name, value):
    return np.rint(np.array(mpl.colormaps[name](value)[:3]) * 255)


ARRAYS = [np.float16, np.float32, np.float64, np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64]
TENSORS = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
]


def every_dtype():
    """The ramp in every dtype that a map may come in; whole numbers from 0 to 85, which all of them hold."""
    whole = np.rint(ramp(np.float64) * 85)
    return [whole.astype(dtype) for dtype in ARRAYS] + [torch.from_numpy(whole).to(dtype) for dtype in TENSORS]


@pytest.mark.parametrize("colormap", sorted(mpl.colormaps))
def test_hot_is_hot(colormap):
    top, bottom = color(colormap, 1.0), color(colormap, 0.0)
    steps = np.rint(mpl.colormaps[colormap](np.linspace(0, 1, 256))[:, :3] * 255)
    expected = steps[np.rint(ramp(np.float64) * 85).astype(int) * 3]
    for values in every_dtype():
        for scale in ("minmax", (0, 85)):
            colors = colorize(values, colormap=colormap, scale=scale)
            assert colors.dtype == np.uint8
            assert (colors[:, -1] == top).all(), values.dtype
            assert (colors[:, 0] == bottom).all(), values.dtype
            assert (colors == expected).all(), values.dtype
    for options in ({}, PLAIN):
        drawn = np.asarray(overlay(PHOTO, ramp(), **(options | {"colormap": colormap, "alpha": 1.0})))
        assert (drawn[:, -1] == top).all()
        bare = np.asarray(overlay(PHOTO, ramp(), **(options | {"colormap": colormap, "alpha": 0})))
        assert (bare == np.asarray(PHOTO)).all()


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_value_gets_the_top_colour_whatever_the_numbers(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(40, 60, generator=generator) ** (1 + seed) * 10.0 ** -(seed % 9)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        shown = values.to(dtype)
        hottest, coldest = shown == shown.max(), shown == shown.min()
        if shown.max() == shown.min():
            continue
        colors = colorize(shown)
        assert (colors[hottest.numpy()] == color("viridis", 1.0)).all()
        assert (colors[coldest.numpy()] == color("viridis", 0.0)).all()
        robust = colorize(shown, scale="robust")
        assert (robust[hottest.numpy()] == color("viridis", 1.0)).all()


def sink():
    """A ramp, and one value a thousand times as large as the rest."""
    values = ramp() + 1
    values[7, 9] = 2000.0
    return values


def test_robust_spreads_colours_where_a_sink_takes_them_all():
    assert value_range(sink(), "robust") == pytest.approx(tuple(np.percentile(sink(), [1, 99])))
    hidden, shown = colorize(sink()), colorize(sink(), scale="robust")
    assert len(np.unique(hidden.reshape(-1, 3), axis=0)) == 2
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 50
    for colors in (hidden, shown):
        assert (colors[7, 9] == color("viridis", 1.0)).all()
    assert (shown[:, 0] == color("viridis", 0.0)).all()


def test_robust_counts_finite_values_only():
    values = np.full((40, 60), np.nan, np.float32)
    values[:, 20:40] = sink()[:, 20:40]
    expected = value_range(sink()[:, 20:40], "robust")
    assert value_range(values, "robust") == pytest.approx(expected)
    values[0, 20], values[0, 21] = np.inf, -np.inf
    known = values[np.isfinite(values)]
    assert value_range(values, "robust") == pytest.approx(tuple(np.percentile(known, [1, 99])))
    colors = colorize(values, scale="robust")
    assert (colors[0, 20] == color("viridis", 1.0)).all()
    assert (colors[0, 21] == color("viridis", 0.0)).all()


def test_robust_where_percentiles_coincide_takes_the_whole_range():
    values = np.zeros((40, 60), np.float32)
    values[3, 4] = 0.5
    assert value_range(values, "robust") == (0.0, 0.5)
    assert (colorize(values, scale="robust")[3, 4] == color("viridis", 1.0)).all()
    for flat in (np.zeros((4, 4)), np.full((4, 4), 0.3), np.full((4, 4), np.nan)):
        low, high = value_range(flat, "robust")
        assert low == high


def test_robust_of_several_maps_is_of_all_values_together():
    maps = [sink(), ramp()[:, :30], np.full((2, 2), np.nan)]
    together = np.concatenate([maps[0].ravel(), maps[1].ravel()])
    assert common_range(maps, "robust") == pytest.approx(tuple(np.percentile(together, [1, 99])))
    assert common_range(maps) == pytest.approx((0.0, 2000.0))
    assert common_range([], "robust") == common_range([np.ones((2, 2))], "robust") == "minmax"
    assert common_range(maps, "uniform", uniform=0.1) == "uniform"
    assert common_range(maps, (0.0, 3.0)) == (0.0, 3.0)


@pytest.mark.parametrize("scale", ["minmax", "robust"])
def test_a_batch_shares_one_range_and_one_beginning_of_opacity(scale):
    photos, maps = [PHOTO, PHOTO.resize((30, 20))], [ramp() * 0.1, ramp()[:20, :30]]
    together = np.concatenate([one.ravel() for one in maps])
    low, high = (together.min(), together.max()) if scale == "minmax" else np.percentile(together, [1, 99])
    floor = np.median(together)
    pictures = overlay_batch(photos, maps, scale=scale)
    assert [picture.size for picture in pictures] == [(60, 40), (30, 20)]
    for picture, photo, values in zip(pictures, photos, maps, strict=True):
        assert picture.tobytes() == overlay(photo, values, scale=(low, high), floor=floor).tobytes()
        assert differs_little(picture, painted(photo, values, low, high, floor))
    look = common_look(maps, Look(scale=scale))
    assert look.scale == pytest.approx((low, high))
    assert look.floor == pytest.approx(floor)
    assert overlay_batch([], []) == []
    with pytest.raises(GeometryError, match=r"expected one heat map for each photo, got 1 heat maps and 2 photos"):
        overlay_batch(photos, maps[:1])
    with pytest.raises(TypeError, match=r"got 'color'\. Did you mean 'colormap'"):
        overlay_batch(photos, maps, color="jet")


def test_a_batch_in_a_plain_look():
    photos, maps = [PHOTO, PHOTO.resize((30, 20))], [ramp() * 0.1, ramp()[:20, :30]]
    bounds = common_range(maps, "minmax")
    assert bounds == pytest.approx((0.0, ramp()[0, 29]))
    for picture, photo, values in zip(overlay_batch(photos, maps, alpha=0.5, **PLAIN), photos, maps, strict=True):
        options = PLAIN | {"scale": bounds}
        assert picture.tobytes() == overlay(photo, values, alpha=0.5, **options).tobytes()
        expected = 0.5 * table("viridis")[np.rint(values / bounds[1] * 255).astype(int)] + 0.5 * np.asarray(photo)
        assert differs_little(picture, expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_default_look_is_its_formula(seed):
    """1st to 99th percentile of plasma; opacity from nothing at the median, 1.6 steep, to 0.85."""
    values = np.random.default_rng(seed).random((40, 60)).astype(np.float32) ** (1 + seed) * 0.01
    low, high, floor = robust([values])
    picture = overlay(PHOTO, values)
    assert differs_little(picture, painted(PHOTO, values, low, high, floor))
    step, photo = (high - low) / 255, np.asarray(PHOTO)
    cold = values < np.median(values) - step / 2
    assert cold.mean() > 0.4
    assert (np.asarray(picture)[cold] == photo[cold]).all()
    below = values <= np.median(values)  # within half a colour of the median, an opacity of 1/255 at most
    assert below.mean() >= 0.5
    assert np.abs(np.asarray(picture).astype(int) - photo)[below].max() <= 2
    hot = values >= floor + (high - floor) / 1.6
    top = 0.15 * photo + 0.85 * table("plasma")[np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(int)]
    assert hot.sum() > 10
    assert differs_little(picture, top, where=hot)
    assert overlay(PHOTO, values, colormap="plasma", alpha=0.85, scale="robust", weighted=True).tobytes() == (
        picture.tobytes()
    )


def test_one_hot_patch_is_all_that_is_painted():
    """An eager marker: the photo is untouched, byte by byte, but within half a patch of the one that is hot."""
    geometry = ImageGeometry.identity((84, 112))
    photo = np.random.default_rng(2).integers(0, 256, (84, 112, 3), np.uint8)
    for row, column in ((0, 0), (3, 5), (5, 7)):
        marker = torch.zeros(6, 8)
        marker[row, column] = 1.0
        changed = (np.asarray(overlay(photo, marker, geometry)) != photo).any(axis=-1)
        ys, xs = np.nonzero(changed)
        assert changed[row * 14 : row * 14 + 14, column * 14 : column * 14 + 14].mean() > 0.9
        assert row * 14 - 7 <= ys.min() <= ys.max() < row * 14 + 21
        assert column * 14 - 7 <= xs.min() <= xs.max() < column * 14 + 21


def test_a_map_that_is_mostly_high_keeps_its_differences():
    """The median lies at the top: opacity begins half way up the colours instead."""
    values = np.ones((40, 60), np.float32)
    values[:, :12] = np.linspace(0, 1, 12)
    picture = np.asarray(overlay(PHOTO, values, scale="minmax"))
    assert differs_little(picture, painted(PHOTO, values, 0.0, 1.0, 0.5))
    assert (picture[:, :6] == np.asarray(PHOTO)[:, :6]).all()
    assert (picture[:, 8] != np.asarray(PHOTO)[:, 8]).any()


@pytest.mark.parametrize("colormap", ["plasma", "viridis"])
def test_a_given_floor_and_a_given_range(colormap):
    low, high = 0.1, 0.9
    for floor, begin in ((None, low), (0.4, 0.4), (-3.0, low), (0.8, 0.5)):
        picture = overlay(PHOTO, ramp(), scale=(low, high), floor=floor, alpha=0.7, colormap=colormap)
        expected = painted(PHOTO, ramp(), low, high, begin, alpha=0.7, colormap=colormap)
        assert differs_little(picture, expected)
        cold = ramp() < begin - (high - low) / 510
        assert (np.asarray(picture)[cold] == np.asarray(PHOTO)[cold]).all()


def test_uniform_is_logarithmic_and_begins_at_uniform_attention():
    uniform = 1 / 50
    values = (np.tile(np.geomspace(0.1, 40, 60), (40, 1)) * uniform).astype(np.float32)
    picture = np.asarray(overlay(PHOTO, values, scale="uniform", uniform=uniform))
    assert differs_little(picture, painted(PHOTO, values, uniform, 16 * uniform, uniform, logarithmic=True))
    below = values <= uniform
    assert below.mean() > 0.3
    assert (picture[below] == np.asarray(PHOTO)[below]).all()
    colors = colorize(values, scale="uniform", uniform=uniform, colormap="plasma")
    assert (colors[values >= 16 * uniform] == table("plasma")[255]).all()
    for times in (1, 2, 4, 8, 16):
        flat = np.full((4, 4), times * uniform, np.float32)
        flat[0, 0] = 0
        share = np.log2(times) / 4
        assert (colorize(flat, scale="uniform", uniform=uniform)[1, 1] == table("viridis")[round(share * 255)]).all()


def test_weighted_opacity_follows_the_value():
    photo = np.asarray(PHOTO).astype(float)
    look = {"alpha": 0.8, "weighted": True, "scale": "minmax", "colormap": "viridis", "fade": 0}
    drawn = np.asarray(overlay(PHOTO, ramp(), floor=0.0, **look)).astype(float)
    opacity = 0.8 * np.minimum(1.6 * np.rint(ramp() * 255)[..., None] / 255, 1)
    expected = photo * (1 - opacity) + colorize(ramp()) * opacity
    assert np.abs(drawn - expected).max() <= 2
    assert (drawn[:, 0] == photo[:, 0]).all()
    assert (np.asarray(overlay(PHOTO, ramp(), **look))[:, :30] == photo[:, :30]).all()
    assert overlay(PHOTO, ramp(), alpha=0, weighted=True).tobytes() == PHOTO.tobytes()


def test_colours_agree_with_matplotlib():
    values = torch.rand(40, 60)
    expected = mpl.colormaps["viridis"]((values.numpy() - values.min().item()) / (values.max() - values.min()).item())
    assert np.abs(colorize(values).astype(int) - np.rint(expected[..., :3] * 255)).max() <= 5
    assert (colorize(values, colormap=mpl.colormaps["viridis"]) == colorize(values)).all()


def test_alpha_zero_is_the_photo_and_one_the_map():
    for options in ({}, PLAIN):
        assert overlay(PHOTO, ramp(), alpha=0, **options).tobytes() == PHOTO.tobytes()
    assert np.array_equal(np.asarray(overlay(PHOTO, ramp(), alpha=1, **PLAIN)), colorize(ramp()))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8])
def test_alpha_is_the_maps_opacity(alpha):
    expected = alpha * colorize(ramp()).astype(float) + (1 - alpha) * np.asarray(PHOTO)
    assert np.abs(np.asarray(overlay(PHOTO, ramp(), alpha=alpha, **PLAIN)) - expected).max() <= 1.2


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", ["minmax", "robust", "uniform", (0.0, 0.3)])
def test_what_the_model_did_not_see_is_untouched(alpha, scale, weighted):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 160, 3), np.uint8))
    geometry = ImageGeometry.identity((96, 160)).resize(64).center_crop(56)
    values = heatmap(torch.rand(7, 7) + 0.1, geometry)
    outside = values.isnan().numpy()
    options = {"alpha": alpha, "scale": scale, "uniform": 1 / 49, "weighted": weighted, "floor": 0.0}
    drawn = np.asarray(overlay(photo, values, colormap="jet", fade=0, **options))
    assert 0 < outside.mean() < 1
    assert (drawn[outside] == np.asarray(photo)[outside]).all()
    assert (drawn[~outside] != np.asarray(photo)[~outside]).any(-1).mean() > (0.6 if weighted else 0.95)
    faded = np.asarray(overlay(photo, values, colormap="jet", **options))
    assert (faded[~outside] == drawn[~outside]).all()  # fading is for the rest


@pytest.mark.parametrize("size", [(96, 160), (480, 1600)])
@pytest.mark.parametrize("fade", [0.4, 0.1, 1.0])
def test_what_the_model_did_not_see_is_greyed_behind_a_frame(size, fade):
    photo = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    values = np.full(size, np.nan, np.float32)
    top, left, bottom, right = box = 12, 40, size[0] - 20, size[1] - 30
    values[top:bottom, left:right] = np.random.default_rng(0).random((bottom - top, right - left))
    drawn = np.asarray(overlay(photo, values) if fade == 0.4 else overlay(photo, values, fade=fade))
    frame = frame_around(box, size, 1 if size[1] == 160 else 3)  # a five-hundredth of the longer edge
    assert (drawn[frame] == 96).all()
    rest = np.isnan(values) & ~frame
    assert np.abs(drawn - greyed(photo, fade))[rest].max() <= 1.2
    look = {"scale": (0.1, 0.9), "floor": 0.5}  # percentiles of a large picture are those of its every k-th pixel
    inside = np.asarray(overlay(photo, values, fade=fade, **look))[top:bottom, left:right]
    alone = np.asarray(overlay(photo[top:bottom, left:right], values[top:bottom, left:right], **look))
    assert (inside == alone).all()
    plain = np.asarray(overlay(photo, values, fade=0))
    assert (plain[np.isnan(values)] == photo[np.isnan(values)]).all()


@pytest.mark.parametrize("style", ["heat", "patches", "contours", "mask"])
def test_a_crop_is_the_seen_part_of_the_overlay(style):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 160, 3), np.uint8))
    geometry = ImageGeometry.identity((96, 160)).resize(64).center_crop(56)
    seen = ~heatmap(torch.rand(7, 7), geometry, mode="nearest").isnan().numpy()
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    assert (box[2] - box[0]) * (box[3] - box[1]) == seen.sum() < seen.size
    values = torch.rand(7, 7, generator=torch.Generator().manual_seed(1))
    for fade in (0.4, 0.0):
        whole = overlay(photo, values, geometry, style=style, fade=fade)
        cropped = overlay(photo, values, geometry, style=style, fade=fade, crop="seen")
        assert cropped.size == (box[2] - box[0], box[3] - box[1])
        assert cropped.tobytes() == whole.crop(box).tobytes()
    with pytest.raises(ValueError, match="'photo', 'seen', got 'middle'"):
        overlay(photo, values, geometry, style=style, crop="middle")


def test_a_crop_of_what_was_seen_whole_is_all_of_it():
    assert overlay(PHOTO, ramp(), crop="seen").tobytes() == overlay(PHOTO, ramp()).tobytes()


def test_all_nan_returns_the_photo():
    nothing = np.full((40, 60), np.nan)
    for options in (PLAIN, {"fade": 0}, {"fade": 0, "crop": "seen"}, {"alpha": 1.0, "fade": 0}):
        assert overlay(PHOTO, nothing, **options).tobytes() == PHOTO.tobytes()
    faded = np.asarray(overlay(PHOTO, nothing))
    assert np.abs(faded - greyed(PHOTO)).max() <= 1.2  # all of it, without a frame


def test_a_flat_map_renders_flat():
    flat = np.full((40, 60), 1 / 197, np.float32)
    noisy = flat * (1 + np.random.default_rng(0).uniform(-2e-7, 2e-7, flat.shape)).astype(np.float32)
    for values in (flat, noisy, np.zeros_like(flat)):
        for options in ({"scale": "minmax"}, {"scale": "uniform", "uniform": 1 / 197}):
            assert len(np.unique(colorize(values, **options).reshape(-1, 3), axis=0)) == 1
    assert (colorize(flat, scale="uniform", uniform=1 / 197)[0, 0] == color("viridis", 0.0)).all()
    for values in (flat, noisy):
        for options in ({}, {"scale": "minmax"}, {"scale": "uniform", "uniform": 1 / 197}):
            assert overlay(PHOTO, values, **options).tobytes() == PHOTO.tobytes()  # nothing stands out
        bare = np.asarray(overlay(PHOTO, values, alpha=0.5, **PLAIN))
        assert differs_little(bare, 0.5 * table("viridis")[0] + 0.5 * np.asarray(PHOTO))


def test_uniform_makes_maps_comparable():
    low, high = np.full((4, 4), 1 / 50, np.float32), np.full((4, 4), 3 / 50, np.float32)
    low[0, 0] = high[0, 0] = 0.0
    shown = [colorize(values, scale="uniform", uniform=1 / 50)[1, 1] for values in (low, high)]
    assert (shown[0] != shown[1]).any()
    assert (shown[0] == color("viridis", 0.0)).all()
    assert (shown[1] == table("viridis")[round(np.log(3) / np.log(16) * 255)]).all()
    stretched = [colorize(values)[1, 1] for values in (low, high)]
    assert (stretched[0] == stretched[1]).all()


def test_values_beyond_the_range_get_the_end_colours():
    colors = colorize(np.array([[-5.0, 0.0, 1.0, 9.0, np.inf]]), scale=(0, 1))
    assert (colors[0, 0] == colors[0, 1]).all()
    assert (colors[0, 2] == colors[0, 3]).all()
    assert (colors[0, 4] == color("viridis", 1.0)).all()


def test_value_ranges():
    values = torch.tensor([[0.1, float("nan")], [0.4, 0.2]])
    assert value_range(values) == pytest.approx((0.1, 0.4))
    assert value_range(torch.stack([values, values * 2])) == pytest.approx((0.1, 0.8))
    assert value_range(values, "uniform", uniform=1 / 4) == (1 / 4, 4.0)
    assert value_range(values, (1, 2)) == (1.0, 2.0)
    assert value_range(torch.full((2, 2), float("nan"))) == (0.0, 0.0)


def test_tiny_and_huge_values():
    for factor in (1e-30, 1e30):
        assert (colorize(ramp() * np.float32(factor)) == colorize(ramp())).all()


def test_other_inputs(tmp_path):
    values = torch.rand(1, 40, 60, requires_grad=True)
    expected = overlay(PHOTO, values.detach()[0])
    tensor = torch.from_numpy(np.asarray(PHOTO).copy()).permute(2, 0, 1)
    path = tmp_path / "photo.png"
    PHOTO.save(path)
    for photo in (PHOTO, tensor, path, np.asarray(PHOTO)):
        assert overlay(photo, values).tobytes() == expected.tobytes()
    assert overlay(PHOTO, values.bfloat16()).mode == "RGB"


@pytest.mark.parametrize(
    "options, error, clause",
    [
        ({"alpha": 1.5}, ValueError, r"from 0 .*to 1 .*got 1.5"),
        ({"alpha": float("nan")}, ValueError, "alpha"),
        ({"alpha": "half"}, ValueError, "'half'"),
        ({"fade": -0.1}, ValueError, r"unknown fade: .*from 0 .*to 1 .*got -0.1"),
        ({"crop": "square"}, ValueError, r"'photo', 'seen', got 'square'"),
        ({"colour": "jet"}, TypeError, r"got 'colour'. Did you mean 'colormap'"),
        ({"colormap": "virids"}, ValueError, r"'virids'.*Did you mean 'viridis'"),
        ({"colormap": 3}, TypeError, r"Colormap, got int"),
        ({"scale": "uniform"}, ValueError, r"expected uniform=1/N, got uniform=None"),
        ({"scale": "uniform", "uniform": 197}, ValueError, r"uniform=197"),
        ({"scale": "percentile"}, ValueError, r"'minmax', 'robust', 'uniform', got 'percentile'"),
        ({"scale": (1, 1)}, ValueError, r"lowest < highest, got \(1.0, 1.0\)"),
        (
            {"heatmap": np.ones((14, 14))},
            GeometryError,
            r"\(40, 60\), got \(14, 14\).*overlay\(photo, patch_map, transform\)",
        ),
        ({"heatmap": np.ones((60, 40))}, GeometryError, r"\(40, 60\), got \(60, 40\)\. Height and width look swapped"),
        ({"heatmap": np.ones((150, 451))}, GeometryError, r"The geometry was made for a photo of 150 x 451 \(height x"),
        ({"heatmap": np.ones((3, 40, 60))}, GeometryError, r"got \(3, 40, 60\).*heatmaps\[0\]"),
        ({"heatmap": np.full((40, 60), np.inf), "scale": "minmax"}, GeometryError, r"infinity"),
        ({"heatmap": np.ones((40, 60), complex)}, GeometryError, r"complex"),
    ],
)
def test_errors(options, error, clause):
    options = {"heatmap": ramp(), **options}
    with pytest.raises(error, match=clause):
        overlay(PHOTO, options.pop("heatmap"), **options)
