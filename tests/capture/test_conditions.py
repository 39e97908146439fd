"""The ways in which people run models around a capture."""

import copy
import gc
import pickle
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnhook import AttentionCapture, AttentionSite, ModelAnatomy, Readout, TokenLayout, raw_attention
from attnhook import register_adapter as register
from attnhook.errors import NothingCapturedError, UnsupportedModelError
from attnhook.options import Rows
from tests.models import GRID, PATCH, TIMM, TRANSFORMERS, images

CASES = {case.name: case for case in TIMM + TRANSFORMERS}


def vit() -> nn.Module:
    return CASES["vit"].build()


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(GRID[0] * PATCH, PATCH, 2, 2, 16, 32, num_classes=6).eval()


def custom(name: str, function) -> nn.Module:
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    return CASES["ViTModel"].build(name)


def calls_sdpa(module, query, key, value, mask, scaling=None, **_):
    return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None


def calls_nothing(module, query, key, value, mask, scaling=None, **_):
    scores = torch.exp(query @ key.transpose(-1, -2) * scaling)
    return (scores / scores.sum(-1, keepdim=True) @ value).transpose(1, 2), None


def computes_something_else(module, query, key, value, mask, scaling=None, **_):
    return value.transpose(1, 2).contiguous(), None


@pytest.mark.parametrize("rows", ["cls", "mean", "all"])
@pytest.mark.parametrize("kind", ["timm", "eager", "calls_sdpa", "calls_nothing"])
def test_nested_captures_both_see_every_call_once(kind: str, rows: str) -> None:
    build = {
        "timm": vit,
        "eager": lambda: CASES["ViTModel"].build("eager"),
        "calls_sdpa": lambda: custom("calls_sdpa", calls_sdpa),
        "calls_nothing": lambda: custom("calls_nothing", calls_nothing),
    }
    model = build[kind]()
    with torch.no_grad(), AttentionCapture(model, rows=rows) as outer:
        with AttentionCapture(model, rows=rows) as inner:
            model(images())
        assert outer.maps.block_names == inner.maps.block_names == outer.block_names
        model(images())
    assert len(inner.forwards) == 1
    assert len(outer.forwards) == 2
    assert torch.equal(outer.maps.stack(), inner.maps.stack())


@pytest.mark.parametrize("kind", ["timm", "eager", "multihead"])
@pytest.mark.parametrize("rows", ["cls", "all"])
def test_vmap_is_refused_and_does_not_disturb_the_forward(kind: str, rows: str) -> None:
    build = {
        "timm": vit,
        "eager": lambda: CASES["ViTModel"].build("eager"),
        "multihead": torchvision_vit,
    }
    model, stacked = build[kind](), torch.stack([images(), images().flip(1)])
    if kind == "multihead":
        stacked = stacked[..., : GRID[0] * PATCH]  # it takes square images alone

    def run(pixels: torch.Tensor) -> torch.Tensor:
        output = model(pixels)
        return output if isinstance(output, torch.Tensor) else output.last_hidden_state

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no batching rule for its fused kernel and says so
        wanted = torch.func.vmap(run)(stacked)
        with AttentionCapture(model, rows=rows) as capture:
            got = torch.func.vmap(run)(stacked)
    assert torch.equal(got, wanted)
    with pytest.raises(UnsupportedModelError, match=r"vmap.*whole batch"):
        _ = capture.maps


def test_rows_inside_a_gradient_transform_are_those_of_the_plain_forward() -> None:
    model, pixels = vit(), images()
    with AttentionCapture(model) as capture:
        model(pixels)
        wanted = capture.maps.stack()
        torch.func.grad(lambda x: model(x).sum())(pixels)
        torch.testing.assert_close(capture.maps.stack(), wanted, rtol=0, atol=1e-6)


def test_a_capture_can_be_entered_again_but_not_twice_at_once() -> None:
    model = vit()
    capture = AttentionCapture(model)
    for _ in range(2):
        with torch.no_grad(), capture:
            model(images())
            with pytest.raises(NothingCapturedError, match="already open"):
                capture.__enter__()
        assert len(capture.forwards) == 1


