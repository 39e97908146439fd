"""Attention modules of models that no adapter knows: recognised by what their code calls, and none left out without a word."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from torch.nn.functional import softmax as normalised

from attnhook import AttentionCapture, TokenLayout, rollout
from attnhook.capture.session import MeasuringCapture
from attnhook.errors import BlockNotCapturedError, UnsupportedModelError
from tests.models import sharpen

LAYOUT = TokenLayout((2, 3))


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def spelled_out(q, k, v):
    return normalised(q @ k.mT * 8**-0.5, dim=-1) @ v


hidden = types.SimpleNamespace(kernel=fused)  # known to this module by no name of its own


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return x + self.mix(q, k, v).transpose(1, 2).flatten(2)


class Literal(Layer):
    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Aliased(Layer):
    def mix(self, q, k, v):
        return sdpa(q, k, v)


class Helped(Layer):
    def mix(self, q, k, v):
        return fused(q, k, v)


class SpelledOut(Layer):
    def mix(self, q, k, v):
        return spelled_out(q, k, v)


class Hidden(Layer):
    def mix(self, q, k, v):
        return hidden.kernel(q, k, v)


class Model(nn.Module):
    def __init__(self, *kinds):
        super().__init__()
        self.layers = nn.Sequential(*[kind() for kind in kinds])

    def forward(self, x):
        return self.layers(x)[:, 0]


def same_weights(*kinds) -> Model:
    return sharpen(Model(*kinds))


TOKENS = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Aliased, Helped, SpelledOut])
@pytest.mark.parametrize("place", [1, 2])
def test_a_block_that_calls_its_kernel_by_another_name_is_one(kind, place: int) -> None:
    kinds = [Literal, Literal, Literal]
    expected, model = same_weights(*kinds), same_weights(*kinds[:place], kind, *kinds[place + 1 :])
    maps = []
    for one in (expected, model):
        with torch.no_grad(), AttentionCapture(one, rows="all", layout=LAYOUT) as capture:
            one(TOKENS)
        assert capture.maps.block_names == ("layers.0", "layers.1", "layers.2")
        maps.append(rollout(capture.maps).values)
    torch.testing.assert_close(maps[1], maps[0], atol=1e-6, rtol=0)


NAMED = r"module 'layers.2' \(Hidden\) called scaled_dot_product_attention.* got 2 that are.*blocks=\['layers.0', 'layers.1', 'layers.2'\]"


def test_an_attention_call_outside_every_recognised_module_is_loud() -> None:
    model = same_weights(Literal, Literal, Hidden)
    expected = model(TOKENS)
    capture = AttentionCapture(model, layout=LAYOUT)
    for _ in range(2):
        with torch.no_grad(), capture:
            assert torch.equal(model(TOKENS), expected)
        with pytest.raises(BlockNotCapturedError, match=NAMED):
            _ = capture.maps
    with torch.no_grad(), MeasuringCapture(model, lambda block, readout: 0, layout=LAYOUT) as measuring:
        model(TOKENS)
    with pytest.raises(BlockNotCapturedError, match=NAMED):
        _ = measuring.measured
    with torch.no_grad(), AttentionCapture(model, blocks=1, layout=LAYOUT) as last:
        model(TOKENS)
    with pytest.raises(BlockNotCapturedError, match=r"'layers.2' \(Hidden\)"):
        _ = last.maps


def test_named_blocks_need_not_be_recognised_and_others_may_be_left_out() -> None:
    model = same_weights(Literal, Literal, Hidden)
    for blocks in (["layers.0", "layers.1", "layers.2"], ["layers.0"]):
        with torch.no_grad(), AttentionCapture(model, blocks=blocks, layout=LAYOUT) as capture:
            model(TOKENS)
        assert capture.maps.block_names == tuple(blocks)


def test_calls_of_other_models_and_of_a_paused_capture_are_no_blocks_of_this_one() -> None:
    model, other = same_weights(Literal, Literal, Literal), same_weights(Hidden)
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(TOKENS)
        other(TOKENS)
        fused(*torch.randn(3, 1, 2, 4, 8))
        with capture.paused():
            model.layers[0].mix(*torch.randn(3, 1, 2, 4, 8))
    assert len(capture.maps) == 3


def test_a_layout_alone_does_not_find_modules_whose_code_shows_nothing() -> None:
    words = r'Model has no attention that can be recognised: .*, got none\. Name the modules that attend with blocks=\["name", \.\.\.\]\.$'
    with pytest.raises(UnsupportedModelError, match=words):
        AttentionCapture(same_weights(Hidden, Hidden), layout=LAYOUT)


class Wrapped(nn.Module):
    """Its code names a softmax, as does the model's, and it holds modules that attend."""

    def __init__(self, *kinds):
        super().__init__()
        self.inner = Model(*kinds)

    def forward(self, x):
        return self.inner(x)

    def probabilities(self, x):
        return self(x).softmax(dim=-1)


class WrappedTwice(Wrapped):
    def __init__(self, *kinds):
        super().__init__()
        self.inner = Wrapped(*kinds)


@pytest.mark.parametrize("kinds", [(Literal, SpelledOut), (Aliased, Helped)])
def test_calls_of_a_block_are_not_those_of_a_module_around_it_whose_code_names_a_softmax(kinds) -> None:
    model = sharpen(WrappedTwice(*kinds))
    with torch.no_grad(), AttentionCapture(model, rows="all", layout=LAYOUT) as capture:
        model(TOKENS)
    assert capture.maps.block_names == ("inner.inner.layers.0", "inner.inner.layers.1")


def test_a_models_own_softmax_is_no_block_around_multihead_attention() -> None:
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0][:, 0].softmax(dim=-1)

    model = Classifier()
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(TOKENS)
    assert capture.block_names == capture.maps.block_names == ("attention",)
