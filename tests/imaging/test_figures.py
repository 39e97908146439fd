"""Figures: complete, nothing cut off, and honest about their colours."""

import io
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.comparison_figures import curves_figure, photos_by_models
from attnhook.imaging.depth_figures import depth_figure, map_grid
from attnhook.imaging.drawing import overlay
from attnhook.imaging.figures import overlay_figure, sheet, triptych
from attnhook.imaging.overlays import colorize, value_range
from tests.imaging.expected import PLAIN, all_axes, bars, differs_little, drawn, painted, robust, said, shown, table

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8))
CAPTION = "vit_small_patch16, block 12 of 12, class token's row, mean over 6 heads; 3.1 % of the mass outside the patches, costs $5 and $6."


@pytest.mark.parametrize("shape", [(48, 80), (80, 48)])
def test_an_overlay_with_bar_and_caption(shape):
    photo = PHOTO.resize(shape[::-1])
    figure = overlay_figure(photo, torch.rand(shape) * 0.07, title="head 3", caption=CAPTION)
    text = drawn(figure)
    assert CAPTION.replace("$", r"\$") in text
    assert "head 3" in text
    assert "1st to 99th percentile" in text
    assert len(figure.axes) == 2
    assert figure.get_size_inches()[0] == pytest.approx(5.0)
    assert shown(figure)[0].get_window_extent().height / figure.dpi <= 8.0 + 1e-6


def test_the_bar_shows_the_range_of_the_values():
    figure = overlay_figure(PHOTO, torch.rand(48, 80), scale=(0.25, 0.75))
    (bar,) = bars(figure)
    assert "min-max" not in drawn(figure)
    assert bar.get_ylim() == (0.25, 0.75)


@pytest.mark.parametrize("factor", [1.0, 1e-5, 1e7])
def test_small_and_large_ranges_have_a_power_of_ten_in_the_label(factor):
    figure = overlay_figure(PHOTO, torch.rand(48, 80), scale=(0.25 * factor, 0.75 * factor), label="score")
    (bar,) = bars(figure)
    text = drawn(figure)
    assert bar.get_ylim() == pytest.approx((0.25, 0.75) if factor == 1 else (2.5, 7.5))
    assert bar.get_ylabel().split("\n") == ["score"] if factor == 1 else bar.get_ylabel().startswith("score, 10")
    assert ("10⁻⁶" in text, "10⁶" in text) == (factor == 1e-5, factor == 1e7)


def test_the_bar_shows_the_colours_as_they_appear():
    """Over white-grey paper: nothing at the lowest value, and the colormap at 85% from 1/1.6 of the way on."""
    for options, begin, alpha in (({}, 0.0, 0.85), ({"floor": 0.5, "alpha": 0.5}, 0.5, 0.5)):
        figure = overlay_figure(PHOTO, torch.rand(48, 80), scale=(0.0, 1.0), **options)
        share = np.arange(256) / 255
        opacity = (alpha * np.clip(1.6 * (share - begin) / (1 - begin), 0, 1))[:, None]
        expected = table("plasma") * opacity + 240 * (1 - opacity)
        shades = bars(figure)[0]._colorbar.cmap(np.arange(256))[:, :3] * 255
        assert np.abs(shades - expected).max() <= 0.5  # opacities are steps of 1/255
    plain = bars(overlay_figure(PHOTO, torch.rand(48, 80), alpha=1.0, **PLAIN))[0]._colorbar.cmap(np.arange(256))
    assert np.abs(plain[:, :3] * 255 - table("viridis")).max() <= 0.01


def test_uniform_bars_count_multiples():
    figure = overlay_figure(PHOTO, torch.full((48, 80), 1 / 49), scale="uniform", uniform=1 / 49)
    assert "multiples of 1/N" in drawn(figure)
    (bar,) = bars(figure)
    assert bar.get_ylim() == pytest.approx((1, 16))
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["1", "2", "4", "8", "16"]
    heights = [bar.transData.transform((0, times))[1] for times in (1, 2, 4, 8, 16)]
    assert np.diff(heights) == pytest.approx([np.diff(heights)[0]] * 4)  # logarithmic


def test_a_flat_map_says_so_instead_of_a_bar():
    figure = overlay_figure(PHOTO, torch.full((48, 80), 0.25))
    assert "every value is 0.25" in drawn(figure)
    assert len(figure.axes) == 1


