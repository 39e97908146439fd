"""Overlays: hot is hot, alpha is the heat map's, and what the model did not see stays as it was."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.heatmaps import heatmap
from attnhook.imaging.overlays import UNIFORM_TOP, colorize, overlay, value_range

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def ramp(dtype=np.float32):
    """Cold at the left, hot at the right."""
    line = np.linspace(0, 1, 60)
    return np.tile(line if np.issubdtype(dtype, np.floating) else line * 255, (40, 1)).astype(dtype)


def color(name, value):
    return np.rint(np.array(mpl.colormaps[name](value)[:3]) * 255)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.int64])
@pytest.mark.parametrize("colormap", ["viridis", "magma", "jet"])
def test_hot_is_hot(dtype, colormap):
    colors = colorize(ramp(dtype), colormap=colormap)
    assert colors.dtype == np.uint8
    assert (colors[:, -1] == color(colormap, 1.0)).all()
    assert (colors[:, 0] == color(colormap, 0.0)).all()
    assert np.abs(colors[0, 30] - color(colormap, ramp()[0, 30])).max() <= 4


def test_colours_agree_with_matplotlib():
    values = torch.rand(40, 60)
    expected = mpl.colormaps["viridis"]((values.numpy() - values.min().item()) / (values.max() - values.min()).item())
    assert np.abs(colorize(values).astype(int) - np.rint(expected[..., :3] * 255)).max() <= 5
    assert (colorize(values, colormap=mpl.colormaps["viridis"]) == colorize(values)).all()


def test_alpha_zero_is_the_photo_and_one_the_map():
    assert overlay(PHOTO, ramp(), alpha=0).tobytes() == PHOTO.tobytes()
    assert np.array_equal(np.asarray(overlay(PHOTO, ramp(), alpha=1)), colorize(ramp()))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8])
def test_alpha_is_the_maps_opacity(alpha):
    expected = alpha * colorize(ramp()).astype(float) + (1 - alpha) * np.asarray(PHOTO)
    assert np.abs(np.asarray(overlay(PHOTO, ramp(), alpha=alpha)) - expected).max() <= 1.2


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("scale", ["minmax", "uniform", (0.0, 0.3)])
def test_what_the_model_did_not_see_is_untouched(alpha, scale):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (96, 160, 3), np.uint8))
    geometry = ImageGeometry.identity((96, 160)).resize(64).center_crop(56)
    values = heatmap(torch.rand(7, 7) + 0.1, geometry)
    outside = values.isnan().numpy()
    painted = np.asarray(overlay(photo, values, alpha=alpha, scale=scale, uniform=1 / 49, colormap="jet"))
    assert 0 < outside.mean() < 1
    assert (painted[outside] == np.asarray(photo)[outside]).all()
    assert (painted[~outside] != np.asarray(photo)[~outside]).any(-1).mean() > 0.95


def test_all_nan_returns_the_photo():
    assert overlay(PHOTO, np.full((40, 60), np.nan)).tobytes() == PHOTO.tobytes()


def test_a_flat_map_renders_flat():
    flat = np.full((40, 60), 1 / 197, np.float32)
    noisy = flat * (1 + np.random.default_rng(0).uniform(-2e-7, 2e-7, flat.shape)).astype(np.float32)
    for values in (flat, noisy, np.zeros_like(flat)):
        for options in ({"scale": "minmax"}, {"scale": "uniform", "uniform": 1 / 197}):
            assert len(np.unique(colorize(values, **options).reshape(-1, 3), axis=0)) == 1
    assert (colorize(flat, scale="uniform", uniform=1 / 197)[0, 0] == color("viridis", 1 / UNIFORM_TOP)).all()


def test_uniform_makes_maps_comparable():
    low, high = np.full((4, 4), 1 / 50, np.float32), np.full((4, 4), 3 / 50, np.float32)
    low[0, 0] = high[0, 0] = 0.0
    shown = [colorize(values, scale="uniform", uniform=1 / 50)[1, 1] for values in (low, high)]
    assert (shown[0] != shown[1]).any()
    assert (shown[1] == color("viridis", 3 / UNIFORM_TOP)).all()
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
    assert value_range(values, "uniform", uniform=1 / 4) == (0, UNIFORM_TOP / 4)
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
        ({"colormap": "virids"}, ValueError, r"'virids'.*Did you mean 'viridis'"),
        ({"colormap": 3}, TypeError, r"Colormap, got int"),
        ({"scale": "uniform"}, ValueError, r"expected uniform=1/N, got uniform=None"),
        ({"scale": "uniform", "uniform": 197}, ValueError, r"uniform=197"),
        ({"scale": "percentile"}, ValueError, r"'minmax', 'uniform', got 'percentile'"),
        ({"scale": (1, 1)}, ValueError, r"lowest < highest, got \(1.0, 1.0\)"),
        ({"heatmap": np.ones((14, 14))}, GeometryError, r"\(40, 60\), got \(14, 14\).*heatmap\(patch_map, geometry\)"),
        ({"heatmap": np.ones((3, 40, 60))}, GeometryError, r"got \(3, 40, 60\).*heatmaps\[0\]"),
        ({"heatmap": np.full((40, 60), np.inf)}, GeometryError, r"infinity"),
        ({"heatmap": np.ones((40, 60), complex)}, GeometryError, r"complex"),
    ],
)
def test_errors(options, error, clause):
    options = {"image": PHOTO, "heatmap": ramp(), **options}
    with pytest.raises(error, match=clause):
        overlay(**options)
