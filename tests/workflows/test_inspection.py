"""What `describe` says."""

import pytest
from torch import nn

from attnhook import describe
from attnhook.errors import UnsupportedModelError
from tests.models import IMAGE, TIMM, images

VIT = next(case for case in TIMM if case.name == "vit_registers")


def test_static_description_runs_nothing():
    model = VIT.build()
    model.forward = None
    said = describe(model)
    assert (len(said.blocks), said.readout, said.grid, said.input_size) == (2, "cls", None, None)
    assert said.blocks[0].shape is None
    assert "read off each forward" in str(said)
    assert "1 class token, 4 register tokens, patches" in str(said)


def test_description_with_pixels():
    said = describe(VIT.build(), images(1))
    assert said.grid == (3, 5)
    assert said.input_size == IMAGE
    assert said.blocks[1].shape == (1, 4, 20, 20)
    lines = str(said).splitlines()
    assert "3 x 5 patches of a 24 x 40 px input" in str(said)
    assert lines[-1].split()[:2] == ["1", "blocks.1.attn"]
    assert lines[-1].endswith("1, 4, 20, 20")


def test_no_attention():
    with pytest.raises(UnsupportedModelError):
        describe(nn.Linear(2, 2))
