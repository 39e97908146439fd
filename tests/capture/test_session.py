"""The context manager: nothing left on the model, every condition recorded exactly or refused loudly."""

import copy
import io
import threading
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from attnhook import AttentionCapture, AttentionSite, ModelAnatomy, TokenLayout, raw_attention, register_adapter
from attnhook.capture.sites import Kernel
from attnhook.errors import (
    BlockNotCapturedError,
    NoClassTokenError,
    NoReadoutError,
    NothingCapturedError,
    TokenLayoutError,
    UnknownBlockError,
    UnsupportedModelError,
)
from tests.models import GRID, TIMM, TRANSFORMERS, images, sharpen

CASES = {case.name: case for case in TIMM + TRANSFORMERS}
FUSED = F.scaled_dot_product_attention


def torchvision_vit(implementation: str = "sdpa") -> nn.Module:
    from torchvision.models import VisionTransformer

    return sharpen(
        VisionTransformer(
            image_size=24, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5
        )
    )


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: CASES["vit"].build(),
    "timm-unfused": lambda: CASES["vit"].build("eager"),
    "hf": lambda: CASES["ViTModel"].build(),
    "hf-eager": lambda: CASES["ViTModel"].build("eager"),
    "torchvision": torchvision_vit,
}


def pixels_for(name: str) -> torch.Tensor:
    return images(size=(24, 24)) if name == "torchvision" else images()


def first(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def traces(model: nn.Module) -> tuple:
    hooks = [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._forward_hooks_always_called) for m in model.modules()
    ]
    modes = [m.training for m in model.modules()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    watching = (
        F.scaled_dot_product_attention is FUSED,
        torch._C._len_torch_function_stack(),
    )
    return hooks, modes, attributes, grads, watching, torch.get_rng_state().tolist()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["body", "model"])
@pytest.mark.parametrize("name", BUILDERS)
def test_nothing_is_left_behind_by_an_exception(name: str, where: str, error: type[BaseException]) -> None:
    model, pixels = BUILDERS[name](), pixels_for(name)
    inner = [
        m
        for n, m in model.named_modules()
        if n.endswith(("proj", "o_proj", "attention.output.dense", "out_proj", "mlp"))
    ][-1]

    def fail(*_):
        raise error("on purpose")

    handle = inner.register_forward_pre_hook(fail) if where == "model" else None
    before = traces(model)
    capture = AttentionCapture(model)
    with pytest.raises(error, match="on purpose"), capture:  # noqa: PT012 (one of the two raises)
        model(pixels)
        fail()
    assert traces(model) == before
    if handle is not None:
        handle.remove()
    with torch.no_grad(), capture:
        model(pixels)
    assert len(capture.maps) == 2


def test_a_failure_half_way_in_enter_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BUILDERS["timm"]()
    before = traces(model)

    def failing(module, *args, **kwargs):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(nn.Module, "register_forward_hook", failing)
    with pytest.raises(RuntimeError, match="on purpose"):
        AttentionCapture(model).__enter__()
    assert traces(model) == before


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", BUILDERS)
def test_precision_and_modes(name: str, dtype: torch.dtype, autocast: bool) -> None:
    for training in (False, True):
        model = BUILDERS[name]().to(dtype).train(training)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3
        pixels = pixels_for(name).to(dtype)
        for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                torch.manual_seed(0)
                bare = first(model(pixels))
                state = torch.get_rng_state()
                torch.manual_seed(0)
                with AttentionCapture(model) as capture:
                    captured = first(model(pixels))
                assert torch.equal(bare, captured)
                assert torch.equal(torch.get_rng_state(), state)
            rows = capture.maps.stack()
            assert rows.dtype is torch.float32
            assert not rows.requires_grad
            assert not rows.is_inference()
            torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", BUILDERS)
