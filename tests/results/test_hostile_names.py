"""Names of classes and modules come from configurations that others wrote: wherever they are shown, they are text."""

import io
import re

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from attnhook import AttentionCapture, TokenLayout, VisionModel, attend, describe, load

MARKUP = "<img src=x onerror=alert(1)></script>"
NAMES = (MARKUP, "\x1b]0;owned\x07", r"$\frac{$", "../../up", "a\nb", "\u202egnp.exe", "x" * 300, "7", "8", "9")
PHOTO = Image.radial_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def vision() -> VisionModel:
    digits = load("digits")
    return VisionModel(digits.model, digits.preprocessing, name=MARKUP, labels=NAMES)


@pytest.mark.parametrize("target", range(7))
def test_names_of_classes_are_text_everywhere(vision, target, tmp_path):
    (result,) = attend(vision, PHOTO, method="gradient_rollout", target=target)
    assert result.settings.target == NAMES[target]
    assert repr(NAMES[target]) in result.caption  # escapes, instead of what steers a terminal
    assert "\x1b" not in result.caption
    shown = result._repr_html_()
    assert MARKUP not in shown
    assert set(re.findall(r"<(\w+)", shown)) == {"figure", "img", "figcaption"}
    assert MARKUP not in result.to_html(name=MARKUP)
    result.figure().savefig(io.BytesIO(), format="svg")  # no formula
    result.save(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


class Odd(nn.Module):
    """A model whose attention module has a name that a configuration might give it."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(MARKUP.replace(".", ""), timm.create_model("test_vit").blocks[0].attn)

    def forward(self, tokens):
        return next(self.children())(tokens)


def test_names_of_modules_are_text_in_notebooks():
    model, layout = Odd().eval(), TokenLayout((2, 2))
    with torch.no_grad(), AttentionCapture(model, rows="all", layout=layout) as capture:
        model(torch.rand(1, 5, 64))
    shown = capture.maps._repr_html_()
    assert "onerror" in shown
    assert MARKUP not in shown
    assert "<img src=x" not in shown


def test_names_of_modules_are_text_in_descriptions():
    model = timm.create_model("test_vit")
    blocks = model.blocks
    model.blocks = nn.Sequential()
    for number, block in enumerate(blocks):
        model.blocks.add_module(f"{number}{MARKUP.replace('.', '')}", block)
    shown = describe(model)._repr_html_()
    assert "onerror" in shown
    assert MARKUP not in shown
