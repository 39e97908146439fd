"""Figures of a result: what they show is what was captured, and captions say what."""

import base64
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from attnhook import (
    METHODS,
    AttentionMaps,
    AttentionResult,
    BlockAttention,
    VisionModel,
    attend,
    blocks_figure,
    blocks_heads_figure,
    heads_figure,
    methods_figure,
    photo_figure,
    query_figure,
    raw_attention,
    statistics_figure,
)
from attnhook.errors import RowsNotKeptError, UnknownBlockError
from attnhook.imaging.drawing import overlay
from attnhook.imaging.looks import Look, scale_in_words, share_in_words
from attnhook.options import Rows
from tests.imaging.expected import all_axes, differs_little, painted, robust, said, shown
from tests.models import TIMM
from tests.results.test_results import PHOTO, prepare


@pytest.fixture(scope="module")
def model():
    case = next(case for case in TIMM if case.name == "vit")
    return VisionModel(case.build(), prepare, name="tiny")


@pytest.fixture(scope="module")
def result(model):
    return attend(model, PHOTO, rows="all")[0]


def text_of(figure):
    figure.canvas.draw()
    titles = [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes]
    labels = [label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel()) if label]
    return " ".join(titles).replace("\n", " "), " ".join(labels).replace("\n", " "), said(figure)


def pictures_of(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in shown(figure)]


def outside(patch_map):
    return f"{share_in_words(1 - float(patch_map.sum()))} outside"


WORDS = {
    "minmax": "Colours from the minimum to the maximum of this picture; opacity from 0 at the median to 85%.",
    "robust": "Colours from the 1st to the 99th percentile of this picture, values beyond take the end colours; "
    "opacity from 0 at the median to 85%.",
    "uniform": "Colours from 1 to 16 times uniform attention (1/N), logarithmic; opacity from 0 at 1/N to 85%.",
    (0.0, 0.1): "Colours from 0 to 0.1; opacity from 0 at the lowest to 85%.",
}


@pytest.mark.parametrize("scale", list(WORDS))
def test_every_caption_says_model_block_heads_readout_scale_and_mass(result, scale):
    share = share_in_words(result.outside)
    for figure in (result.figure(scale=scale), photo_figure(result, scale=scale)):
        _, labels, caption = text_of(figure)
        for part in (
            "tiny",
            "CLS to patches, block 2 of 2, mean of 4 heads, centre crop",
            f"{share} of the attention outside the patches",
        ):
            assert part in caption
        assert caption.endswith(WORDS[scale])
        assert "attention" in labels


@pytest.mark.parametrize(
    "draw",
    [
        photo_figure,
        heads_figure,
        blocks_figure,
        blocks_heads_figure,
        methods_figure,
        lambda result, **options: query_figure(result, (2, 4), **options),
        lambda result, **options: query_figure(result, [(0, 0), (2, 4)], **options),
        AttentionResult.overlay,
        AttentionResult.figure,
        lambda result, **options: overlay(PHOTO, result.patch_map, result.geometry, **options),
        lambda result, **options: overlay(PHOTO, result.heatmap, **options),
    ],
)
def test_an_unknown_option_is_refused_with_the_legal_ones(result, draw):
    words = r"unknown option: expected one of alpha, .*colormap, .*scale.*, got 'cmap'\. Did you mean 'colormap'\?"
    with pytest.raises(TypeError, match=words):
        draw(result, cmap="jet")


def test_heads(result):
    titles, labels, caption = text_of(heads_figure(result))
    maps = raw_attention(result.maps, heads=None).values[0]
    for head, one in enumerate(maps):
        assert f"head {head}, {outside(one)}" in titles
    for part in (
        "tiny",
        "raw attention, CLS to patches, block 2 of 2, each of 4 heads, centre crop",
        "tokens that are not patches",
        "Colours from 1 to 16 times uniform attention (1/N), logarithmic; opacity from 0 at 1/N to 85%.",
    ):
        assert part in caption
    assert "multiples of 1/N" in labels
    pixels = result.upsample(maps)
    expected = [overlay(PHOTO, one, scale="uniform", uniform=1 / 16) for one in pixels]
    for panel, wanted, values in zip(pictures_of(heads_figure(result))[1:], expected, pixels, strict=True):
        assert (panel == np.asarray(wanted)).all()
        formula = painted(PHOTO, values, 1 / 16, 1.0, 1 / 16, logarithmic=True)
        assert differs_little(panel, formula, where=~np.isnan(np.asarray(values)))
    together = robust(pixels)
    for panel, values in zip(pictures_of(heads_figure(result, scale="robust", fade=0))[1:], pixels, strict=True):
        assert differs_little(panel, painted(PHOTO, values, *together))
    assert "block 1 of 2" in text_of(heads_figure(result, block=0))[2]
    assert "99th percentile of all panels" in text_of(heads_figure(result, scale="robust"))[2]