def test_a_sheet_of_heads_stretched_one_by_one():
    maps = torch.rand(6, 48, 80)
    figure = sheet(PHOTO, maps, [f"head {i}" for i in range(6)], caption=CAPTION)
    text = drawn(figure)
    assert "1st to 99th percentile per map, not comparable" in text
    assert CAPTION.replace("$", r"\$") in text
    assert all(f"head {i}" in text for i in range(6))
    assert bars(figure) == []
    pictures = shown(figure)
    for axes, values in zip(pictures[1:], maps, strict=True):
        assert differs_little(axes.images[0].get_array(), painted(PHOTO, values, *robust([values])))
    assert "min-max per map, not comparable" in drawn(sheet(PHOTO, maps, list("abcdef"), scale="minmax"))
    assert len(pictures) == 7
    assert pictures[0].get_title() == "photo"
    assert np.array_equal(pictures[0].images[0].get_array(), np.asarray(PHOTO))


@pytest.mark.parametrize("options", [{"scale": "uniform", "uniform": 1 / 49}, {"scale": (0.0, 0.5)}])
def test_a_shared_scale_has_one_bar(options):
    figure = sheet(PHOTO, list(torch.rand(4, 48, 80)), list("abcd"), columns=3, **options)
    text = drawn(figure)
    assert "min-max" not in text
    assert "percentile" not in text
    assert len(bars(figure)) == 1


def test_stretching_all_maps_together():
    maps = torch.rand(3, 48, 80) * torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1)
    figure = sheet(PHOTO, maps, list("abc"), scale=value_range(maps), photo_title=None)
    (bar,) = bars(figure)
    assert bar.get_ylim() == pytest.approx((maps.min().item(), maps.max().item()))
    assert len(shown(figure)) == 3
    ends = maps.min().item(), maps.max().item(), maps.min().item()
    for axes, values in zip(shown(figure), maps, strict=True):
        assert differs_little(axes.images[0].get_array(), painted(PHOTO, values, *ends))