def test_gradients_are_the_same(name: str) -> None:
    model, pixels = BUILDERS[name](), pixels_for(name)
    first(model(pixels)).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with AttentionCapture(model, rows="all"):
        first(model(pixels)).square().sum().backward()
    got = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_low_precision_rows_are_the_softmax_of_the_models_own_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = BUILDERS["timm"]().bfloat16(), []

    def recording(q, k, v, **kwargs):
        seen.append(torch.softmax(q.double() @ k.double().transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1))
        return FUSED(q, k, v, **kwargs)

    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(images().bfloat16())
    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    with torch.no_grad():
        model(images().bfloat16())
    for block, expected in zip(capture.maps, seen, strict=True):
        torch.testing.assert_close(block.weights().double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["timm", "hf", "torchvision"])
def test_identity_blocks_as_values_give_the_matrix(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel itself, fed blocks of the identity as V, spells the matrix out; nothing of ours computes a softmax."""
    model, pixels, spelt = BUILDERS[name](), pixels_for(name), []

    def spelling(q, k, v, *args, **kwargs):
        identity = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
        width = v.shape[-1]
        columns = [
            FUSED(q, k, part, *args, **kwargs) for part in nn.functional.pad(identity, (0, width)).split(width, dim=-1)
        ]
        spelt.append(torch.cat(columns, dim=-1)[..., : k.shape[2]])
        return FUSED(q, k, v, *args, **kwargs)

    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(pixels)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spelling)
    if name == "torchvision":
        monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
        model.requires_grad_(requires_grad=True)
    with torch.enable_grad():
        model(pixels)
    assert len(spelt) == 2
    for block, expected in zip(capture.maps, spelt, strict=True):
        torch.testing.assert_close(block.weights(), expected.detach(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("how", ["torch.compile", "model.compile", "block.compile"])
def test_compiled_models_three_times_in_a_row(how: str) -> None:
    model = BUILDERS["timm"]()
    run = torch.compile(model, backend="eager") if how == "torch.compile" else model
    if how == "model.compile":
        model.compile(backend="eager")
    if how == "block.compile":
        model.blocks[1].compile(backend="eager")
    with torch.no_grad():
        expected = run(images())
        for _ in range(3):
            with AttentionCapture(run) as capture:
                run(images())
            assert len(capture.maps) == 2
        torch.testing.assert_close(run(images()), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_records_each_block_once(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = CASES["vit"].build().train()

        def forward(self, pixels):
            tokens = self.vit._pos_embed(self.vit.patch_embed(pixels))
            for block in self.vit.blocks:
                tokens = checkpoint(block, tokens, use_reentrant=reentrant)
            return tokens

    model = Checkpointed()
    with AttentionCapture(model) as capture:
        model(images().requires_grad_()).sum().backward()
    assert len(capture.forwards) == 1
    assert capture.maps.block_names == ("vit.blocks.0.attn", "vit.blocks.1.attn")


def test_copies_made_inside_a_context_carry_no_live_hook() -> None:
    model = BUILDERS["timm"]()
    file = io.BytesIO()
    with torch.no_grad(), AttentionCapture(model) as capture:
        copied = copy.deepcopy(model)
        torch.save(model, file)
        copied(images())
        assert capture.forwards == ()
        model(images())
    file.seek(0)
    torch.load(file, weights_only=False)(images())
    assert len(capture.forwards) == 1


def test_a_forward_on_another_thread_is_not_an_empty_result() -> None:
    model = BUILDERS["timm"]()
    with AttentionCapture(model) as capture:
        thread = threading.Thread(target=lambda: model(images()))
        thread.start()
        thread.join()
    with pytest.raises(NothingCapturedError, match="another thread"):
        _ = capture.maps


def test_two_threads_each_see_their_own_batch() -> None:
    model, shapes = BUILDERS["timm"](), {}
    barrier = threading.Barrier(2)

    def work(batch: int) -> None:
        with torch.no_grad(), AttentionCapture(model) as capture:
            for _ in range(5):
                barrier.wait()
                model(images(batch))
        shapes[batch] = {maps[-1].shape[0] for maps in capture.forwards}, len(capture.forwards)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == {1: ({1}, 5), 3: ({3}, 5)}
    assert F.scaled_dot_product_attention is FUSED


def call_kernel(operands):
    return F.scaled_dot_product_attention(*operands)


class NestedBlock(nn.Module):
    def forward(self, tokens):
        return call_kernel((tokens, 2 * tokens, tokens))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = NestedBlock(), NestedBlock()

    def forward(self, tokens):
        F.scaled_dot_product_attention(tokens, tokens, tokens)  # of no block
        return self.second(self.first(tokens))


def test_the_caller_of_a_fused_kernel_is_found_on_the_call_stack() -> None:
    model = Nested()
    sites = tuple(AttentionSite(name, getattr(model, name), Kernel.SDPA) for name in ("first", "second"))
    register_adapter(Nested, lambda _: ModelAnatomy(sites=sites))
    tokens = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))

    def of_no_block():
        block = model.first
        return F.scaled_dot_product_attention(tokens, tokens, tokens), block  # a local variable asks for nothing

    with torch.no_grad(), AttentionCapture(model, rows="all", layout=TokenLayout((2, 2))) as capture:
        of_no_block()
        assert not capture.forwards
        between = model.first(tokens)
        capture.clear()
        model(tokens)
    assert capture.maps.block_names == ("first", "second")
    for block, seen in zip(capture.maps, (tokens, between), strict=True):
        expected = torch.softmax(seen @ (2 * seen).mT * 4**-0.5, dim=-1)
        torch.testing.assert_close(block.rows, expected, atol=1e-6, rtol=0)


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, tokens):
        return F.scaled_dot_product_attention(tokens, tokens, tokens, scale=self.scale)


@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("scale", [None, 0.0, 2.0])
def test_the_scale_is_that_of_the_call(scale: float | None, rows: str) -> None:
    block = Scaled(scale)
    register_adapter(Scaled, lambda model: ModelAnatomy(sites=(AttentionSite("block", model, Kernel.SDPA),)))
    tokens = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), AttentionCapture(block, rows=rows, layout=TokenLayout((2, 2))) as capture:
        block(tokens)
    expected = torch.softmax(tokens @ tokens.mT * (0.5 if scale is None else scale), dim=-1)
    kept = capture.maps[0].rows
    torch.testing.assert_close(kept, expected[:, :, : kept.shape[2]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", ["cls", "all"])
def test_autocast_does_not_round_the_rows_of_a_single_image(rows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, truth = CASES["vit"].build(), []

    def spy(query, key, value, **kwargs):
        scores = query.detach().double() @ key.detach().double().mT * query.shape[-1] ** -0.5
        truth.append(torch.softmax(scores, dim=-1))
        return FUSED(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), AttentionCapture(model, rows=rows) as capture:
        model(images(1))
    for block, matrix in zip(capture.maps, truth, strict=True):
        torch.testing.assert_close(block.rows.double(), matrix[:, :, : block.shape[2]], atol=1e-6, rtol=0)


def test_nested_captures_both_complete() -> None:
    model = BUILDERS["timm"]()
    with torch.no_grad(), AttentionCapture(model) as outer, AttentionCapture(model, rows="all") as inner:
        model(images())
    assert torch.equal(outer.maps[1].rows, inner.maps[1].matrix.rows([0]))


def test_several_forwards_of_different_sizes_pause_and_clear() -> None:
    model = CASES["vit_dynamic"].build()
    with torch.no_grad(), AttentionCapture(model) as capture:
        model.forward_features(images(size=(16, 32)))
        with capture.paused():
            model(images(size=(8, 8)))
        model(images(size=(32, 8)))
        assert [maps.layout.grid for maps in capture.forwards] == [(2, 4), (4, 1)]
        assert raw_attention(capture.maps).values.shape == (2, 4, 1)
        capture.clear()
        with pytest.raises(NothingCapturedError, match="got none"):
            _ = capture.maps


def test_registered_attention_functions_of_transformers() -> None:
    from transformers import AttentionInterface

    def unseen(module, q, k, v, mask, scaling=None, **_):
        scores = torch.exp((q @ k.transpose(-1, -2)) * scaling)
        return ((scores / scores.sum(-1, keepdim=True)) @ v).transpose(1, 2).contiguous(), None

    def different(module, q, k, v, mask, **_):
        return (torch.relu(q @ k.transpose(-1, -2)) @ v).transpose(1, 2).contiguous(), None

    def fused(module, q, k, v, mask, scaling=None, **_):
        return FUSED(q, k, v, scale=scaling).transpose(1, 2).contiguous(), None

    for function in (unseen, different, fused):
        AttentionInterface.register(function.__name__, function)
    try:
        results = {}
        for name in ("sdpa", "unseen", "fused", "different"):
            model = CASES["ViTModel"].build(name)
            with torch.no_grad(), AttentionCapture(model) as results[name]:
                model(images())
        torch.testing.assert_close(results["unseen"].maps.stack(), results["sdpa"].maps.stack(), atol=2e-5, rtol=0)
        assert torch.equal(results["fused"].maps.stack(), results["sdpa"].maps.stack())
        assert results["unseen"].maps[0].kernel == "unseen"
        with pytest.raises(UnsupportedModelError, match="does not compute softmax"):
            _ = results["different"].maps
    finally:
        for function in (unseen, different, fused):
            del AttentionInterface._global_mapping[function.__name__]


def test_mae_patches_go_back_where_they_came_from() -> None:
    case = CASES["ViTMAE"]
    model = case.build()
    with torch.no_grad(), AttentionCapture(model) as capture:
        output = case.feed(model)
    rows, maps = capture.maps[-1].rows, raw_attention(capture.maps, heads=None).values
    kept = rows.shape[-1] - 1
    for image in range(2):
        for patch in range(9):
            place = int(output.ids_restore[image, patch])  # where the patch went in the shuffled sequence
            value = maps[image, :, patch // 3, patch % 3]
            if place < kept:
                assert torch.equal(value, rows[image, :, 0, 1 + place])
            else:
                assert value.isnan().all()


class HomeMade(nn.Module):
    """A ViT that no adapter knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.qkv = nn.Linear(16, 48)
        self.attend = Attend()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.attend(self.qkv(self.embed(pixels).flatten(2).mT)).mean(1)


class Attend(nn.Module):
    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return (torch.softmax(q @ k.mT / 8**0.5, dim=-1) @ v).transpose(1, 2).flatten(2)


def test_an_unknown_model_with_blocks_and_layout() -> None:
    model = sharpen(HomeMade())
    with pytest.raises(UnsupportedModelError, match="register_adapter"):
        AttentionCapture(model)
    with torch.no_grad(), AttentionCapture(model, blocks=["attend"], layout=TokenLayout(GRID, cls=None)) as capture:
        model(images())
    assert raw_attention(capture.maps).values.shape == (2, *GRID)
    torch.testing.assert_close(raw_attention(capture.maps).values.sum((1, 2)), torch.ones(2))


def test_blocks_that_do_not_run_and_kernels_that_are_not_seen() -> None:
    model = BUILDERS["timm"]()
    with torch.no_grad(), AttentionCapture(model) as capture:
        model.forward_intermediates(images(), indices=[0], stop_early=True, intermediates_only=True)
    with pytest.raises(BlockNotCapturedError, match=r"did not run in the last forward, .*: 1 of 2"):
        _ = capture.maps
    hidden = sharpen(HomeMade())
    with torch.no_grad(), AttentionCapture(hidden, blocks=["qkv"], layout=TokenLayout(GRID, cls=None)) as capture:
        hidden(images())
    with pytest.raises(BlockNotCapturedError, match=r"ran, but no attention call was seen"):
        _ = capture.maps


def test_dropped_patches_have_rows_and_no_grid() -> None:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=(24, 40), patch_size=8, embed_dim=32, depth=1, num_heads=4, patch_drop_rate=0.5
    ).train()
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(images())
    assert capture.maps[0].rows.shape == (2, 4, 1, 8)
    with pytest.raises(TokenLayoutError, match=r"expected 16 = 1 class \+ 3x5 patch tokens, got 8"):
        raw_attention(capture.maps)


