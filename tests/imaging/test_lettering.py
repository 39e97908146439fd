"""Colour bars and labels that Pillow draws: the bar has the picture's own colours, and the words have room."""

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook.imaging.lettering import labelled, with_color_bar
from attnhook.imaging.looks import Look
from attnhook.imaging.overlays import PAPER, blend
from attnhook.imaging.panels import color_bar

HEIGHT, WIDTH = 60, 320


def drawn(values: torch.Tensor, look: Look, label: str = "attention") -> np.ndarray:
    """A map over white paper with its bar."""
    picture = blend(Image.new("RGB", (values.shape[1], values.shape[0]), PAPER), values, look)
    return np.asarray(with_color_bar(picture, *color_bar([values], look, label))).astype(int)


@pytest.mark.parametrize("scale", ["uniform", "minmax", (2.0, 6.0)])
def test_the_bar_has_the_colours_that_its_values_have_in_the_picture(scale) -> None:
    share = torch.linspace(0, 1, WIDTH)
    uniform = 1 / 200 if scale == "uniform" else None
    ramp = (
        uniform * 16**share if uniform else 2 + 4 * share
    )  # from the value at the bar's left end to the one at its right end
    found = drawn(ramp.expand(HEIGHT, WIDTH), Look(scale=scale, uniform=uniform))
    strip = found[HEIGHT + 5]
    assert np.abs(strip - found[10]).max() <= 6  # the bar has 256 colours
    assert np.abs(strip - found[10]).mean() < 1.5
    below = found[HEIGHT + 14 :]
    dark = np.argwhere(below.sum(axis=-1) < 200)
    assert (dark[:, 1].min(), WIDTH - dark[:, 1].max()) < (20, 20)  # numbers under both ends
    assert below.shape[0] < 40


def test_the_numbers_are_those_of_the_ends() -> None:
    values = torch.linspace(2, 6, WIDTH).expand(HEIGHT, WIDTH)
    first = drawn(values, Look(scale="minmax"))
    assert np.array_equal(first, drawn(values, Look(scale="minmax")))
    other = drawn(values + torch.linspace(0, 1, WIDTH), Look(scale="minmax"))  # 2 to 7
    changed = np.argwhere(np.abs(first - other).max(axis=-1)[HEIGHT + 14 :])[:, 1]
    assert changed.size
    assert not ((changed < WIDTH / 3) | ((changed > 0.6 * WIDTH) & (changed < 0.9 * WIDTH))).any()  # not the left one


@pytest.mark.parametrize("width", [8, 60, 1000])
def test_words_have_room_under_a_picture_of_any_width(width: int) -> None:
    values = torch.rand(HEIGHT, width, generator=torch.Generator().manual_seed(0))
    found = drawn(values, Look(scale="uniform", uniform=0.1), "value-weighted attention")
    assert found.shape[1] >= width
    words = found[HEIGHT + round(max(11, width / 28) * 1.1) :]  # below the strip
    assert (np.concatenate([words[:, 0], words[:, -1], words[-1]]) == 255).all()  # nothing is cut off


def test_a_flat_map_says_its_value() -> None:
    flat = torch.full((HEIGHT, WIDTH), 0.25)
    bar, note = color_bar([flat], Look(scale="minmax"), "attention")
    assert bar is None
    found = np.asarray(with_color_bar(Image.new("RGB", (WIDTH, HEIGHT)), bar, note))[HEIGHT:]
    assert 10 < found.shape[0] < 40
    assert (found.sum(axis=-1) < 200).sum() > 50


def test_a_label_leaves_the_rest_of_the_picture_alone() -> None:
    photo = Image.new("RGB", (WIDTH, HEIGHT), (90, 120, 30))
    found = np.asarray(labelled(photo, "frame 1 of 2"))
    changed = np.argwhere((found != photo.getpixel((0, 0))).any(axis=-1))
    assert changed.max(axis=0)[0] < 24
    assert changed.max(axis=0)[1] < 120
    assert photo.getcolors() == [(WIDTH * HEIGHT, (90, 120, 30))]