@pytest.mark.parametrize("kind", ["timm", "calls_nothing"])
def test_two_threads_with_a_model_each_see_their_own(kind: str) -> None:
    from transformers.models.vit import modeling_vit

    models = [vit() if kind == "timm" else custom(kind, calls_nothing) for _ in range(2)]
    mapping = dict(modeling_vit.ALL_ATTENTION_FUNCTIONS._local_mapping)
    start, seen = threading.Barrier(2), {}

    def work(number: int) -> None:
        with torch.no_grad(), AttentionCapture(models[number]) as capture:
            start.wait()
            for _ in range(30):
                models[number](images(number + 1))
        seen[number] = [(maps.block_names, maps[0].shape[0]) for maps in capture.forwards]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        names = AttentionCapture(models[number]).block_names
        assert seen[number] == [(names, number + 1)] * 30
    assert dict(modeling_vit.ALL_ATTENTION_FUNCTIONS._local_mapping) == mapping


def test_a_forward_on_another_thread_is_named_never_an_empty_result() -> None:
    model = vit()
    with AttentionCapture(model) as capture:
        thread = threading.Thread(target=lambda: model(images()))
        thread.start()
        thread.join()
    with pytest.raises(NothingCapturedError, match="another thread"):
        _ = capture.maps


def test_forwards_of_several_sizes_pausing_and_clearing() -> None:
    model = CASES["vit_dynamic"].build()
    with torch.no_grad(), AttentionCapture(model) as capture:
        for size in ((48, 16), (24, 40)):
            model(images(1, size=size))
        with capture.paused():
            model(images(3))
        assert [maps.layout.grid for maps in capture.forwards] == [(6, 2), (3, 5)]
        assert capture.maps.layout.grid == (3, 5)
        capture.clear()
        assert capture.forwards == ()
        with capture.paused():
            model(images())
        with pytest.raises(NothingCapturedError, match="got none"):
            _ = capture.maps
        model(images(2, size=(16, 16)))
    assert [maps.layout.grid for maps in capture.forwards] == [(2, 2)]


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.vit, self.reentrant = vit(), reentrant

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        x = self.vit.pos_drop(self.vit._pos_embed(self.vit.patch_embed(x)))
        for block in self.vit.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_records_each_block_once(*, reentrant: bool) -> None:
    model = Checkpointed(reentrant=reentrant).train()
    with AttentionCapture(model) as capture:
        model(images()).sum().backward()
    assert capture.maps.block_names == ("vit.blocks.0.attn", "vit.blocks.1.attn")
    assert len(capture.forwards) == 1


@pytest.mark.parametrize("name", ["vit", "ViTModel"])
def test_copies_made_inside_a_context_are_inert(name: str, tmp_path) -> None:
    model = CASES[name].build()
    with torch.no_grad(), AttentionCapture(model) as capture:
        twin = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        loaded = [torch.load(tmp_path / "model.pt", weights_only=False), pickle.loads(pickle.dumps(model))]  # noqa: S301
        for other in (twin, *loaded):
            other(images())
        with pytest.raises(NothingCapturedError, match="another copy"):
            _ = capture.maps
        model(images())
    assert len(capture.forwards) == 1


class Siamese(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, first, second):
        return self.inner(first), self.inner(second)


@pytest.mark.parametrize("where", ["parts", "siamese"])
def test_forwards_inside_another_or_past_the_model_are_kept_apart(where: str) -> None:
    model = vit()
    with torch.no_grad(), AttentionCapture(model if where == "parts" else (siamese := Siamese(model))) as capture:
        if where == "parts":
            model.forward_features(images(1))
            model.forward_features(images(2))
        else:
            siamese(images(1), images(2))
    assert [[len(block.rows) for block in maps] for maps in capture.forwards] == [[1, 1], [2, 2]]


