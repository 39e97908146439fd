"""Capture inside a compiled graph, and the refusal of compiled models."""

import pytest
import torch

from attnhook import AttentionCapture, TraceableCapture, raw_attention
from attnhook.errors import NothingCapturedError, TokenLayoutError, UnsupportedModelError
from tests.models import GRID, TIMM, TRANSFORMERS, images

CASES = {case.name: case for case in TIMM + TRANSFORMERS}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["vit", "ViTModel", "vit_siglip", "Dinov2WithRegisters"])
def test_one_graph_gives_the_rows_and_the_output_of_the_compiled_model(name: str) -> None:
    model = CASES[name].build()
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(images())
    traceable = TraceableCapture(model, images())
    with torch.no_grad():
        alone = torch.compile(model, fullgraph=True, backend="aot_eager")(images())
        output, rows = torch.compile(traceable, fullgraph=True, backend="aot_eager")(images())
    first, expected = (x if isinstance(x, torch.Tensor) else x[0] for x in (output, alone))
    assert torch.equal(first, expected)
    maps = traceable.maps(rows)
    assert maps.block_names == capture.maps.block_names
    torch.testing.assert_close(maps.stack(), capture.maps.stack(), atol=2e-5, rtol=0)
    assert raw_attention(maps).shape == (2, *GRID)


@pytest.mark.slow
def test_inductor_gives_the_same_rows() -> None:
    model = CASES["vit"].build()
    traceable = TraceableCapture(model, images(), blocks=[1], rows=[0, -1])
    with torch.no_grad():
        _, rows = torch.compile(traceable, fullgraph=True)(images())
        with AttentionCapture(model, blocks=[1], rows=[0, -1]) as capture:
            model(images())
    torch.testing.assert_close(rows[0], capture.maps[0].rows, atol=2e-5, rtol=0)


def test_what_cannot_be_traced_is_refused() -> None:
    model = CASES["vit"].build()
    with pytest.raises(UnsupportedModelError, match="rows='all' cannot be captured inside a compiled graph"):
        TraceableCapture(model, images(), rows="all")
    model.blocks[1].attn.fused_attn = False
    with pytest.raises(UnsupportedModelError, match=r"'blocks.1.attn' cannot be captured inside"):
        TraceableCapture(model, images())
    dynamic = CASES["vit_dynamic"].build()
    traceable = TraceableCapture(dynamic, images())
    _, rows = traceable(images(size=(48, 16)))
    with pytest.raises(TokenLayoutError, match="each image size"):
        traceable.maps(rows)
    with pytest.raises(NothingCapturedError, match="rows of 1 blocks"):
        traceable.maps(rows[:1])


@pytest.mark.parametrize("how", ["wrapper", "model", "block"])
def test_strict_refuses_a_compiled_model_and_leaves_nothing(how: str) -> None:
    model = CASES["vit"].build()
    run = torch.compile(model, backend="eager") if how == "wrapper" else model
    if how == "model":
        model.compile(backend="eager")
    if how == "block":
        model.blocks[0].compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="is compiled"):
        AttentionCapture(run, strict=True).__enter__()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