@pytest.mark.parametrize("heads", ["mean", "max", 1])
def test_blocks(result, heads):
    titles, _, caption = text_of(blocks_figure(result, heads=heads))
    for block in range(2):
        one = raw_attention(result.maps, block=block, heads=heads).values[0]
        assert f"block {block + 1} of 2" in titles
        assert (f"block {block + 1} of 2, {outside(one)}" in titles) == (heads != "max")  # a maximum is no share
    assert ("head 1" if heads == 1 else f"{heads} of 4 heads") in caption
    assert ("tokens that are not patches" in caption) == (heads != "max")


def test_blocks_by_heads_show_the_seen_part_of_the_photo(result):
    figure = blocks_heads_figure(result)
    corner = pictures_of(figure)[0]
    assert (corner == np.asarray(PHOTO)[:, 10:90]).all()
    grid = next(axes for axes in all_axes(figure) if axes.get_ylabel() == "block")
    assert [label.get_text() for label in grid.get_yticklabels()] == ["1", "2"]
    assert "of it outside the patches. Colours from 1 to 16 times" in text_of(figure)[2]


def test_methods_name_what_they_are_of(result):
    titles, _, caption = text_of(methods_figure(result))
    assert "raw attention " + outside(result.attention) in titles
    assert "rollout" in titles
    assert "raw_attention, received_attention: block 2 of 2; the others: all 2 blocks captured" in caption
    assert "Not from this capture: value_weighted_attention, gradient_attention, gradient_rollout, legrad." in caption
    assert "1st to 99th percentile per map, not comparable" in caption
    with pytest.raises(RowsNotKeptError):
        methods_figure(attend_rows(result), ["rollout"])
    with pytest.raises(
        ValueError, match=r"unknown method: expected one of 'raw_attention', .*got 'grad_cam'. Check the spelling"
    ):
        methods_figure(result, ["grad_cam"])
    one = text_of(methods_figure(result, "rollout"))[0]
    assert "rollout" in one
    assert "raw attention" not in one


def attend_rows(result):
    rows = [BlockAttention(one.name, one.kernel, one.weights()[:, :, :1], one.layout) for one in result.maps]
    maps = AttentionMaps(rows, rows=Rows.CLS, readout=result.maps.readout, input_size=result.maps.input_size)
    return replace(result, maps=maps)


def test_all_methods_from_a_capture_with_gradients(model):
    (one,) = attend(model, PHOTO, method="gradient_rollout")
    titles = text_of(methods_figure(one))[0]
    shown = [name for name in METHODS if name.replace("_", " ") in titles]
    assert set(shown) >= set(METHODS) - {"value_weighted_attention"}
    label = text_of(one.figure())[1]
    assert label.strip().startswith("gradient rollout")
    assert "outside" not in text_of(one.figure())[2]


def test_queries(result):
    row = result.maps[-1].weights()[0, :, 1 + 2 * 5 + 4].mean(0)[1:]
    titles, labels, caption = text_of(query_figure(result, (2, 4)))
    assert (
        "tiny: raw attention, marked patch to patches, block 2 of 2, mean of 4 heads, centre crop; "
        f"{outside(row).removesuffix(' outside')} of the attention outside the patches. Colours" in caption
    )
    assert "attention (1st to 99th percentile)" in labels
    several = query_figure(result, [(0, 0), (2, 4)], scale="uniform")
    titles, labels, caption = text_of(several)
    assert f"row 2, column 4 {outside(row)}" in titles
    assert "multiples of 1/N" in labels
    marked = [axes for axes in several.axes if axes.patches and axes.images]
    assert len(marked) == 2
    (box,) = {patch.get_bbox().bounds for patch in marked[1].patches}  # PHOTO is seen from column 10 on, halved
    assert box == pytest.approx((10 + 4 * 16 - 0.5, 2 * 16 - 0.5, 16, 16))
    assert "outside" not in text_of(query_figure(result, (2, 4), heads="min"))[2]


