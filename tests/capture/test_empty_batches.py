"""A batch without images: empty maps, and empty results of everything that reads them."""

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from attnhook import (
    AttentionCapture,
    TokenLayout,
    attention_statistics,
    gradient_attention,
    gradient_rollout,
    legrad,
    raw_attention,
    received_attention,
    rollout,
    value_weighted_attention,
)
from tests.models import GRID, IMAGE, TIMM, sharpen

CASES = {case.name: case for case in TIMM}
LAYOUT = TokenLayout(GRID, cls=None)


class Encoder(nn.Module):
    """`nn.TransformerEncoder` over patches, on its fast path in evaluation without autograd."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.patches, self.encoder = nn.Conv2d(3, 16, 8, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, pixels):
        return self.encoder(self.patches(pixels).flatten(2).mT).mean(1)


class Masked(nn.Module):
    """`nn.MultiheadAttention` with both of its masks."""

    def __init__(self, batch_first: bool):
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, 16, 8, 8), batch_first
        self.attention = nn.MultiheadAttention(16, 2, batch_first=batch_first)

    def forward(self, pixels):
        tokens = self.patches(pixels).flatten(2).mT
        batch, length = tokens.shape[:2]
        each = () if self.first else (2 * batch,)  # torch's own fast path cannot do both without an image
        seen = torch.zeros(*each, length, length, dtype=torch.bool)
        padding = torch.zeros(batch, length, dtype=torch.bool)
        padding[:, -1] = True
        tokens = tokens if self.first else tokens.transpose(0, 1)
        return self.attention(tokens, tokens, tokens, key_padding_mask=padding, attn_mask=seen)[0].sum(2)


BUILDS = {
    "torchvision": lambda: VisionTransformer(24, 8, 2, 4, 32, 48, num_classes=3),
    "timm": lambda: CASES["vit"].build(),
    "timm, unfused": lambda: CASES["vit"].build("eager"),
    "timm, pooling": lambda: CASES["vit_siglip"].build(),
    "encoder": Encoder,
    "masks": lambda: Masked(True),
    "masks, batch second": lambda: Masked(False),
}
SETTINGS = {kind: {"layout": LAYOUT} for kind in ("encoder", "masks", "masks, batch second")}


def empty_and_full(kind: str, count: int) -> torch.Tensor:
    return torch.rand(count, 3, *((24, 24) if kind == "torchvision" else IMAGE))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("rows", ["readout", "cls", "mean", "all", [1]])
@pytest.mark.parametrize("kind", BUILDS)
def test_maps_of_no_image_are_empty(kind: str, rows, grad: bool) -> None:
    if rows == "cls" and (kind in SETTINGS or kind == "timm, pooling"):
        return  # no class token
    model, maps = sharpen(BUILDS[kind]()), []
    capture = AttentionCapture(model, rows=rows, **SETTINGS.get(kind, {}))
    for count in (0, 2):
        with torch.set_grad_enabled(grad), capture:
            model(empty_and_full(kind, count))
        maps.append(capture.maps)
    empty, full = maps
    assert empty.block_names == full.block_names
    for none, two in zip(empty, full, strict=True):
        assert none.rows.shape == (0, *two.rows.shape[1:])
        assert none.token_layout == two.token_layout
    assert raw_attention(empty).values.shape == (0, *raw_attention(full).values.shape[1:])


@pytest.mark.parametrize("kind", BUILDS)
def test_everything_that_reads_maps_of_no_image_is_empty(kind: str) -> None:
    model, results = sharpen(BUILDS[kind]()), []
    for count in (0, 2):
        with AttentionCapture(model, gradients=True, **SETTINGS.get(kind, {})) as capture:
            model(empty_and_full(kind, count)).sum().backward()
        maps = capture.maps
        methods = [raw_attention, received_attention, gradient_attention, legrad]
        if kind != "timm, pooling":
            methods += [rollout, gradient_rollout]
        if kind != "timm, unfused":
            methods.append(value_weighted_attention)
        found = [method(maps) for method in methods]
        block = maps[0]
        found += [block.matrix.entropy(), block.matrix.column_sums(), block.gradient.dense(), block.weights()]
        found += [statistics.entropy for statistics in attention_statistics(maps)]
        results.append(found)
    for none, two in zip(*results, strict=True):
        assert none.shape == (0, *two.shape[1:])