@pytest.mark.parametrize("blocks", ["nope", 3, 0, [-3], ["blocks.0"], lambda name: False])
def test_unknown_blocks(blocks: object) -> None:
    with pytest.raises(UnknownBlockError, match="expected"):
        AttentionCapture(BUILDERS["timm"](), blocks=blocks)


@pytest.mark.parametrize(
    ("blocks", "names"),
    [(1, [1]), (2, [0, 1]), ([0], [0]), ([-1], [1]), ("blocks.0.attn", [0]), (lambda name: "1" in name, [1])],
)
def test_block_selectors_mean_what_they_mean_in_timm(blocks: object, names: list[int]) -> None:
    capture = AttentionCapture(BUILDERS["timm"](), blocks=blocks)
    assert capture.block_names == tuple(f"blocks.{number}.attn" for number in names)


def test_rows_that_a_model_does_not_have() -> None:
    with pytest.raises(NoClassTokenError, match=r"has no class token.*'mean'"):
        AttentionCapture(CASES["vit_reg_gap"].build(), rows="cls")
    with pytest.raises(NoReadoutError, match="no attention pooling"):
        AttentionCapture(CASES["vit"].build(), rows="pool")
    with pytest.raises(ValueError, match="expected one of 'cls', 'pool', 'mean', 'readout', 'all'"):
        AttentionCapture(CASES["vit"].build(), rows="class")