def test_statistics(result):
    titles, _, caption = text_of(statistics_figure(result))
    for part in ("entropy (nats)", "attention distance (patches)", "largest sink (share)"):
        assert part in titles
    assert "tiny: all queries; dots are heads, lines are their means" in caption
    matrix = result.maps[0].weights()[0].double()
    entropy = -(matrix * matrix.log()).sum(-1).mean(-1)
    dots = [line.get_ydata()[0] for line in statistics_figure(result).axes[0].lines[:4]]
    assert dots == pytest.approx(entropy.tolist(), abs=1e-4)
    sinks = [line.get_ydata()[0] for line in statistics_figure(result).axes[2].lines[:4]]
    assert sinks == pytest.approx(matrix.mean(1).amax(-1).tolist(), abs=1e-5)
    titles, _, caption = text_of(statistics_figure(attend_rows(result)))
    assert "distance" not in titles
    assert "tiny: query CLS; dots" in caption


def test_a_minimum_over_heads_is_no_share(model):
    (least,) = attend(model, PHOTO, heads="min")
    assert math.isnan(least.outside)
    assert "outside" not in least.caption


def test_a_scale_in_words():
    ranges = {
        "minmax": "Colours from the minimum to the maximum of all panels; opacity from 0 at the median",
        "robust": "Colours from the 1st to the 99th percentile of all panels, values beyond take the end colours; opacity from 0 at the median",
        "uniform": "Colours from 1 to 16 times uniform attention (1/N), logarithmic; opacity from 0 at 1/N",
        (0.125, 0.5): "Colours from 0.125 to 0.5; opacity from 0 at the lowest",
    }
    for scale, words in ranges.items():
        assert scale_in_words(Look(scale=scale, alpha=0.7), "all panels") == f"{words} to 70%."
        start = words.split(";")[0]
        assert scale_in_words(Look(scale=scale, weighted=False), "all panels") == f"{start}; opacity 85%."
    for scale in ((0.0, 1.0), "minmax", "robust"):
        assert scale_in_words(Look(scale=scale, floor=0.25)).endswith("opacity from 0 at 0.25 to 85%.")
    assert "at 1/N" in scale_in_words(Look(scale="uniform", floor=0.25))  # which has no other floor
    assert scale_in_words(Look()) == WORDS["robust"]


def test_shares():
    shares = [0.0, -1e-8, 0.0002, 0.004, 0.07, 0.993, 0.998, 1.0]
    assert [share_in_words(share) for share in shares] == ["0%", "0%", "<0.1%", "0.4%", "7%", "99%", "99.8%", "100%"]


def test_notebooks_get_pictures_of_a_sensible_size(model):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (960, 2000, 3), np.uint8))
    (large,) = attend(model, noise.resize((100, 48)).resize((2000, 960)))
    bundle = large._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "image/png"}
    with Image.open(io.BytesIO(bundle["image/png"])) as picture:
        assert picture.size == (640, 307)
    page = large._repr_html_()
    assert len(page) < 200_000
    data = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (640, 307)
    assert large.caption.replace("<", "&lt;") in page


def test_captions_in_a_notebook_are_text(model):
    named = VisionModel(model.model, prepare, name="<img src=x onerror=alert(1)>")
    page = attend(named, PHOTO)[0]._repr_html_()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_captured_maps_in_a_notebook(result):
    page = result.maps._repr_html_()
    assert "blocks.1.attn" in page
    assert len(page) < 100_000


def test_chosen_blocks(model):
    (result,) = attend(model, PHOTO, rows="all")
    first = text_of(blocks_figure(result, blocks=[0]))[0]
    assert "block 1 of 2" in first
    assert "block 2 of 2" not in first
    assert "block 1 of 2" not in text_of(blocks_figure(result, blocks=1))[0]  # the last one, as in AttentionCapture
    named = blocks_heads_figure(result, blocks="blocks.1.attn")
    rows = [label.get_text() for axes in named.axes for inner in axes.child_axes for label in inner.get_yticklabels()]
    assert rows == ["2"]
    both, one = (statistics_figure(result, **options).axes[0].lines for options in ({}, {"blocks": [1]}))
    assert [line.get_ydata()[-1] for line in one] == [line.get_ydata()[-1] for line in both][: len(one)]
    assert all(len(line.get_ydata()) == 1 for line in one[:4])
    with pytest.raises(UnknownBlockError, match="unknown block 7"):
        blocks_figure(result, blocks=[7])


@pytest.mark.parametrize("style", ["paper", "slides"])
def test_every_figure_has_styles(model, style):
    (result,) = attend(model, PHOTO, rows="all")
    widths = {"paper": 6.75, "slides": 5.0}
    for draw in (
        photo_figure,
        heads_figure,
        blocks_figure,
        blocks_heads_figure,
        methods_figure,
        statistics_figure,
        lambda result, **options: query_figure(result, [(0, 0), (2, 4)], **options),
    ):
        figure = draw(result, style=style)
        assert figure.get_size_inches()[0] == pytest.approx(widths[style], rel=0.02)
        assert "tiny" not in text_of(figure)[2]
