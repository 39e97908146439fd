"""Figures as a notebook stores them, and the sizes that styles stand for."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook import ImageGeometry, PatchMap
from attnhook.imaging.figures import overlay_figure, sheet, triptych

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1200, 3)).astype(np.uint8))
PHOTO = Image.new("RGB", (160, 120), "white")
PATCHES = PatchMap(torch.rand(6, 8), input_size=(96, 128), area=(96, 128), description="what was computed")
WHERE = ImageGeometry.identity((120, 160)).resize((96, 128))


def stored(figure):
    data, metadata = figure._repr_mimebundle_()
    (kind,) = set(data) - {"text/plain"}
    return data[kind], metadata[kind]


@pytest.mark.parametrize("count", [1, 3, 24])
def test_a_notebook_stores_at_most_300_kilobytes_that_fit_a_screen(count):
    """Of noise, which no codec makes small."""
    figure = sheet(NOISE, torch.rand(count, 900, 1200), [f"map {number}" for number in range(count)], caption="Noise.")
    content, shown = stored(figure)
    assert len(content) <= 300_000
    assert shown["width"] <= 900
    assert shown["height"] <= 650
    wide, tall = figure.get_size_inches()
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.width / picture.height == pytest.approx(wide / tall, rel=0.02)


def test_a_tower_fits_a_screen():
    content, shown = stored(triptych(Image.new("RGB", (90, 1200)), torch.rand(1200, 90)))
    assert shown["height"] <= 650
    assert content


@pytest.mark.parametrize(("style", "pixels"), [("paper", 2025), ("slides", 1920)])
def test_styles_have_a_width_and_no_caption(style, pixels):
    figure = PATCHES.figure(PHOTO, WHERE, style=style)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as picture:
        assert picture.width == pytest.approx(pixels, abs=2)
    assert not [text for text in figure.texts if "what was computed" in text.get_text()]


def test_text_is_larger_on_slides():
    """In relation to the figure's width; what is given as well wins."""
    share = {style: PATCHES.figure(PHOTO, WHERE, style=style).get_size_inches()[0] for style in ("paper", "slides")}
    assert share["paper"] > 1.3 * share["slides"]
    figure = PATCHES.figure(PHOTO, WHERE, style="paper", width=3.25, caption="Mine.")
    assert figure.get_size_inches()[0] == pytest.approx(3.25)
    assert [text.get_text() for text in figure.texts] == ["Mine."]


def test_a_style_of_overlays_is_none_of_figures():
    with pytest.raises(
        ValueError, match=r"unknown style of a figure: expected one of 'paper', 'slides', got 'contours'"
    ):
        PATCHES.figure(PHOTO, WHERE, style="contours")


def test_in_axes_a_figure_is_the_overlay_alone():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    PATCHES.figure(PHOTO, WHERE, ax=axes, style="paper")
    panels = [one for one in axes.child_axes if one.images]
    assert len(panels) == 1
    assert len([one for one in PATCHES.figure(PHOTO, WHERE).axes if one.images]) == 3
    alone = overlay_figure(PHOTO, PATCHES.heatmap(WHERE))
    assert (np.asarray(panels[0].images[0].get_array()) == np.asarray(alone.axes[0].images[0].get_array())).all()


@pytest.mark.parametrize(
    ("photo", "geometry", "words"),
    [
        ((480, 640), ImageGeometry.identity((480, 640)).resize((224, 224)), "whole photo"),
        ((480, 640), ImageGeometry.identity((480, 640)).resize(256).center_crop(224), "centre crop"),
        ((480, 640), ImageGeometry.identity((480, 640)).resize(224).crop((0, 0), (224, 224)), "crop"),
        ((333, 501), ImageGeometry.identity((333, 501)).resize(224).center_crop(224), "centre crop"),
        ((480, 640), ImageGeometry.identity((480, 640)).resize((168, 224)).pad(top=28, bottom=28), "whole photo"),
    ],
)
def test_captions_say_which_part_was_seen(photo, geometry, words):
    patches = PatchMap(torch.rand(14, 14), input_size=(224, 224), area=(224, 224), description="map")
    caption = " ".join(one.get_text() for one in patches.figure(Image.new("RGB", photo[::-1]), geometry).texts)
    assert caption.startswith(f"map, {words}. Colours from")
