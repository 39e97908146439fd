"""The default look over real maps of real photos, and figures whose size does not depend on the photo's."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook import VisionModel, attend, blocks_figure, heads_figure, photo_figure, query_figure
from attnhook.demo import read_photos
from attnhook.zoo.loading import load
from tests.models import TIMM
from tests.results.test_results import prepare


@pytest.fixture(scope="module")
def demo():
    return load("demo")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chelsea", "astronaut", "coffee", "rocket"])
def test_the_default_look_leaves_what_is_cold_and_shows_what_is_hot(demo, name):
    pytest.importorskip("skimage")
    photo = read_photos()[name]
    (result,) = attend(demo, photo)
    image = np.asarray(result.image).astype(int)
    difference = np.abs(np.asarray(result.overlay()).astype(int) - image).mean(-1)
    values = np.asarray(result.heatmap)
    cold = values < np.nanmedian(values)
    assert 0.3 < cold.mean() <= 0.5
    assert difference[cold].mean() < 4
    hottest = torch.topk(torch.nan_to_num(result.attention.flatten(), nan=-1.0), 5).indices.tolist()
    columns = result.attention.shape[1]
    for patch in hottest:
        box = result.patch_map.box(result.geometry, divmod(patch, columns))
        top, left, bottom, right = (round(edge) for edge in box)
        assert difference[max(0, top) : bottom, max(0, left) : right].mean() > 40, (name, divmod(patch, columns))


def pixels_of(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB")).astype(float)


@pytest.mark.parametrize("crop", ["photo", "seen"])
def test_figures_do_not_depend_on_the_photos_size(crop):
    """The same model's input, from a photo of 12 megapixels and from one of a sixteenth of that."""
    model = VisionModel(next(case for case in TIMM if case.name == "vit").build(), prepare, name="tiny")
    y, x = np.mgrid[0:725, 0:1035] / 100
    waves = np.stack([np.sin(x + y), np.cos(1.3 * x), np.sin(0.7 * y - x)], -1)
    small = Image.fromarray((127 + 100 * waves).astype(np.uint8))
    large = small.resize((4140, 2900), Image.Resampling.BICUBIC)
    assert large.width * large.height > 12e6
    results = [attend(model, photo, rows="all")[0] for photo in (small, large)]
    torch.testing.assert_close(results[0].attention, results[1].attention, atol=2e-3, rtol=0.05)
    results[1] = results[1].__class__(
        **(vars(results[1]) | {"maps": results[0].maps, "patch_map": results[0].patch_map})
    )
    for draw in (heads_figure, blocks_figure, photo_figure, lambda one, **look: query_figure(one, (1, 2), **look)):
        few, many = (pixels_of(draw(result, crop=crop, scale="robust")) for result in results)
        assert few.shape == many.shape
        difference = np.abs(few - many)
        assert difference.mean() < 1.0
        assert np.quantile(difference, 0.99) < 12  # edges of the seen part lie between pixels