def test_a_part_of_the_model_still_shows_the_grid() -> None:
    model = vit()
    with torch.no_grad(), AttentionCapture(model) as capture:
        model.forward_features(images())
    assert raw_attention(capture.maps).values.shape == (2, *GRID)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["timm", "eager"])
@pytest.mark.parametrize("how", ["wrapper", "model", "block"])
def test_three_contexts_in_a_row_on_a_warm_compiled_model(how: str, kind: str) -> None:
    torch._dynamo.reset()
    model = vit() if kind == "timm" else CASES["ViTModel"].build("eager")
    run = model
    if how == "wrapper":
        run = torch.compile(model, backend="eager")
    elif how == "model":
        model.compile(backend="eager")
    else:
        next(m for m in model.modules() if isinstance(m, nn.ModuleList) or m is getattr(model, "blocks", None))[
            0
        ].compile(backend="eager")
    with torch.no_grad():
        run(images())
        compiled = dict(torch._dynamo.utils.counters["stats"])
        for _ in range(3):
            with AttentionCapture(run) as capture:
                run(images())
            assert len(capture.maps) == 2
        # What was compiled still stands, and nothing is compiled for us.
        assert dict(torch._dynamo.utils.counters["stats"]) == compiled


class Token:
    """Lives as long as the autograd graph that holds it."""


class Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, token):
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@pytest.mark.parametrize("name", ["vit", "ViTModel"])
def test_results_die_with_clear_and_hold_no_graph(name: str) -> None:
    model, token = CASES[name].build(), Token()
    graph = weakref.ref(token)
    with AttentionCapture(model, rows="all") as capture:
        output = model(Held.apply(images().requires_grad_(), token))
    del token
    maps = capture.maps
    rows = maps[0].rows
    assert not rows.requires_grad
    assert graph() is not None
    del output
    gc.collect()
    assert graph() is None
    alive = [weakref.ref(maps), weakref.ref(maps[0].matrix)]
    del maps, rows
    capture.clear()
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


@pytest.mark.parametrize("rows", ["cls", "mean", "all"])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_device_says_where_rows_are_kept(device: str, rows: str) -> None:
    model = vit()
    with torch.no_grad(), AttentionCapture(model, rows=rows, device=device) as capture:
        model(images())
    assert capture.maps[0].rows.device.type == device


@pytest.mark.parametrize("name", ["vit", "vit_avg", "ViTModel"])
@pytest.mark.parametrize("rows", ["readout", "all"])
def test_results_of_inference_mode_are_ordinary_tensors(name: str, rows: str) -> None:
    model = CASES[name].build()
    with torch.inference_mode(), AttentionCapture(model, rows=rows) as capture:
        model(images())
    kept = capture.maps[0].rows
    weight = torch.ones((), requires_grad=True)
    (kept * weight).sum().backward()
    assert weight.grad is not None


def test_a_registered_function_is_seen_or_recovered_exactly() -> None:
    expected = CASES["ViTModel"].build("sdpa")
    with torch.no_grad(), AttentionCapture(expected, rows="all") as reference:
        expected(images())
    for name, function in (("calls_sdpa", calls_sdpa), ("calls_nothing", calls_nothing)):
        model = custom(name, function)
        with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
            model(images())
        assert capture.maps.block_names == capture.block_names
        torch.testing.assert_close(capture.maps.stack(), reference.maps.stack(), atol=2e-5, rtol=0)
    assert capture.maps[0].kernel == "calls_nothing"


def test_a_registered_function_that_is_no_softmax_is_refused() -> None:
    model = custom("computes_something_else", computes_something_else)
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(images())
    with pytest.raises(UnsupportedModelError, match="'computes_something_else' does not compute softmax"):
        _ = capture.maps
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.filterwarnings("ignore")
def test_models_without_python_hooks_are_refused_by_name() -> None:
    linear = nn.Sequential(nn.Linear(2, 2))
    for model, words in (
        (torch.jit.script(linear), "scripted and traced"),
        (torch.jit.trace(linear, torch.ones(1, 2)), "scripted and traced"),
        (torch.fx.symbolic_trace(linear), "fx.GraphModule"),
        (nn.DataParallel(vit()), "nn.DataParallel"),
        ("a string", "expected a torch.nn.Module"),
    ):
        with pytest.raises(UnsupportedModelError, match=words):
            AttentionCapture(model)


