"""Capture inside a compiled graph, and the refusal of compiled models."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode

from attnhook import AttentionCapture, TraceableCapture, raw_attention
from attnhook.errors import NothingCapturedError, TokenLayoutError, UnsupportedModelError
from tests.models import GRID, IMAGE, TIMM, TRANSFORMERS, images

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
    assert raw_attention(maps).values.shape == (2, *GRID)


def test_chosen_rows_of_a_chosen_block() -> None:
    model = CASES["vit"].build()
    traceable = TraceableCapture(model, images(), blocks=[1], rows=[0, -1])
    with torch.no_grad():
        _, rows = torch.compile(traceable, fullgraph=True, backend="aot_eager")(images())
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
    with pytest.raises(UnsupportedModelError, match="drops or shuffles"):
        TraceableCapture(CASES["ViTMAE"].build(), images(size=(24, 24)))
    with pytest.raises(TypeError, match=r"pixels must be a tensor: .* got dict"):
        TraceableCapture(model, {"x": images()})


def test_rows_of_another_forward_are_refused() -> None:
    model = CASES["vit"].build()
    traceable = TraceableCapture(model, images())
    _, rows = traceable(images())
    with pytest.raises(NothingCapturedError, match="rows of 1 block"):
        traceable.maps(rows[:1])
    with pytest.raises(NothingCapturedError, match="NoneType: expected rows of 2"):
        traceable.maps(None)
    for other in ([row[..., 1:] for row in rows], TraceableCapture(model, images(), rows=[0, 1])(images())[1]):
        with pytest.raises(TokenLayoutError, match=r"has rows .*: expected \(batch, 4, 1, 16\)"):
            traceable.maps(tuple(other))


TALL = IMAGE[::-1]  # as many patches as IMAGE, on another grid
BOTH_SIZES = (
    r"shape \(batch, 3, 40, 24\): expected \(batch, 3, 24, 40\).* Create another TraceableCapture for this size"
)
HOW = [("eager", full, dynamic) for full in (True, False) for dynamic in (None, True)]
HOW += [("inductor", True, dynamic) for dynamic in (None, True)]  # with breaks, what refuses is outside the graph


@pytest.mark.parametrize(
    "backend, fullgraph, dynamic",
    [
        (None, False, None),
        *(pytest.param(*how, marks=[pytest.mark.slow] if how[0] == "inductor" else []) for how in HOW),
    ],
)
def test_another_size_of_as_many_patches_is_refused(backend: str | None, fullgraph: bool, dynamic: bool | None) -> None:
    model = CASES["vit_dynamic"].build()
    traceable = run = TraceableCapture(model, images())
    if backend is not None:
        run = torch.compile(traceable, fullgraph=fullgraph, dynamic=dynamic, backend=backend)
    for batch in (2, 3):  # tall images come before anything is compiled, and after it
        with torch.no_grad():
            with pytest.raises(Exception, match=BOTH_SIZES) as caught:
                run(images(batch, size=TALL))
            maps = traceable.maps(run(images(batch))[1])
        assert isinstance(caught.value, TokenLayoutError) or fullgraph
        assert (maps.layout.grid, maps.input_size) == (GRID, IMAGE)
        torch.testing.assert_close(maps.stack(), _eager_rows(model, "readout", batch), atol=2e-5, rtol=0)


def test_another_size_that_is_padded_to_the_same_grid_is_refused() -> None:
    model = CASES["vit_dynamic_pad"].build()
    other = images(size=(20, 36))
    assert TraceableCapture(model, other).maps(TraceableCapture(model, other)(other)[1]).layout.grid == GRID
    with pytest.raises(TokenLayoutError, match=r"\(batch, 3, 20, 36\): expected \(batch, 3, 24, 40\)"):
        TraceableCapture(model, images())(other)


class _Passes(torch.nn.Module):
    """Its signature does not say what the images are called."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.model(*args, **kwargs)


class _Frames(_Passes):
    """Takes `(batch, frames, channels, height, width)`."""

    def forward(self, clip: torch.Tensor) -> object:
        return self.model(clip.flatten(0, 1))


