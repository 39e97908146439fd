"""Which modules count as attention that is not captured."""

import torch
import torch.nn.functional as F
from torch import nn

from attnhook.zoo.uncaptured import uncaptured_attention

fused = F.scaled_dot_product_attention


class SelfAttention(nn.Module):
    def forward(self, tokens):
        return (tokens @ tokens.mT).softmax(-1) @ tokens


class AliasedAttention(nn.Module):
    def forward(self, tokens):
        return fused(tokens, tokens, tokens)


class Mixer(nn.Module):
    def forward(self, tokens):
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


class TopKRouter(nn.Module):
    def forward(self, tokens):
        return torch.softmax(tokens, -1)


class HyperAttentionResidual(TopKRouter):
    """As in transformers' Inkling 2: a softmax over the outputs of earlier layers."""


class ChannelAttention(SelfAttention):
    """As in timm's DaViT: between channels."""


class AttentionLayer(SelfAttention):
    """Calls a softmax itself, and holds a module that does."""

    def __init__(self):
        super().__init__()
        self.inner = SelfAttention()


def found(*captured: str, **modules: nn.Module) -> tuple[str, ...]:
    return uncaptured_attention(nn.ModuleDict(modules), captured)


def test_attention_is_recognised_by_its_code() -> None:
    multihead = nn.MultiheadAttention(8, 2)
    assert found(a=SelfAttention(), b=AliasedAttention(), c=Mixer(), d=multihead) == ("a", "b", "c", "d")


def test_other_softmaxes_do_not_count() -> None:
    others = TopKRouter(), HyperAttentionResidual(), ChannelAttention(), nn.Softmax(-1), nn.Linear(2, 2)
    assert found(**{f"m{number}": module for number, module in enumerate(others)}) == ()


def test_what_is_captured_and_what_holds_it_does_not_count() -> None:
    assert found("a", a=SelfAttention(), b=SelfAttention()) == ("b",)
    assert found("a", a=AttentionLayer()) == ()
    assert found("a.inner", a=AttentionLayer()) == ()


def test_nested_modules_count_once() -> None:
    assert found(a=AttentionLayer()) == ("a.inner",)
    assert uncaptured_attention(AttentionLayer(), ()) == ("inner",)
