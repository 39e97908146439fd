"""Capture inside a compiled graph, and the refusal of compiled models."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

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


class _Attention(timm.layers.Attention):
    """Attends causally or through a mask."""

    causal, mask = False, None

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=self.causal)
        return self.proj(out.transpose(1, 2).flatten(2))


def _with_own_attention() -> torch.nn.Module:
    model = CASES["vit"].build()
    for block in model.blocks:
        block.attn.__class__ = _Attention
    return model


def _eager_rows(model: torch.nn.Module, rows: object) -> torch.Tensor:
    with torch.no_grad(), AttentionCapture(model, rows=rows) as capture:
        model(images())
    return capture.maps.stack()


@pytest.mark.parametrize("kind", ["causal", "mask", "hidden row"])
def test_keys_that_a_call_hides_are_hidden_in_the_rows(kind: str) -> None:
    model = _with_own_attention()
    tokens = GRID[0] * GRID[1] + 1
    mask = torch.rand(tokens, tokens, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[3] = kind == "mask"
    for block in model.blocks:
        block.attn.causal, block.attn.mask = (True, None) if kind == "causal" else (False, mask)
    traceable = TraceableCapture(model, images(), rows=[3, 0, -1])
    with torch.no_grad():
        _, rows = torch.compile(traceable, fullgraph=True, backend="eager")(images())
    expected = _eager_rows(model, [3, 0, -1])
    assert (expected[..., 1:] == 0).any()
    torch.testing.assert_close(torch.stack(rows), expected, atol=2e-5, rtol=0)


def test_autocast_does_not_reach_the_rows() -> None:
    model = CASES["vit"].build()
    traceable = torch.compile(TraceableCapture(model, images()), fullgraph=True, backend="eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, rows = traceable(images())
        expected = _eager_rows(model, "readout")
    torch.testing.assert_close(torch.stack(rows), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("backend", [None, "eager"])
@pytest.mark.parametrize("fewer", [True, False])
def test_another_number_of_calls_is_an_error(backend: str | None, fewer: bool) -> None:
    model = CASES["vit"].build()
    traceable = TraceableCapture(model, images())
    if fewer:
        model.blocks[0] = torch.nn.Identity()
    else:
        model.blocks.append(CASES["vit"].build().blocks[0])
    run = traceable if backend is None else torch.compile(traceable, fullgraph=True, backend=backend)
    with torch.no_grad(), pytest.raises(Exception, match=f"{1 if fewer else 3} times: expected 2") as caught:
        run(images())
    assert backend is not None or isinstance(caught.value, NothingCapturedError)


def test_a_call_outside_the_attention_modules_is_refused() -> None:
    model = CASES["vit"].build()
    model.norm.register_forward_hook(lambda _, __, x: F.scaled_dot_product_attention(x, x, x))
    with pytest.raises(UnsupportedModelError, match="its 2 attention modules only, got 3"):
        TraceableCapture(model, images())


@pytest.mark.parametrize("rows", [[5, -1], "pool"])
def test_only_the_calls_that_were_asked_for_are_computed(rows: object) -> None:
    model = CASES["vit_siglip"].build()  # two blocks and a pooling of one query
    traceable = TraceableCapture(model, images(), rows=rows)
    with torch.no_grad(), CountsSoftmax() as counts:
        _, kept = traceable(images())
    assert counts.calls == len(kept) == (1 if rows == "pool" else 2)
    torch.testing.assert_close(torch.stack(kept), _eager_rows(model, rows), atol=2e-5, rtol=0)


class CountsSoftmax(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += func is torch.softmax
        return func(*args, **(kwargs or {}))
