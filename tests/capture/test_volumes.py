"""3-D ViTs: a map has a grid for each step along the depth, by `frames=` or by an adapter's `Conv3d`."""

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attnhook import (
    AttentionCapture,
    AttentionSite,
    ImageGeometry,
    ModelAnatomy,
    TokenLayout,
    describe,
    raw_attention,
    register_adapter,
)
from attnhook.capture.anatomy import Readout
from attnhook.errors import TokenLayoutError

DEPTH, GRID = 4, (3, 5)
BOX = (4, 8, 8)


class VolumeTransformer(nn.Module):
    """Boxes of a volume, one attention; the class token is optional."""

    def __init__(self, cls: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.boxes = nn.Conv3d(1, 32, BOX, BOX)
        self.cls = nn.Parameter(torch.randn(1, 1, 32)) if cls else None
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def tokens(self, volume: Tensor) -> Tensor:
        boxes = self.boxes(volume).flatten(2).transpose(1, 2)
        return boxes if self.cls is None else torch.cat([self.cls.expand(len(boxes), -1, -1), boxes], dim=1)

    def forward(self, volume: Tensor) -> Tensor:
        tokens = self.tokens(volume)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


class KnownVolumeTransformer(VolumeTransformer):
    """The same, with an adapter."""


register_adapter(
    KnownVolumeTransformer,
    lambda model: ModelAnatomy(
        sites=(AttentionSite("attention", model.attention),),
        cls=0,
        readout=Readout("cls", "the first token"),
        image_module=model.boxes,
        grid_module=model.boxes,
    ),
)


def volumes(depth: int = DEPTH) -> Tensor:
    size = (depth * BOX[0], GRID[0] * BOX[1], GRID[1] * BOX[2])
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))


def expected(model: VolumeTransformer, volume: Tensor) -> Tensor:
    """What the module itself returns: `(batch, queries, keys)`, the mean over heads."""
    with torch.no_grad():
        tokens = model.tokens(volume)
        return model.attention(tokens, tokens, tokens)[1]


@pytest.mark.parametrize("cls", [True, False])
def test_the_layout_s_frames_are_the_depth(cls: bool) -> None:
    model, volume = VolumeTransformer(cls).eval(), volumes()
    layout = TokenLayout(GRID, cls=0 if cls else None, frames=DEPTH)
    with torch.no_grad(), AttentionCapture(model, layout=layout) as capture:
        model(volume)
    found, matrix = raw_attention(capture.maps), expected(model, volume)
    row = matrix[:, 0, 1:] if cls else matrix.mean(1)
    torch.testing.assert_close(found.values, row.reshape(2, DEPTH, *GRID), rtol=1e-4, atol=1e-6)
    picture = Image.new("RGB", (GRID[1] * BOX[2], GRID[0] * BOX[1]))
    assert found[0][2].overlay(picture, ImageGeometry.identity((picture.height, picture.width))).size == picture.size


@pytest.mark.parametrize("depth", [2, 4])
def test_an_adapter_reads_the_depth_off_each_forward(depth: int) -> None:
    model, volume = KnownVolumeTransformer().eval(), volumes(depth)
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(volume)
    found = raw_attention(capture.maps)
    torch.testing.assert_close(
        found.values, expected(model, volume)[:, 0, 1:].reshape(2, depth, *GRID), rtol=1e-4, atol=1e-6
    )
    assert f"{depth} frames of 3 x 5 patches of a 24 x 40 px input" in str(describe(model, volume))


def test_a_depth_that_does_not_fit_is_refused() -> None:
    model = VolumeTransformer().eval()
    with torch.no_grad(), AttentionCapture(model, layout=TokenLayout(GRID, frames=3)) as capture:
        model(volumes())
    with pytest.raises(TokenLayoutError, match=r"expected 46 = 1 class \+ 3x3x5 patch tokens, got 61"):
        raw_attention(capture.maps)