@pytest.mark.parametrize("name, keyword", [("vit_dynamic", "x"), ("Dinov2Model", "pixel_values")])
@pytest.mark.parametrize("wrapped", [True, False])
def test_images_passed_by_keyword_are_compared_too(name: str, keyword: str, wrapped: bool) -> None:
    model = CASES[name].build()
    traceable = TraceableCapture(_Passes(model) if wrapped else model, images())
    run = torch.compile(traceable, fullgraph=True, backend="eager")
    with torch.no_grad():
        maps = traceable.maps(run(**{keyword: images()})[1])
        torch.testing.assert_close(maps.stack(), _eager_rows(model, "readout"), atol=2e-5, rtol=0)
        with pytest.raises(TokenLayoutError, match=BOTH_SIZES):
            traceable(**{keyword: images(size=TALL)})
        with pytest.raises(Exception, match=BOTH_SIZES):
            run(**{keyword: images(size=TALL)})
        with pytest.raises(TokenLayoutError, match=r"no images found among the arguments: .* got NoneType"):
            traceable(images=None)


def test_a_mask_that_is_passed_before_the_images_is_not_taken_for_them() -> None:
    traceable = TraceableCapture(CASES["vit_dynamic"].build(), images())
    mask = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    with torch.no_grad():
        _, rows = traceable(attn_mask=mask, x=images())
        torch.testing.assert_close(rows, traceable(images())[1])
        with pytest.raises(TokenLayoutError, match=BOTH_SIZES):
            traceable(attn_mask=mask, x=images(size=TALL))


def test_clips_of_another_size_or_length_are_refused() -> None:
    def clip(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1))

    traceable = TraceableCapture(_Frames(CASES["vit_dynamic"].build()), clip(1, 2, 3, *IMAGE))
    run = torch.compile(traceable, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert traceable.maps(run(clip(2, 2, 3, *IMAGE))[1]).stack().shape[1] == 4
        for other in (clip(1, 2, 3, *TALL), clip(1, 3, 3, *IMAGE), clip(1, 3, *IMAGE)):
            for forward in (traceable, run):
                with pytest.raises(Exception, match=r"expected \(batch, 2, 3, 24, 40\)"):
                    forward(other)


@pytest.mark.parametrize("how, graphs", [("default", 2), ("dynamic", 1), ("marked", 1)])
def test_batches_share_graphs(how: str, graphs: int) -> None:
    model = CASES["vit_dynamic"].build()
    traceable, counter = TraceableCapture(model, images()), CompileCounter()
    run = torch.compile(traceable, fullgraph=True, backend=counter, dynamic=True if how == "dynamic" else None)
    for batch in (2, 3, 5, 7):
        pixels = images(batch)
        if how == "marked":
            torch._dynamo.mark_dynamic(pixels, 0)
        with torch.no_grad():
            maps = traceable.maps(run(pixels)[1])
        torch.testing.assert_close(maps.stack(), _eager_rows(model, "readout", batch), atol=2e-5, rtol=0)
    assert counter.frame_count == graphs


def test_a_graph_that_breaks_inside_the_model_loses_no_row() -> None:
    model = CASES["vit"].build()
    forward = model.blocks[0].forward

    def breaking(*args: object, **kwargs: object) -> object:
        torch._dynamo.graph_break()
        return forward(*args, **kwargs)

    model.blocks[0].forward = breaking
    traceable, counter = TraceableCapture(model, images()), CompileCounter()
    with torch.no_grad():
        _, rows = torch.compile(traceable, backend=counter)(images())
    assert counter.frame_count > 1
    torch.testing.assert_close(torch.stack(rows), _eager_rows(model, "readout"), atol=2e-5, rtol=0)


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


def _eager_rows(model: torch.nn.Module, rows: object, batch: int = 2) -> torch.Tensor:
    with torch.no_grad(), AttentionCapture(model, rows=rows) as capture:
        model(images(batch).to(next(model.parameters()).dtype))
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


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.bfloat16, 2e-5)])
def test_rows_of_other_precisions_are_those_of_the_eager_capture(dtype: torch.dtype, tolerance: float) -> None:
    model = CASES["vit"].build().to(dtype)
    traceable = TraceableCapture(model, images().to(dtype))
    with torch.no_grad():
        _, rows = torch.compile(traceable, fullgraph=True, backend="eager")(images().to(dtype))
    assert rows[0].dtype is torch.float32
    torch.testing.assert_close(torch.stack(rows), _eager_rows(model, "readout"), atol=tolerance, rtol=0)


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