def test_chosen_patches_and_tokens() -> None:
    model = CASES["vit_registers"].build()
    with (
        torch.no_grad(),
        AttentionCapture(model, rows="all") as everything,
        AttentionCapture(model, rows=[(1, 2), 0, -1]) as chosen,
    ):
        model(images())
    expected = everything.maps[-1].weights()[:, :, [5 + 1 * GRID[1] + 2, 0, 19]]
    torch.testing.assert_close(chosen.maps[-1].rows, expected, atol=1e-6, rtol=0)


def test_models_that_cannot_be_captured() -> None:
    vit = BUILDERS["timm"]()
    for model, words in (
        (nn.DataParallel(vit), "DataParallel"),
        (timm.create_model("resnet18"), "ResNet has no softmax attention"),
        (nn.ModuleList([vit, BUILDERS["timm"]()]), "several models"),
        ("vit", "expected a torch.nn.Module"),
    ):
        with pytest.raises(UnsupportedModelError, match=words):
            AttentionCapture(model)


def test_maps_are_saved_and_loaded(tmp_path) -> None:
    from attnhook import AttentionMaps

    for name, rows in (("vit", "readout"), ("ViTMAE", "all"), ("vit_registers", [(0, 1), 3])):
        case = CASES[name]
        model = case.build()
        with torch.no_grad(), AttentionCapture(model, rows=rows) as capture:
            case.feed(model)
        capture.maps.save(tmp_path / "maps.safetensors")
        loaded = AttentionMaps.load(tmp_path / "maps.safetensors")
        assert torch.equal(loaded.stack(), capture.maps.stack())
        assert (loaded.block_names, loaded.readout, loaded.patch_area) == (
            capture.maps.block_names,
            capture.maps.readout,
            capture.maps.patch_area,
        )
        row = 0 if name == "vit_registers" else None
        assert torch.equal(
            raw_attention(loaded, row=row).values.nan_to_num(), raw_attention(capture.maps, row=row).values.nan_to_num()
        )
    assert [path.name for path in tmp_path.iterdir()] == ["maps.safetensors"]
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(NothingCapturedError, match="expected a safetensors file"):
        AttentionMaps.load(tmp_path / "bad.safetensors")