class HomeMade(nn.Module):
    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.causal = causal

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


class SelfMade(HomeMade):
    """Known through an adapter."""


class OwnKernel(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


def test_an_unknown_model_needs_blocks_and_layout() -> None:
    model, layout = HomeMade(), TokenLayout(GRID, cls=None)
    with torch.no_grad(), AttentionCapture(model, blocks=["attention"], layout=layout) as capture:
        model(images())
    assert raw_attention(capture.maps).values.shape == (2, *GRID)
    own = nn.Sequential(OwnKernel())
    with torch.no_grad(), AttentionCapture(own, blocks="0", rows="all") as capture:
        own(torch.randn(1, 2, 5, 4))
    assert capture.maps[0].shape == (1, 2, 5, 5)


@pytest.mark.parametrize("rows", ["all", "cls", [2, 0]])
def test_a_two_dimensional_mask_of_multihead_attention(rows) -> None:
    model, weights = HomeMade(causal=True), []
    with torch.no_grad(), AttentionCapture(model, layout=TokenLayout((3, 5), cls=0), rows="all") as everything:
        model(images())
        tokens = model.patches(images()).flatten(2).transpose(1, 2)
        mask = torch.ones(15, 15, dtype=torch.bool).triu(1)
        weights = model.attention(tokens, tokens, tokens, attn_mask=mask, average_attn_weights=False)[1]
    assert everything.forwards
    with torch.no_grad(), AttentionCapture(model, layout=TokenLayout((2, 7), cls=0), rows=rows) as capture:
        model(images())
    expected = {"all": weights, "cls": weights[:, :, :1]}.get(str(rows), weights[:, :, [2, 0]])
    torch.testing.assert_close(capture.maps[0].rows, expected, atol=2e-6, rtol=0)


def test_an_adapter_of_ones_own() -> None:
    def adapter(model):
        site = AttentionSite("attention", model.attention)
        readout = Readout(Rows.MEAN, "a test")
        return ModelAnatomy((site,), None, readout=readout, image_module=model.patches, grid_module=model.patches)

    register(SelfMade, adapter)
    model = nn.ModuleDict({"inner": SelfMade()})
    with torch.no_grad(), AttentionCapture(model) as capture:
        model["inner"](images())
    assert capture.maps.block_names == ("inner.attention",)
    assert capture.maps.readout.reason == "a test"
    assert capture.maps.patch_area == capture.maps.input_size == (24, 40)


class Larger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = vit(), nn.Linear(6, 2)

    def forward(self, batch):
        return self.head(self.backbone(batch["image"]))


def test_a_known_model_inside_a_larger_one() -> None:
    model = Larger()
    with torch.no_grad(), AttentionCapture(model, blocks=["backbone.blocks.1.attn"]) as capture:
        model({"image": images()})
    assert capture.maps.block_names == ("backbone.blocks.1.attn",)
    assert raw_attention(capture.maps).values.shape == (2, *GRID)


def test_maes_patches_stand_where_they_were_cut() -> None:
    case = CASES["ViTMAE"]
    model, restores = case.build(), []
    handle = model.embeddings.register_forward_hook(lambda _, args, output: restores.append(output[2]))
    with torch.no_grad(), AttentionCapture(model) as capture:
        case.feed(model)
    handle.remove()
    block, restore = capture.maps[0], restores[0]
    grid = block.layout.patches(block.rows[:, :, 0])
    kept = block.shape[-1] - 1
    assert 0 < kept < restore.shape[1]
    for image in range(2):
        for patch in range(restore.shape[1]):
            place = int(restore[image, patch])
            got = grid[image, :, patch // grid.shape[-1], patch % grid.shape[-1]]
            if place < kept:
                assert torch.equal(got, block.rows[image, :, 0, 1 + place])
            else:
                assert got.isnan().all()
