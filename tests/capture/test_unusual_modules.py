"""Modules that are built in unusual ways: exact rows, or an error; and an output that no capture changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right

from attnhook import AttentionCapture, TokenLayout, raw_attention
from attnhook.errors import (
    AttnhookError,
    BlockNotCapturedError,
    NothingCapturedError,
    TokenLayoutError,
    UnsupportedModelError,
)
from tests.capture.test_neighbours import capture_of
from tests.models import images

LAYOUT = TokenLayout((2, 2))


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def encode(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x

    def forward(self, x):
        return self.encode(x)


class SelfAttention(nn.Module):
    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Positions(nn.MultiheadAttention):
    """Changes what it passes on."""

    def forward(self, query, key, value, **more):
        positions = torch.linspace(-2, 2, query.shape[1])[:, None]
        return super().forward(query + positions, key - positions, value, **more)


def spelled_out(attention: nn.MultiheadAttention, query, key):
    query, key = (
        F.linear(x.double(), w.double(), b.double()).unflatten(-1, (4, 4)).transpose(1, 2)
        for x, w, b in zip(
            (query, key), attention.in_proj_weight.chunk(3)[:2], attention.in_proj_bias.chunk(3)[:2], strict=True
        )
    )
    return torch.softmax(query @ key.mT / 2, dim=-1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("rows", ["cls", "all"])
def test_multihead_attention_with_a_forward_of_its_own_is_read_from_what_it_passes_on(rows: str, mode) -> None:
    torch.manual_seed(0)
    model, x = Model(SelfAttention(Positions(16, 4, batch_first=True))).eval(), tokens()
    attention = model.blocks[0].attention
    with mode():
        bare = model(x)
        with AttentionCapture(model, rows=rows, layout=LAYOUT) as capture:
            assert torch.equal(model(x), bare)
    positions = torch.linspace(-2, 2, 5)[:, None]
    expected = spelled_out(attention, x + positions, x - positions)
    kept = capture.maps[0].rows.double()
    torch.testing.assert_close(kept, expected[:, :, : kept.shape[2]], atol=1e-6, rtol=0)


def test_a_row_of_cross_attention_is_not_taken_for_the_class_token_but_all_rows_are_kept() -> None:
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x[:, :3], x, x, need_weights=False)[0].mean(1, keepdim=True)

    model = Model(Decoder()).eval()
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(tokens())
    with pytest.raises(TokenLayoutError, match="3 queries over 5 keys"):
        _ = capture.maps
    x = tokens()
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT, rows="all") as capture:
        model(x)
    expected = spelled_out(model.blocks[0].attention, x[:, :3], x)
    torch.testing.assert_close(capture.maps[0].rows.double(), expected, atol=1e-6, rtol=0)


def two_blocks() -> Model:
    torch.manual_seed(0)
    return Model(*(SelfAttention(nn.MultiheadAttention(16, 4, batch_first=True)) for _ in range(2))).eval()


def test_two_forwards_past_the_root_are_not_one() -> None:
    model = two_blocks()
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model.encode(tokens(1))
        model.encode(tokens(2))
        with pytest.raises(BlockNotCapturedError, match="Call the model itself, or read the maps"):
            _ = capture.maps
        capture.clear()
        model.encode(tokens(2))
        assert len(capture.maps) == 2


def test_heads_in_the_batch_are_not_images() -> None:
    class Merged(nn.Module):
        def forward(self, x):
            q = x.unflatten(-1, (4, 4)).transpose(1, 2).flatten(0, 1)
            return F.scaled_dot_product_attention(q, q, q).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)

    model = Model(Merged())
    with torch.no_grad(), AttentionCapture(model, rows="all", layout=LAYOUT) as capture:
        model(tokens())
    with pytest.raises(UnsupportedModelError, match=r"8 sequences for 2 images.*Arrangement\.MERGED"):
        _ = capture.maps


@pytest.mark.parametrize("parts", [([5, 1, 6, 0, 3],), ([0, 1, 2, 3], [4, 5, 6, 7])], ids=["some", "halves"])
@pytest.mark.parametrize("rows", ["cls", "all"])
def test_a_block_that_attends_for_a_part_of_the_batch_makes_no_maps_of_other_images(parts, rows: str) -> None:
    """As DINOv2's own code does in train mode."""

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = SelfAttention(nn.MultiheadAttention(16, 4, batch_first=True))

        def forward(self, x):
            for part in parts if self.training else [range(len(x))]:
                x = x.index_add(0, torch.tensor(part), self.attention(x[list(part)]))
            return x

    model = nn.Sequential(nn.Flatten(2), Parts())
    images = torch.randn(8, 5, 4, 4)
    for mode in (True, False):
        with torch.no_grad(), AttentionCapture(model.train(mode), rows=rows, layout=LAYOUT) as capture:
            model(images)
        if mode:
            assert capture.maps[0].captured.shape[0] == len(parts[0])
            with pytest.raises(TokenLayoutError, match=rf"for {len(parts[0])} of 8 images.*model\.eval\(\)"):
                raw_attention(capture.maps)
        else:
            assert len(raw_attention(capture.maps)) == 8


def test_tokens_that_come_before_the_batch_are_not_images() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 1, enable_nested_tensor=False).eval()
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT, rows="cls") as capture:
        model(torch.randn(5, 2, 16))
    assert raw_attention(capture.maps).shape == (2, 2, 2)


