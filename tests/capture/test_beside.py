"""Blocks beside a model that is known, such as a decoder on a backbone of timm: captured where the user names them."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnhook import AttentionCapture, TokenLayout, describe, raw_attention, rollout
from attnhook.errors import NoReadoutError, TokenLayoutError, UnknownBlockError

WIDTH, QUERIES, GRID = 64, 5, (10, 10)


class Crossing(nn.Module):
    """Attention that somebody wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = (one.unflatten(-1, (4, -1)).transpose(1, 2) for one in (self.q(queries), self.k(tokens), tokens))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Detector(nn.Module):
    """A backbone of timm, a decoder of torch, and a last attention of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = timm.create_model("test_vit", num_classes=0)
        layer = nn.TransformerDecoderLayer(WIDTH, 4, WIDTH, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.last = Crossing()
        self.queries = nn.Parameter(torch.randn(1, QUERIES, WIDTH))

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.backbone.forward_features(pixels)
        return self.last(self.decoder(self.queries.expand(len(pixels), -1, -1), tokens), tokens)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Detector().eval()


PIXELS = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))
CROSS = "decoder.layers.1.multihead_attn"


def captured(model: nn.Module, **options):
    with torch.no_grad(), AttentionCapture(model, rows="all", **options) as capture:
        model(PIXELS)
    return capture.maps


def expected(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The decoder's last cross-attention, asked of torch itself, and the module's own, spelt out."""
    seen = {}
    hook = model.decoder.layers[1].multihead_attn.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(cross=(args, kwargs)), with_kwargs=True
    )
    other = model.last.register_forward_pre_hook(lambda _, args: seen.update(last=args))
    with torch.no_grad():
        model(PIXELS)
        hook.remove()
        other.remove()
        args, kwargs = seen["cross"]
        asked = kwargs | {"need_weights": True, "average_attn_weights": False}
        _, cross = model.decoder.layers[1].multihead_attn(*args, **asked)
        q, k = (
            linear(one).unflatten(-1, (4, -1)).transpose(1, 2)
            for linear, one in zip((model.last.q, model.last.k), seen["last"], strict=True)
        )
        return cross, (q @ k.mT / 4).softmax(-1)


def test_named_blocks_beside_the_backbone(model) -> None:
    maps = captured(model, blocks=["backbone.blocks.5.attn", CROSS, "last"])
    assert maps.block_names == ("backbone.blocks.5.attn", CROSS, "last")
    assert maps[0].number == (6, 6)
    assert maps[1].number is None
    for block, matrix in zip(maps[1:], expected(model), strict=True):
        assert block.shape == (2, 4, QUERIES, 101)
        torch.testing.assert_close(block.weights(), matrix, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps[0].weights(), captured(model)[-1].weights())


@pytest.mark.parametrize("blocks", ["last", ["last"]])
def test_one_alone(model, blocks) -> None:
    assert captured(model, blocks=blocks).block_names == ("last",)


def test_numbers_count_the_blocks_of_the_backbone(model) -> None:
    assert captured(model, blocks=[-1, "last"]).block_names == ("backbone.blocks.5.attn", "last")
    assert len(captured(model)) == 6


def test_the_layout_says_that_the_keys_are_the_patches(model) -> None:
    with pytest.raises(
        TokenLayoutError, match=r"expected a block of the model that attnhook knows.* pass layout=TokenLayout"
    ):
        raw_attention(captured(model, blocks="last"), row=0)
    maps = captured(model, blocks=["backbone.blocks.5.attn", "last"], layout=TokenLayout(GRID))
    _, matrix = expected(model)
    found = raw_attention(maps, block="last", heads=None, row=3)
    torch.testing.assert_close(found.values, matrix[:, :, 3, 1:].unflatten(-1, GRID), rtol=1e-4, atol=1e-6)
    assert "query 3 to patches, block last" in found.caption
    with pytest.raises(TokenLayoutError, match="rollout cannot pass through block 'last'"):
        rollout(maps)


def test_what_cannot_be_named(model) -> None:
    with pytest.raises(UnknownBlockError, match="unknown block 'nothing': expected one of 'backbone"):
        AttentionCapture(model, blocks=["last", "nothing"], rows="all")
    for rows in ("readout", [0], "mean"):
        with pytest.raises(NoReadoutError, match=r"block 'last' is outside the model.*: expected rows='all', got"):
            AttentionCapture(model, blocks=["last"], rows=rows)


def test_describe_lists_them(model) -> None:
    description = describe(model, PIXELS)
    assert [(part.name, part.num_modules) for part in description.not_captured] == [("decoder", 4), ("last", 1)]
    assert "not captured: decoder (4 attention modules), last (1 attention module); name modules with blocks=" in str(
        description
    )


def test_what_holds_known_blocks_is_not_beside_them(model) -> None:
    with pytest.raises(
        UnknownBlockError, match=r"unknown block 'backbone': expected one of 'backbone\.blocks\.0\.attn'"
    ):
        AttentionCapture(model, blocks=["backbone"], rows="all")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_text_tower_beside_a_vision_tower(implementation) -> None:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 99, "max_position_embeddings": 16},
        vision_config={**small, "image_size": 32, "patch_size": 8},
    )
    eager, model = (
        transformers.CLIPModel._from_config(copy.deepcopy(config), attn_implementation=one).eval()
        for one in ("eager", implementation)
    )
    model.load_state_dict(eager.state_dict())
    inputs = {"input_ids": torch.arange(7)[None] + 1, "pixel_values": torch.rand(1, 3, 32, 32)}
    name = "text_model.encoder.layers.1.self_attn"
    with torch.no_grad(), AttentionCapture(model, blocks=[name, 1], rows="all") as capture:
        model(**inputs)
        expected = eager.text_model(inputs["input_ids"], output_attentions=True).attentions[1]
    torch.testing.assert_close(capture.maps[name].weights(), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(TokenLayoutError, match="outside it"):
        raw_attention(capture.maps, block=name, row=0)
