"""Several scores of one forward, each followed backward by itself."""

import copy
import warnings

import pytest
import torch

from attnhook import METHODS, AttentionCapture, gradient_rollout
from attnhook.attribution.methods import NEEDS
from attnhook.errors import GradientsNotKeptError
from tests.models import TIMM, TRANSFORMERS, images

CASES = {case.name: case for case in TIMM + TRANSFORMERS}
FOLLOWED = [name for name, needs in NEEDS.items() if needs.gradients]


def alone(model: torch.nn.Module, method: str, index: int) -> torch.Tensor:
    """The map of one score after a forward and a backward of its own."""
    with AttentionCapture(model, gradients=True) as capture:
        model(images())[:, index].sum().backward()
    return METHODS[method](capture.maps).values


@pytest.mark.parametrize("implementation", [{}, {"fused": False}], ids=["fused", "softmax"])
@pytest.mark.parametrize("method", FOLLOWED)
def test_each_score_gets_the_map_that_a_forward_of_its_own_gives(method: str, implementation: dict) -> None:
    model = CASES["vit"].build()
    for block in model.blocks:
        block.attn.fused_attn = implementation.get("fused", True)
    with AttentionCapture(model, gradients=True) as capture:
        scores = model(images()).sum(dim=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in (0, 3, 0):
            capture.clear_gradients()
            scores[index].backward(retain_graph=True)
            torch.testing.assert_close(METHODS[method](capture.maps).values, alone(model, method, index))


def test_a_second_backward_after_a_map_was_read_warns_where_the_map_is_read() -> None:
    model = CASES["vit"].build()
    with AttentionCapture(model, gradients=True) as capture:
        scores = model(images()).sum(dim=0)
    scores[0].backward(retain_graph=True)
    first = gradient_rollout(capture.maps).values
    scores[3].backward(retain_graph=True)
    with pytest.warns(UserWarning, match="expected one backward per map, got another one after") as found:
        both = gradient_rollout(capture.maps).values
    assert {one.filename for one in found} == {__file__}
    assert not torch.allclose(first, both)
    with pytest.warns(UserWarning, match="clear_gradients"):
        gradient_rollout(copy.deepcopy(capture.maps))  # a copy remembers


def test_backwards_that_add_up_on_purpose_do_not_warn() -> None:
    model = CASES["vit"].build()
    with AttentionCapture(model, gradients=True) as capture:
        scores = model(images()).sum(dim=0)
    scores[0].backward(retain_graph=True)
    scores[3].backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = gradient_rollout(capture.maps).values
    with AttentionCapture(model, gradients=True) as capture:
        model(images())[:, [0, 3]].sum().backward()
    torch.testing.assert_close(together, gradient_rollout(capture.maps).values)


def test_cleared_gradients_are_gone_until_the_next_backward_in_all_forwards() -> None:
    model = CASES["vit"].build()
    with AttentionCapture(model, gradients=True) as capture:
        outputs = [model(images(seed=seed)).sum() for seed in (1, 2)]
    for output in outputs:
        output.backward(retain_graph=True)
    maps = capture.forwards
    capture.clear_gradients()
    for one in maps:
        with pytest.raises(GradientsNotKeptError, match="no gradient has reached"):
            gradient_rollout(one)
    outputs[0].backward()
    gradient_rollout(maps[0])


def test_clearing_does_nothing_where_nothing_was_followed() -> None:
    model = CASES["vit"].build()
    with AttentionCapture(model) as capture:
        model(images())
    capture.clear_gradients()
    assert len(capture.maps) == 2
