"""How captured attention looks in a notebook."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook import AttentionCapture, AttentionMaps, Readout, TokenLayout
from attnhook.capture.records import BlockAttention
from attnhook.options import Rows
from tests.models import GRID, TIMM, images

CASES = {case.name: case for case in TIMM}
CELL, STEP = 32, 35
LEFT, TOP = 62, 16  # room for the labels


def maps_of(name: str, rows: str) -> AttentionMaps:
    model = CASES[name].build()
    with torch.no_grad(), AttentionCapture(model, rows=rows) as capture:
        model(images())
    return capture.maps


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.mode == "L"
        return np.asarray(picture)


@pytest.mark.parametrize("rows", ["readout", "all"])
@pytest.mark.parametrize("name", ["vit", "vit_registers", "vit_avg", "vit_siglip", "vit_reg_gap"])
def test_the_brightest_patch_of_every_head_is_the_one_that_gets_most(name: str, rows: str) -> None:
    maps = maps_of(name, rows)
    blocks = [*maps]
    sheet = pixels(maps._repr_png_())
    zoom = CELL / GRID[1]
    assert sheet.shape == (TOP + len(blocks) * STEP - 3, LEFT + 4 * STEP - 3)
    for number, block in enumerate(blocks):
        layout = block.layout
        row = block.rows[:, :, 0]
        if rows == "all" and block.shape[2] > 1:
            row = block.rows[:, :, 0] if layout.cls == 0 else block.rows[:, :, layout.patch_tokens].mean(2)
        for head, expected in enumerate(layout.patches(row)[0]):
            y, x = divmod(int(expected.argmax()), GRID[1])
            cell = sheet[TOP + number * STEP :, LEFT + head * STEP :][: round(GRID[0] * zoom), :CELL]
            assert cell[int((y + 0.5) * zoom), int((x + 0.5) * zoom)] == cell.max() == 240


def test_the_table_names_blocks_shapes_tokens_and_kernels() -> None:
    maps = maps_of("vit", "readout")
    page = maps._repr_html_()
    assert page.count("<tr>") == 1 + len(maps)
    for words in ("blocks.0.attn", "blocks.1.attn", "2, 4, 1, 16", "1 class + 3x5 patch tokens", "2 blocks"):
        assert words in page
    (data,) = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert base64.b64decode(data) == maps._repr_png_()
    bundle = maps._repr_mimebundle_()
    assert bundle == {"text/plain": repr(maps), "text/html": page, "image/png": maps._repr_png_()}


def test_blocks_and_heads_are_labelled() -> None:
    """The labels differ in the digit alone: block 2's is that of another capture's block 2."""
    both, last = (
        pixels(AttentionMaps(maps, rows=Rows.CLS, readout=Readout(Rows.CLS, ""))._repr_png_())
        for maps in ([*maps_of("vit", "readout")], [*maps_of("vit", "readout")][1:])
    )
    first, second = both[TOP : TOP + STEP, :LEFT], both[TOP + STEP : TOP + 2 * STEP - 3, :LEFT]
    assert (first < 128).any()
    assert (first[: STEP - 3] != second[: STEP - 3]).any()
    assert (last[TOP : TOP + STEP - 3, :LEFT] == second[: STEP - 3]).all()
    for head in range(4):
        assert (both[:TOP, LEFT + head * STEP : LEFT + head * STEP + CELL] < 128).any()


def block(layout, count: int = 4, name: str = "<b>&") -> BlockAttention:
    return BlockAttention(name, "sdpa", torch.softmax(torch.rand(1, 2, 1, count), -1), layout)


def test_blocks_without_a_grid_are_in_the_table_and_in_no_picture() -> None:
    video = TokenLayout((1, 2), cls=None, frames=2)
    maps = AttentionMaps([block("the tokens are <words>."), block(video)], rows=Rows.CLS, readout=Readout(Rows.CLS, ""))
    assert maps._repr_png_() is None
    page = maps._repr_html_()
    assert "<img" not in page
    assert "the tokens are &lt;words&gt;." in page
    assert "&lt;b&gt;&amp;" in page
    assert "<b>" not in page
    assert set(maps._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_only_so_many_blocks_and_heads_are_drawn() -> None:
    many = BlockAttention("b", "sdpa", torch.softmax(torch.rand(1, 20, 1, 4), -1), TokenLayout((2, 2), cls=None))
    sheet = pixels(AttentionMaps([many] * 30, rows=Rows.MEAN, readout=Readout(Rows.MEAN, ""))._repr_png_())
    assert sheet.shape == (TOP + 24 * STEP - 3, LEFT + 16 * STEP - 3)


def test_dropped_patches_and_flat_maps_are_drawn_black() -> None:
    layout = TokenLayout((2, 2), cls=None, order=torch.tensor([[0, 1, 2]]))
    flat = BlockAttention("b", "sdpa", torch.full((1, 1, 1, 3), 1 / 3), layout)
    sheet = pixels(AttentionMaps([flat], rows=Rows.MEAN, readout=Readout(Rows.MEAN, ""))._repr_png_())
    assert (sheet[TOP + 16 :, LEFT + 16 :] == 0).all()
