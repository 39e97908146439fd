"""Figures that tell heads apart, and results side by side, against pixels worked out in the tests."""

import copy
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest

from attnhook import (
    VisionModel,
    attend,
    blocks_heads_figure,
    dominant_heads_figure,
    head_masks_figure,
    photo_figure,
    raw_attention,
    results_figure,
    statistics_figure,
)
from attnhook.results.head_pictures import _colors_of
from tests.models import TIMM
from tests.results.test_pictures import pictures_of
from tests.results.test_results import PHOTO, prepare

COLORS = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)]  # of the first four heads


@pytest.fixture(scope="module")
def model():
    return VisionModel(next(case for case in TIMM if case.name == "vit").build(), prepare, name="tiny")


@pytest.fixture(scope="module")
def result(model):
    return attend(model, PHOTO, rows="all")[0]


def pickled(figure):
    return pickle.loads(pickle.dumps(figure))  # noqa: S301 (our own figure)


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_each_patch_has_the_colour_of_its_dominant_head(result):
    keys = result.maps[-1].shape[-1]
    rows = result.maps[-1].rows[0, :, 0, -15:].reshape(-1, 3, 5).numpy() * keys
    (picture,) = pictures_of(dominant_heads_figure(result, fade=0))
    ys, xs = result.patch_map.edges(result.geometry)
    painted = 0
    for row in range(3):
        for column in range(5):
            y, x = int((ys[row] + ys[row + 1]) / 2), int((xs[column] + xs[column + 1]) / 2)
            head = int(rows[:, row, column].argmax())
            opacity = 0.85 * np.clip(1.6 * np.log(rows[head, row, column]) / np.log(16), 0, 1)
            expected = np.asarray(PHOTO)[y, x] * (1 - opacity) + np.array(COLORS[head]) * opacity
            assert np.abs(picture[y, x] - expected).max() <= 3
            painted += opacity > 0
    assert painted


def test_the_panel_of_masks_is_each_heads_own_mask_and_map(result):
    figure = head_masks_figure(result, keep=0.4, smallest=2)
    assert titles(figure) == [f"head {head}" for head in range(4)]
    shown, heads = pictures_of(figure), raw_attention(result.maps, heads=None)[0]
    for number, head in enumerate(heads):
        mask = head.overlay(PHOTO, result.geometry, style="mask", keep=0.4, smallest=2)
        flat = head.overlay(PHOTO, result.geometry, mode="nearest", scale="uniform")
        assert np.array_equal(shown[number], mask)
        assert np.array_equal(shown[4 + number], flat)


def test_results_side_by_side_share_a_scale(model, result):
    other = attend(model, PHOTO.rotate(180))[0]
    figure = results_figure([result, other], ["one", "two"])
    assert titles(figure) == ["one", "two"]
    for shown, one in zip(pictures_of(figure), (result, other), strict=True):
        assert np.array_equal(shown, one.overlay(scale="uniform"))
    assert titles(results_figure([result, other])) == ["photo 1", "photo 2"]
    own = results_figure([result, other], scale="minmax")
    assert any("not comparable" in text.get_text() for text in own.texts)


def test_results_without_titles_for_each_are_refused(result):
    with pytest.raises(ValueError, match="a title for each, got 1 and 2 titles"):
        results_figure([result], ["a", "b"])
    with pytest.raises(ValueError, match="expected at least one"):
        results_figure([])
    with pytest.raises(TypeError, match="unknown option"):
        dominant_heads_figure(result, colormap="jet")


def test_more_heads_than_colours_never_share_one():
    counts = np.zeros(16, int)
    counts[[0, 3, 15]] = [5, 9, 1]
    named, others = _colors_of(counts)
    assert (list(named), others) == ([0, 3, 15], 0)
    assert len(set(named.values())) == 3
    named, others = _colors_of(np.arange(16, 0, -1))
    assert (list(named), others) == (list(range(12)), 4)
    assert len(set(named.values())) == 12
    assert _colors_of(np.zeros(6, int)) == ({}, 0)


def test_results_of_several_classes_are_all_in_the_caption(result):
    other = replace(result, patch_map=replace(result.patch_map, description="tiny: the same, for class 'dog'"))
    said = " ".join(text.get_text() for text in results_figure([result, other]).texts).replace("\n", " ")
    assert result.patch_map.description in said
    assert "for class 'dog'" in said


@pytest.mark.parametrize(
    "draw",
    [dominant_heads_figure, head_masks_figure, photo_figure, blocks_heads_figure, statistics_figure],
    ids=lambda draw: draw.__name__,
)
@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
def test_figures_can_be_pickled_and_copied(result, draw, copied):
    figure = draw(result)
    pictures = [io.BytesIO(), io.BytesIO()]
    for one, buffer in zip((figure, copied(figure)), pictures, strict=True):
        one.savefig(buffer, format="png")
    assert pictures[0].getvalue() == pictures[1].getvalue()


def test_classes_are_titles_with_their_scores(model):
    classes = [attend(model, PHOTO, method="gradient_rollout", target=target)[0] for target in (0, 1)]
    figure = results_figure(classes)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == [f"class {number}, score {one.settings.score:.3g}" for number, one in enumerate(classes)]
    said = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert said.count("gradient rollout, CLS to patches, blocks 1 to 2 of 2") == 1