@pytest.mark.parametrize("count", [1, 2, 5, 12, 13, 24])
def test_any_number_of_maps(count):
    figure = sheet(PHOTO, torch.rand(count, 48, 80), [f"block {i}" for i in range(count)], dpi=50)
    drawn(figure)
    assert len(shown(figure)) == count + 1
    assert len(figure.axes) - count - 1 <= max(1, count // 3)  # few empty cells


LONG_NAME = "timm:vit_huge_patch14_clip_224.laion2b_ft_in12k_in1k_with_a_suffix_that_somebody_added_by_hand"


@pytest.mark.parametrize("shape", [(20, 400), (400, 20), (48, 80), (80, 48)])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_ribbons_and_towers_and_long_names(shape, count):
    photo = Image.new("RGB", shape[::-1], (90, 120, 60))
    maps = torch.rand(count, *shape) * 0.003
    options = {"caption": f"{LONG_NAME}, {CAPTION}", "dpi": 60, "label": "multiples of something long"}
    for scale in ("robust", (0.0, 0.001)):
        figures = [
            sheet(photo, maps, [f"{LONG_NAME} {number}" for number in range(count)], scale=scale, **options),
            overlay_figure(photo, maps[0], title=LONG_NAME, scale=scale, **options),
            triptych(photo, maps[0], scale=scale, **options),
        ]
        for figure in figures:
            drawn(figure)
            assert max(figure.get_size_inches()) < 25
            for axes in all_axes(figure):
                assert min(axes.get_window_extent().size) > 3  # nothing is squeezed to a line


def test_titles_do_not_overlap():
    figure = sheet(PHOTO, torch.rand(12, 48, 80), [f"block {number}, 12% outside the patches" for number in range(12)])
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    boxes += [axes.get_window_extent() for axes in shown(figure)]
    assert len(boxes) == 26
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            assert not one.padded(-1).overlaps(other.padded(-1))


def test_a_robust_scale_is_labelled_and_its_clipped_ends_have_arrows():
    values = torch.rand(48, 80)
    figure = overlay_figure(PHOTO, values, scale="robust")
    assert "(1st to 99th percentile)" in drawn(figure)
    (bar,) = bars(figure)
    assert bar.get_ylim() == pytest.approx(tuple(np.percentile(values, [1, 99])))
    assert extend_of(figure) == extend_of(overlay_figure(PHOTO, values)) == "both"
    assert extend_of(overlay_figure(PHOTO, values, scale="minmax")) == "neither"
    assert extend_of(overlay_figure(PHOTO, values, scale=(0.0, 0.5))) == "max"
    assert extend_of(overlay_figure(PHOTO, values, scale=(0.5, 1.0))) == "min"
    assert extend_of(overlay_figure(PHOTO, values, scale=value_range(values))) == "neither"
    uniform = {"scale": "uniform", "uniform": 1 / 49}
    assert extend_of(overlay_figure(PHOTO, values / 49, **uniform)) == "min"
    assert extend_of(overlay_figure(PHOTO, (1 + 14 * values) / 49, **uniform)) == "neither"
    assert extend_of(overlay_figure(PHOTO, (1 + 16 * values) / 49, **uniform)) == "max"
    assert extend_of(overlay_figure(PHOTO, 20 * values / 49, **uniform)) == "both"
    assert "1st to 99th percentile per map, not comparable" in drawn(
        sheet(PHOTO, [values] * 2, ["a", "b"], scale="robust")
    )
    assert "(1st to 99th percentile)" in drawn(triptych(PHOTO, values, scale="robust"))


def test_models_of_different_lengths_have_one_bar_of_multiples():
    values = 1 + torch.rand(48, 80) * 14
    settings = {"photo_names": ["photo"], "model_names": ["few", "many"], "scale": "uniform"}
    for factor, arrows in ((1, "neither"), (3, "max")):
        maps = [values / 49, values / 1370 * factor]
        for order in (slice(None), slice(None, None, -1)):
            figure = photos_by_models([PHOTO], [maps[order]], uniform=[[1 / 49, 1 / 1370][order]], **settings)
            assert extend_of(figure) == arrows
            assert "multiples of 1/N" in drawn(figure)
            for axes, one, uniform in zip(shown(figure)[1:], maps[order], [1 / 49, 1 / 1370][order], strict=True):
                expected = painted(PHOTO, one, uniform, 16 * uniform, uniform, logarithmic=True)
                assert differs_little(axes.images[0].get_array(), expected)


@pytest.mark.parametrize(("shape", "highest"), [((500, 50), 6), ((50, 500), 3)])
def test_photos_by_models_of_ribbons_and_towers(shape, highest):
    photo = PHOTO.resize(shape[::-1])
    figure = photos_by_models([photo], [[torch.rand(shape)]], photo_names=["photo"], model_names=["model"])
    drawn(figure)
    assert figure.get_size_inches()[1] < highest
    assert figure.axes[0].get_window_extent().height / figure.dpi > 0.3


def extend_of(figure):
    (bar,) = bars(figure)
    return bar._colorbar.extend


def test_photo_map_and_overlay():
    values = torch.rand(48, 80)
    values[:, :20] = float("nan")
    figure = triptych(PHOTO, values, caption=CAPTION, mark=(10, 30, 20, 40), dpi=60, alpha=1.0, **PLAIN)
    text = drawn(figure)
    assert all(title in text for title in ("photo", "map", "overlay"))
    photo, pure, over = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:3])
    assert (photo == np.asarray(PHOTO)).all()
    assert (pure[:, :20] == 240).all()
    assert (pure[:, 20:] == colorize(values)[:, 20:]).all()
    assert (over == np.asarray(overlay(PHOTO, values, alpha=1.0, **PLAIN))).all()
    assert (over[:, 20:] == pure[:, 20:]).all()
    assert (over[:, :20] == photo[:, :20]).all()
    assert all(len(axes.patches) == 2 for axes in figure.axes[:3])  # a light mark on a dark one
    assert "every value is 0.25" in drawn(triptych(PHOTO, torch.full((48, 80), 0.25)))
    default = triptych(PHOTO, values, dpi=60)
    pure, over = (np.asarray(axes.images[0].get_array()) for axes in default.axes[1:3])
    paper = Image.new("RGB", PHOTO.size, (240, 240, 240))  # the map alone: as over a photo, but on paper
    for picture, behind in ((pure, paper), (over, PHOTO)):
        assert (picture == np.asarray(overlay(behind, values))).all()
        assert differs_little(picture[:, 20:], painted(behind, values, *robust([values]))[:, 20:])
    with pytest.raises(GeometryError, match="expected three titles, got 2"):
        triptych(PHOTO, values, titles=("a", "b"))


@pytest.mark.parametrize("shape", [(12, 12, 14, 14), (24, 16, 7, 14), (2, 1, 14, 14), (3, 4, 2, 40), (3, 4, 40, 2)])
@pytest.mark.parametrize("photo", [PHOTO, None])
def test_a_grid_of_maps(shape, photo):
    maps = torch.rand(*shape)
    labels = {"row_labels": list(map(str, range(shape[0]))), "column_labels": list(map(str, range(shape[1])))}
    look = {"scale": "minmax", "alpha": 1.0, "colormap": "viridis"}
    figure = map_grid(maps, image=photo, caption=CAPTION, **labels, **look, dpi=60)
    drawn(figure)
    grid = next(axes for axes in all_axes(figure) if axes.get_xlabel() == "head")
    assert [label.get_text() for label in grid.get_yticklabels()] == labels["row_labels"]
    assert [label.get_text() for label in grid.get_xticklabels()] == labels["column_labels"]
    (bar,) = bars(figure)
    ends = bar.get_xlim() if bar._colorbar.orientation == "horizontal" else bar.get_ylim()
    assert ends == pytest.approx((maps.min().item(), maps.max().item()))
    bar_length, beside = max(bar.get_window_extent().size), max(grid.get_window_extent().size)
    assert bar_length > min(0.8 * beside, 2.6 * 60)  # that is enough
    hottest = np.unravel_index(int(maps.argmax()), shape)
    picture = np.asarray(grid.images[0].get_array())
    down, across = (picture.shape[axis] / shape[axis] for axis in (0, 1))
    inside = picture[
        int(hottest[0] * down) : int((hottest[0] + 1) * down), int(hottest[1] * across) : int((hottest[1] + 1) * across)
    ]
    assert (inside.reshape(-1, 3) == [253, 231, 37]).all(-1).any()