@pytest.mark.parametrize("blocks", [None, ["blocks.0"]])
def test_attention_inside_a_named_block_keeps_its_fast_path(blocks) -> None:
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            inner = self.inner(x, x, x, need_weights=False)[0]
            return torch.softmax((x @ x.mT)[:, None], dim=-1)[:, 0] @ inner

    torch.manual_seed(0)
    model, x = Model(Around()).eval(), tokens()
    with torch.no_grad():
        bare = model(x)
        with AttentionCapture(model, rows="all", blocks=blocks, layout=LAYOUT) as capture:
            assert torch.equal(model(x), bare)
    torch.testing.assert_close(capture.maps["blocks.0"].rows[:, 0], torch.softmax(x @ x.mT, -1), atol=1e-6, rtol=0)


def test_attention_deep_inside_an_encoder_layer_is_told_by_its_weights() -> None:
    class Layer(nn.TransformerEncoderLayer):
        def __init__(self):
            super().__init__(16, 4, 32, batch_first=True)
            self.extra = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 4, batch_first=True)})

        def forward(self, x, *args, **kwargs):
            x = super().forward(x, *args, **kwargs)
            return x + self.extra["attention"](x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    model, x = nn.Sequential(Layer(), Layer()).eval(), tokens()
    with torch.no_grad():
        bare = model(x)
        with AttentionCapture(model, rows="cls", layout=LAYOUT) as capture:
            assert torch.equal(model(x), bare)
    assert [block.kernel for block in capture.maps] == ["encoder layer", "multihead"] * 2


def test_an_own_forward_inside_an_encoder_layer_is_told_once() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    layer.self_attn = Positions(16, 4, batch_first=True)
    model, x = nn.Sequential(layer).train(), tokens()
    bare = model(x)
    with AttentionCapture(model, rows="all", layout=LAYOUT) as capture:
        assert torch.equal(model(x), bare)
    positions = torch.linspace(-2, 2, 5)[:, None]
    expected = spelled_out(layer.self_attn, x + positions, x - positions)
    torch.testing.assert_close(capture.maps[0].rows.double(), expected, atol=1e-6, rtol=0)


def test_masks_that_ask_for_torchs_own_function_are_given_it() -> None:
    class Causal(nn.Module):
        def forward(self, x):
            q = x.unflatten(-1, (4, 4)).transpose(1, 2)
            mask = causal_lower_right(5, 5)
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask).transpose(1, 2).flatten(2)

    model, x = Model(Causal()), tokens()
    with torch.no_grad():
        bare = model(x)
        with AttentionCapture(model, rows="all", layout=LAYOUT) as capture:
            assert torch.equal(model(x), bare)
    with pytest.raises(UnsupportedModelError, match="CausalBias"):
        _ = capture.maps


def test_an_explicit_softmax_that_is_overwritten_in_inference_mode_was_what_it_was() -> None:
    class Overwrites(nn.Module):
        def forward(self, x):
            weights = torch.softmax((x @ x.mT)[:, None], dim=-1)
            out = weights[:, 0] @ x
            weights.zero_()
            return out

    model, x = Model(Overwrites()), tokens()
    with torch.inference_mode(), AttentionCapture(model, rows="all", layout=LAYOUT) as capture:
        model(x)
    torch.testing.assert_close(capture.maps[0].rows[:, 0], torch.softmax(x @ x.mT, -1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["timm", "timm, unfused", "transformers", "torchvision"])
@pytest.mark.parametrize("where", ["before", "inside"])
def test_a_paused_forward_inside_a_forward_leaves_no_trace_in_it(kind: str, where: str) -> None:
    model, pixels, capture = capture_of(kind)
    with torch.no_grad(), capture:
        model(pixels)
    expected = capture.maps
    attention = model.get_submodule(expected.block_names[-1])
    inner = next((m for m in attention.modules() if type(m) is nn.Linear), attention)
    busy = []

    def run_paused(*_) -> None:
        if not busy:
            busy.append(1)
            with capture.paused():
                model(images(1, seed=7, size=tuple(pixels.shape[-2:])))
            busy.clear()

    (attention if where == "before" else inner).register_forward_pre_hook(run_paused)
    with torch.no_grad(), capture:
        model(pixels)
    assert len(capture.forwards) == 1
    assert capture.maps.block_names == expected.block_names
    assert torch.allclose(capture.maps.stack(), expected.stack(), atol=1e-6)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_function_around_the_model_that_is_compiled_inside_the_context_runs_and_is_loud(fullgraph: bool) -> None:
    torch._dynamo.reset()
    model, pixels, capture = capture_of("timm")
    around = torch.compile(lambda x: model(x) + 1, backend="eager", fullgraph=fullgraph)
    with torch.no_grad():
        bare = model(pixels) + 1
        with capture:
            assert torch.equal(around(pixels), bare)
        with pytest.raises((NothingCapturedError, BlockNotCapturedError)):
            _ = capture.maps
        assert torch.equal(around(pixels), bare)


@pytest.mark.parametrize("rows", ["mean", "all"])
def test_whole_matrices_inside_a_gradient_transform_are_refused(rows: str) -> None:
    model, pixels, _ = capture_of("timm")
    with AttentionCapture(model, rows=rows) as capture:
        torch.func.grad(lambda x: model(x).sum())(pixels)
    with pytest.raises(AttnhookError, match=r"inside a transform of torch\.func"):
        _ = capture.maps


def test_a_model_copied_inside_a_forward_is_no_part_of_it() -> None:
    model, pixels, capture = capture_of("timm")

    def run_copy(*_) -> None:
        copy.deepcopy(model.blocks[1])(torch.rand(1, 16, 32))

    model.blocks[0].register_forward_hook(run_copy)
    with torch.no_grad(), capture:
        model(pixels)
    assert len(capture.maps) == 2
