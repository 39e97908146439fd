"""Functions registered at transformers' attention interface, which call no kernel that could be watched."""

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attnhook import AttentionCapture, AttentionSite, ModelAnatomy, register_adapter
from attnhook.capture.sites import Kernel
from attnhook.errors import UnsupportedModelError


def by_hand(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention by no function that is watched, over the keys that are not masked."""
    scores = torch.exp(query @ key.mT * scaling)
    if attention_mask is not None:
        scores = scores * attention_mask
    return (scores / scores.sum(-1, keepdim=True) @ value).transpose(1, 2), None


class Attention(nn.Module):
    """Calls the interface as some of transformers' models do: the mask by keyword, or all by keyword, or none."""

    def __init__(self, function, *, keywords: int = 0, mask: torch.Tensor | None = None):
        super().__init__()
        ALL_ATTENTION_FUNCTIONS.register("by_hand", function)
        self.config = type("Config", (), {"_attn_implementation": "by_hand"})()
        self.keywords, self.mask = keywords, mask

    def forward(self, x):
        names = ("module", "query", "key", "value", "attention_mask")
        given = (self, x, x, x, self.mask)
        first = len(given) - self.keywords
        named = dict(zip(names[first:], given[first:], strict=True))
        return ALL_ATTENTION_FUNCTIONS["by_hand"](*given[:first], scaling=0.5, **named)[0]


def capture_of(model: Attention, rows="all") -> AttentionCapture:
    register_adapter(Attention, lambda module: ModelAnatomy((AttentionSite("", module, Kernel.INTERFACE),)))
    return AttentionCapture(model, rows=rows)


def queries() -> torch.Tensor:
    return torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("keywords", [0, 1, 4, 5])
def test_the_mask_is_read_whether_it_comes_by_position_or_by_keyword(keywords: int) -> None:
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    model, x = Attention(by_hand, keywords=keywords, mask=mask), queries()
    bare = model(x)
    with torch.no_grad(), capture_of(model) as capture:
        assert torch.equal(model(x), bare)
    expected = (x @ x.mT * 0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(capture.maps[0].rows, expected, atol=1e-6, rtol=0)


def test_operands_that_do_not_fit_each_other_are_refused_without_ending_the_forward() -> None:
    def takes_a_padding_mask(module, query, key, value, attention_mask, **kwargs):
        return by_hand(module, query, key, value, attention_mask[:, None, None, :], **kwargs)

    model, x = Attention(takes_a_padding_mask, mask=torch.ones(2, 5)), queries()
    with torch.no_grad(), capture_of(model) as capture:
        model(x)
    with pytest.raises(UnsupportedModelError, match="could not be recorded: RuntimeError: The expanded size"):
        _ = capture.maps


@pytest.mark.parametrize("row", [0, 2, 4])
def test_a_function_is_checked_at_several_queries(row: int) -> None:
    def differs(module, query, key, value, attention_mask, **kwargs):
        output, _ = by_hand(module, query, key, value, attention_mask, **kwargs)
        output[:, row] = value[:, :, row]
        return output, None

    model, x = Attention(differs), queries()
    with torch.no_grad(), capture_of(model) as capture:
        model(x)
    with pytest.raises(UnsupportedModelError, match="does not compute softmax"):
        _ = capture.maps