def test_statistics_over_depth():
    values = torch.rand(24, 16)
    values[3:, 12:] = float("nan")  # blocks of fewer heads
    figure = depth_figure(
        {"entropy (nats)": values, "one per block": [0.1] * 24}, references={"entropy (nats)": 1.2}, caption=CAPTION
    )
    assert "entropy (nats)" in " ".join(axes.get_title(loc="left") for axes in figure.axes)
    drawn(figure)
    mean = figure.axes[0].lines[16].get_ydata()
    assert mean == pytest.approx(np.nanmean(values.double().numpy(), axis=1))
    with pytest.raises(GeometryError, match=r"expected shape \(blocks, heads\)"):
        depth_figure({"a": torch.rand(2, 3, 4)})


def test_figures_inside_given_axes():
    host = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(host)
    cells = host.subplots(2, 2)
    assert overlay_figure(PHOTO, torch.rand(48, 80), caption=CAPTION, ax=cells[0, 0]) is host
    assert triptych(PHOTO, torch.rand(48, 80), ax=cells[0, 1]) is host
    assert sheet(PHOTO, torch.rand(5, 48, 80), list("abcde"), caption=CAPTION, ax=cells[1, 0]) is host
    depth_figure({"a": [1.0, 2.0], "b": [2.0, 1.0]}, ax=cells[1, 1])
    host.canvas.draw()
    assert tuple(host.get_size_inches()) == (12, 8)
    assert len(shown(host)) == 1 + 3 + 6
    assert said(host) == ""  # no caption in axes of somebody else's figure
    alone = Figure()
    FigureCanvasAgg(alone)
    by_hand = alone.add_axes((0, 0, 1, 1))
    with pytest.raises(ValueError, match=r"expected axes on a grid.*leave ax out"):
        depth_figure({"a": [1.0, 2.0], "b": [2.0, 1.0]}, ax=by_hand)
    assert sheet(PHOTO, torch.rand(5, 48, 80), list("abcde"), ax=by_hand) is alone  # pictures need no grid
    assert len(shown(alone)) == 6


def test_long_titles_are_wrapped():
    titles = ["vit_small_patch14_reg4_dinov2.lvd142m, block 11, mean over heads"] * 3
    assert drawn(sheet(PHOTO, torch.rand(3, 48, 80), titles)).count("over heads") == 3
    drawn(overlay_figure(PHOTO, torch.rand(48, 80), title=" ".join(titles)))


def test_figures_can_be_saved_and_leave_pyplot_alone():
    for kind in ("png", "pdf", "svg"):
        buffer = io.BytesIO()
        overlay_figure(PHOTO, torch.rand(48, 80), caption=CAPTION).savefig(buffer, format=kind)
        assert buffer.tell() > 1000
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_errors():
    with pytest.raises(GeometryError, match=r"got 2 titles and 3 maps"):
        sheet(PHOTO, torch.rand(3, 48, 80), ["a", "b"])
    with pytest.raises(GeometryError, match=r"got 0 titles and 0 maps"):
        sheet(PHOTO, [], [])
    with pytest.raises(ValueError, match=r"columns=0"):
        sheet(PHOTO, torch.rand(1, 48, 80), ["a"], columns=0)
    with pytest.raises(GeometryError, match=r"\(48, 80\), got \(14, 14\)"):
        overlay_figure(PHOTO, torch.rand(14, 14))


@pytest.mark.parametrize("kind", ["depth", "curves"])
def test_the_highest_marker_lies_below_the_axis_top(kind):
    values = [0.41, 0.44, 0.45]
    figure = (
        depth_figure({"a": values})
        if kind == "depth"
        else curves_figure({"a": {"model": ([0.3, 0.6, 1.0], values)}}, horizontal="depth")
    )
    low, high = figure.axes[0].get_ylim()
    assert low == 0
    assert max(values) * 1.05 < high < max(values) * 1.15
