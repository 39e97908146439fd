"""Captured rows of every supported family against the same weights run through an explicit softmax, recorded by other means."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from attnhook import AttentionCapture, raw_attention
from attnhook.errors import NoReadoutError
from tests.models import GRID, TIMM, TRANSFORMERS, Case

# Both sides compute the same scores in float32, in another order: 24 bits, scores up to about 15, and two blocks of drift.
TOLERANCE = 2e-5


@contextmanager
def softmaxes(recorded: list[torch.Tensor]) -> Iterator[None]:
    """Record every explicit softmax over four dimensions: what the unfused twin computes."""
    method = torch.Tensor.softmax  # F.softmax calls it too

    def record(*args, **kwargs):
        result = method(*args, **kwargs)
        if result.dim() == 4:
            recorded.append(result.detach().float())
        return result

    torch.Tensor.softmax = record
    try:
        yield
    finally:
        torch.Tensor.softmax = method


@contextmanager
def multihead_weights(model: torch.nn.Module, recorded: list[torch.Tensor]) -> Iterator[None]:
    """Ask every nn.MultiheadAttention for its weights."""
    handles = []
    for module in model.modules():
        if isinstance(module, torch.nn.MultiheadAttention):

            def ask(module, args, kwargs):
                return args, kwargs | {"need_weights": True, "average_attn_weights": False}

            handles.append(module.register_forward_pre_hook(ask, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda m, a, out: recorded.append(out[1].detach())))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def explicit_attention(case: Case, state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    twin = case.build("eager")
    twin.load_state_dict(state)
    recorded: list[torch.Tensor] = []
    torch.manual_seed(0)
    with torch.no_grad(), softmaxes(recorded), multihead_weights(twin, recorded):
        case.feed(twin)
    return recorded


def vision_part(case: Case, recorded: list[torch.Tensor], keys: int) -> list[torch.Tensor]:
    if case.name == "CLIPModel":  # the text tower runs too
        recorded = [weights for weights in recorded if weights.shape[-1] == keys]
    return recorded


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("case", TRANSFORMERS + TIMM, ids=lambda case: case.name)
def test_every_row_of_every_block_equals_the_explicit_softmax(case: Case, implementation: str) -> None:
    model = case.build(implementation)
    torch.manual_seed(0)
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        case.feed(model)
    expected = vision_part(case, explicit_attention(case, model.state_dict()), capture.maps[0].shape[-1])
    assert len(capture.maps) == case.blocks == len(expected)
    for block, weights in zip(capture.maps, expected, strict=True):
        assert block.weights().shape == weights.shape
        torch.testing.assert_close(block.weights(), weights, atol=TOLERANCE, rtol=0)
    # Not a test of uniform attention: the largest weight of a row is far above 1/N.
    assert expected[0].amax(-1).mean() > 3 / expected[0].shape[-1]


@pytest.mark.parametrize("case", TRANSFORMERS + TIMM, ids=lambda case: case.name)
def test_readout_rows_are_those_of_the_full_matrix(case: Case) -> None:
    model = case.build()
    torch.manual_seed(0)
    with torch.no_grad(), AttentionCapture(model) as capture:
        case.feed(model)
    torch.manual_seed(0)
    with torch.no_grad(), AttentionCapture(model, rows="all") as everything:
        case.feed(model)
    assert capture.maps.selected_rows == case.readout == capture.maps.readout.rows
    for block in capture.maps:
        full = everything.maps[block.name].weights()
        if case.readout == "cls":
            full = full[:, :, :1]
        elif case.readout == "mean":
            full = full[:, :, everything.maps[0].layout.patch_tokens].mean(dim=2, keepdim=True)
        assert block.rows.dtype is torch.float32
        assert not block.rows.requires_grad
        assert block.rows.untyped_storage().nbytes() == block.rows.numel() * 4
        torch.testing.assert_close(block.rows, full, atol=1e-6, rtol=0)
        torch.testing.assert_close(block.rows.sum(-1), torch.ones(block.rows.shape[:-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", TRANSFORMERS + TIMM, ids=lambda case: case.name)
def test_layout_says_what_the_tokens_are(case: Case) -> None:
    model = case.build()
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        case.feed(model)
    layout = capture.maps[0].layout
    square = case.inputs is not None and case.inputs.__name__ in {"square", "text_and_image"}
    grid = (GRID[0], GRID[0]) if square else GRID
    facts = (layout.grid, layout.cls, layout.registers, layout.distillation, layout.suffix)
    assert facts == (grid, case.cls, case.registers, case.distillation, case.suffix)
    assert capture.maps.patch_area == (grid[0] * 8, grid[1] * 8)
    assert raw_attention(capture.maps).values.shape == (2, *grid)


@pytest.mark.parametrize("case", TRANSFORMERS + TIMM, ids=lambda case: case.name)
def test_output_is_the_same_bit_for_bit(case: Case) -> None:
    def leaves(output):
        values = [output] if isinstance(output, torch.Tensor) else output.values()
        return [value for value in values if isinstance(value, torch.Tensor)]

    model = case.build()
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            torch.manual_seed(3)
            bare = leaves(case.feed(model))
            torch.manual_seed(3)
            with AttentionCapture(model) as capture:
                captured = leaves(case.feed(model))
        assert len(capture.maps) > 0
        assert bare
        assert all(torch.equal(a, b) for a, b in zip(bare, captured, strict=True))


def test_a_head_that_reads_detection_tokens_has_no_readout() -> None:
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=[24, 40],
        patch_size=8,
    )
    model = YolosForObjectDetection(config).eval()
    with pytest.raises(NoReadoutError, match="detection tokens"):
        AttentionCapture(model)
    with torch.no_grad(), AttentionCapture(model, rows=range(-100, 0)) as capture:
        model(torch.randn(1, 3, 24, 40))
    assert capture.maps[0].rows.shape == (1, 4, 100, 1 + 15 + 100)
