"""Figures: complete, nothing cut off, and honest about their colours."""

import io
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.figures import overlay_figure, sheet
from attnhook.imaging.overlays import value_range

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8))
CAPTION = "vit_small_patch16, block 12 of 12, class token's row, mean over 6 heads; 3.1 % of the mass outside the patches, costs $5 and $6."


def drawn(figure):
    """Render, check that every text lies inside the figure, and return all of it."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    texts = [axes.title for axes in figure.axes]
    texts += [
        label for label in figure.findobj(Text) if label.axes is None and label.get_text() == figure.get_supxlabel()
    ]
    for axes in figure.axes:
        if axes.axison:
            low, high = axes.get_ylim()
            ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
            texts += [axes.yaxis.label, axes.yaxis.offsetText, *(label for at, label in ticks if low <= at <= high)]
    texts = [text for text in texts if text.get_text()]
    width, height = canvas.get_width_height()
    for text in texts:
        box = text.get_window_extent(canvas.get_renderer())
        assert min(box.x0, box.y0) >= -1, text.get_text()
        assert box.x1 <= width + 1, text.get_text()
        assert box.y1 <= height + 1, text.get_text()
    return " ".join(text.get_text() for text in texts).replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("shape", [(48, 80), (80, 48)])
def test_an_overlay_with_bar_and_caption(shape):
    photo = PHOTO.resize(shape[::-1])
    figure = overlay_figure(photo, torch.rand(shape) * 0.07, title="head 3", caption=CAPTION)
    text = drawn(figure)
    assert CAPTION.replace("$", r"\$") in text
    assert "head 3" in text
    assert "min-max of this image" in text
    assert len(figure.axes) == 2


def test_the_bar_shows_the_range_of_the_values():
    figure = overlay_figure(PHOTO, torch.rand(48, 80), scale=(0.25, 0.75))
    bar = figure.axes[1]
    assert "min-max" not in drawn(figure)
    assert bar.get_ylim() == (0.25, 0.75)


def test_uniform_bars_count_multiples():
    figure = overlay_figure(PHOTO, torch.full((48, 80), 1 / 49), scale="uniform", uniform=1 / 49)
    assert "multiples of 1/N" in drawn(figure)
    assert figure.axes[1].get_ylim() == (0, 8)


def test_a_flat_map_says_so_instead_of_a_bar():
    figure = overlay_figure(PHOTO, torch.full((48, 80), 0.25))
    assert "every value is 0.25" in drawn(figure)
    assert len(figure.axes) == 1


def test_a_sheet_of_heads_stretched_one_by_one():
    figure = sheet(PHOTO, torch.rand(6, 48, 80), [f"head {i}" for i in range(6)], caption=CAPTION)
    text = drawn(figure)
    assert "min-max per image, not comparable" in text
    assert all(f"head {i}" in text for i in range(6))
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 7
    assert pictures[0].get_title() == "photo"
    assert np.array_equal(pictures[0].images[0].get_array(), np.asarray(PHOTO))


@pytest.mark.parametrize("options", [{"scale": "uniform", "uniform": 1 / 49}, {"scale": (0.0, 0.5)}])
def test_a_shared_scale_has_one_bar(options):
    figure = sheet(PHOTO, list(torch.rand(4, 48, 80)), list("abcd"), columns=3, **options)
    assert "min-max" not in drawn(figure)
    assert len([axes for axes in figure.axes if axes.get_label() == "<colorbar>"]) == 1


def test_stretching_all_maps_together():
    maps = torch.rand(3, 48, 80) * torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1)
    figure = sheet(PHOTO, maps, list("abc"), scale=value_range(maps), photo_title=None)
    bar = next(axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    assert bar.get_ylim() == pytest.approx((maps.min().item(), maps.max().item()))
    assert len([axes for axes in figure.axes if axes.images]) == 3


@pytest.mark.parametrize("count", [1, 2, 5, 12, 13, 24])
def test_any_number_of_maps(count):
    figure = sheet(PHOTO, torch.rand(count, 48, 80), [f"block {i}" for i in range(count)], dpi=50)
    drawn(figure)
    assert len([axes for axes in figure.axes if axes.images]) == count + 1
    assert len(figure.axes) - count - 1 <= max(1, count // 3)  # few empty cells


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
