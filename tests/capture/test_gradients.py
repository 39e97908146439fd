"""Gradients through fused kernels against autograd through eager attention, and what a capture must not do while it follows them."""

import contextlib
import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from attnhook import AttentionCapture, AttentionMaps, AttentionSite, ModelAnatomy, Readout, raw_attention
from attnhook.capture.output_gradients import AttentionGradient
from attnhook.errors import GradientsNotKeptError, RowsNotKeptError, UnsupportedModelError
from tests.models import GRID, IMAGE, TIMM, TRANSFORMERS, images

SDPA = F.scaled_dot_product_attention

CASES = {case.name: case for case in TIMM + TRANSFORMERS}
FUSED = ["vit", "vit_avg", "vit_qk_norm", "vit_registers", "vit_siglip", "vit_distilled", "eva_rope", "beit"]
TOWERS = [
    "ViTForImageClassification",
    "DeiTWithTeacher",
    "Dinov2ForImageClassification",
    "DINOv3ViT",
    "CLIPVision",
    "SiglipVision",
    "Siglip2Vision",
    "BeitForImageClassification",
]


def score_of(output) -> torch.Tensor:
    """A number that depends on everything that the model answers."""
    if not isinstance(output, torch.Tensor):
        output = next(
            value
            for name in ("logits", "pooler_output", "image_embeds", "last_hidden_state")
            if (value := getattr(output, name, None)) is not None
        )
    weights = torch.randn(output[:1].shape, generator=torch.Generator().manual_seed(3))
    return (output * weights.to(output.dtype)).sum()


def followed(case, implementation: str = "sdpa", **options) -> AttentionMaps:
    model = case.build(implementation)
    with AttentionCapture(model, gradients=True, **options) as capture:
        score_of(case.feed(model)).backward()
    return capture.maps


def explicit_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """What the fused kernel computes, spelt out in autograd."""
    assert not dropout_p
    assert not is_causal
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    weights = scores.softmax(-1)
    weights.retain_grad()
    explicit_attention.weights.append(weights)
    return weights @ value


def eager_gradients(run) -> list[torch.Tensor]:
    """Each call's dA by autograd, every fused kernel of `run` replaced by its definition."""
    explicit_attention.weights, fused = [], F.scaled_dot_product_attention
    F.scaled_dot_product_attention = explicit_attention
    try:
        run().backward()
    finally:
        F.scaled_dot_product_attention = fused
    return [weights.grad for weights in explicit_attention.weights]


def has_gradient(block) -> bool:
    with contextlib.suppress(GradientsNotKeptError):
        return block.gradient is not None
    return False


@pytest.mark.parametrize("name", FUSED + TOWERS)
def test_the_gradient_is_that_of_eager_attention(name: str) -> None:
    case = CASES[name]
    maps = followed(case)
    expected = eager_gradients(lambda: score_of(case.feed(case.build())))
    found = [block for block in maps if has_gradient(block) and block.kernel != "multihead"]  # the pooling of SigLIP
    assert len(found) == sum(gradient is not None for gradient in expected) > 0
    for block, gradient in zip(found, [g for g in expected if g is not None], strict=True):
        assert block.kernel == "scaled_dot_product_attention"
        scale = gradient.abs().max()
        torch.testing.assert_close(block.gradient.dense() / scale, gradient / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["vit", "eva_rope", *TOWERS[:3]])
def test_an_explicit_softmax_gives_the_same(name: str) -> None:
    case = CASES[name]
    fused, eager = followed(case), followed(case, "eager")
    for block, twin in zip(fused, eager, strict=True):
        assert twin.kernel == "softmax"
        scale = twin.gradient.dense().abs().max()
        torch.testing.assert_close(block.gradient.dense() / scale, twin.gradient.dense() / scale, atol=1e-5, rtol=0)
        with pytest.raises(GradientsNotKeptError, match=r"has an explicit softmax.*Read `\.gradient`"):
            twin.output_gradient  # noqa: B018
        with pytest.raises(GradientsNotKeptError, match=r"has no values: expected a fused kernel, got 'softmax'"):
            twin.values  # noqa: B018


def torchvision_vit(**settings) -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5, **settings
    ).eval()


class SpeltOut(nn.Module):
    """What an `nn.MultiheadAttention` computes, spelt out."""

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__()
        self.module = module

    def forward(self, query, key, value, need_weights=True):
        inner = self.module
        weights, biases = inner.in_proj_weight.chunk(3), inner.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (inner.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        self.attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        self.attention.retain_grad()
        return inner.out_proj((self.attention @ v).transpose(1, 2).flatten(2)), None


def test_torchvision_against_attention_spelt_out() -> None:
    model = torchvision_vit()
    with torch.no_grad():
        model.heads.head.weight.normal_()
    twin, pixels = copy.deepcopy(model), torch.randn(2, 3, 16, 16)
    with AttentionCapture(model, gradients=True) as capture:
        output = model(pixels)
        score_of(output).backward()
    layers = [layer for layer in twin.encoder.layers]
    for layer in layers:
        layer.self_attention = SpeltOut(layer.self_attention)
    score_of(twin(pixels)).backward()
    for block, layer in zip(capture.maps, layers, strict=True):
        expected = layer.self_attention.attention
        scale = expected.grad.abs().max()
        assert block.kernel == "multihead"
        assert block.values.shape == block.output_gradient.shape == (2, 4, 17, 8)
        torch.testing.assert_close(block.gradient.dense() / scale, expected.grad / scale, atol=1e-5, rtol=0)
        torch.testing.assert_close(block.weights(), expected.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_unbatched_or_sequence_first_multihead(batch_first: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(16, 4, batch_first=batch_first)).eval()
    tokens = torch.randn(2, 5, 16)
    with AttentionCapture(model, blocks="0", gradients=True) as capture:
        given = tokens if batch_first else tokens.transpose(0, 1)
        output = model[0](given, given, given, need_weights=False)[0]
        score_of(output if batch_first else output.transpose(0, 1)).backward()
    twin = SpeltOut(model[0])
    score_of(twin(tokens, tokens, tokens)[0]).backward()
    torch.testing.assert_close(capture.maps[0].gradient.dense(), twin.attention.grad, atol=1e-5, rtol=0)


def test_an_encoder_layer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    tokens = torch.randn(2, 6, 16)
    with AttentionCapture(model, gradients=True) as capture:
        score_of(model(tokens)).backward()
    expected = eager_gradients(lambda: score_of(model(tokens)))
    for block, gradient in zip(capture.maps, expected, strict=True):
        torch.testing.assert_close(block.gradient.dense(), gradient, atol=1e-5, rtol=0)
    with torch.no_grad(), AttentionCapture(model, gradients=True) as capture:
        model(tokens)
    with pytest.raises(GradientsNotKeptError, match="grad mode was off"):
        capture.maps  # noqa: B018


def test_a_function_at_the_attention_interface() -> None:
    from transformers import AttentionInterface

    def einsum_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        # Neither the fused kernel's attribute nor a softmax that could be seen.
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
        exponentials = torch.exp(scores - scores.amax(-1, keepdim=True))
        weights = exponentials / exponentials.sum(-1, keepdim=True)
        return (weights @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("einsum_attention", einsum_attention)
    case = CASES["ViTForImageClassification"]
    model = case.build("einsum_attention")
    with AttentionCapture(model, gradients=True) as capture:
        score_of(case.feed(model)).backward()
    expected = eager_gradients(lambda: score_of(case.feed(case.build())))
    for block, gradient in zip(capture.maps, expected, strict=True):
        assert block.kernel == "einsum_attention"
        scale = gradient.abs().max()
        torch.testing.assert_close(block.gradient.dense() / scale, gradient / scale, atol=1e-5, rtol=0)


class Grouped(nn.Module):
    """Eight query heads that share two key heads, under a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.kv = nn.Linear(16, 32), nn.Linear(16, 16)
        hidden = torch.rand(6, 6) < 0.3
        self.register_buffer("mask", ~hidden | torch.eye(6, dtype=torch.bool))

    def forward(self, tokens):
        query = self.q(tokens).unflatten(-1, (8, 4)).transpose(1, 2)
        key, value = self.kv(tokens).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, enable_gqa=True)


def test_grouped_queries_and_a_mask() -> None:
    model, tokens = nn.Sequential(Grouped()), torch.randn(2, 6, 16)
    with AttentionCapture(model, blocks="0", gradients=True) as capture:
        score_of(model(tokens)).backward()
    (expected,) = eager_gradients(lambda: score_of(model(tokens)))
    block = capture.maps[0]
    assert block.values.shape == (2, 2, 6, 4)
    assert block.gradient.shape == block.shape == (2, 8, 6, 6)
    torch.testing.assert_close(block.gradient.dense(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(block.gradient.rows([4, 1]), expected[:, :, [4, 1]], atol=1e-5, rtol=0)
    part = block.gradient.head_rows(1, 5, slice(2, 5), torch.empty(99))
    torch.testing.assert_close(part, expected[1, 5, 2:5], atol=1e-5, rtol=0)


# --- what a capture must not do ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "vit_siglip", "ViTForImageClassification", "torchvision"])
def test_nothing_changes(name: str) -> None:
    model = torchvision_vit() if name == "torchvision" else CASES[name].build()
    feed = (lambda m: m(torch.ones(2, 3, 16, 16))) if name == "torchvision" else CASES[name].feed
    output = feed(model)
    score_of(output).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    with AttentionCapture(model, gradients=True) as capture:
        captured = feed(model)
        score_of(captured).backward()
    score = captured if isinstance(captured, torch.Tensor) else captured.logits
    assert torch.equal(score, output if isinstance(output, torch.Tensor) else output.logits)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in expected:
            assert torch.equal(parameter.grad, expected[parameter_name])
    assert hooks == [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()
    ]
    assert F.scaled_dot_product_attention is SDPA
    for block in capture.maps:
        assert not block.values.requires_grad
        assert not block.output_gradient.requires_grad


class Passes:
    """A tensor hook that lives as long as the graph."""

    def __call__(self, gradient):
        return None


def test_the_graph_and_the_capture_do_not_keep_each_other() -> None:
    model = CASES["vit"].build()
    pixels, marks = images(), []

    def mark(module, args, output):
        passes = Passes()
        marks.append(weakref.ref(passes))
        output.register_hook(passes)

    handle = model.blocks[0].attn.register_forward_hook(mark)
    with AttentionCapture(model, gradients=True) as capture:
        output = model(pixels)
    maps = capture.maps
    assert marks[0]() is not None
    del output
    gc.collect()
    assert marks[0]() is None  # the capture and its maps are alive, the graph is not
    handle.remove()
    with capture:
        output = model(pixels)
    kept = weakref.ref(capture.maps[0].captured_gradients)
    capture.clear()
    gc.collect()
    assert kept() is None  # the graph is alive, what was to be filled is not
    output.sum().backward()
    assert len(maps) == 2


def test_a_backward_after_the_context_and_several() -> None:
    model = CASES["vit"].build()
    with AttentionCapture(model, gradients=True) as capture:
        output = model(images())
    maps = capture.maps
    with pytest.raises(GradientsNotKeptError, match=r"no gradient has reached block 'blocks.0.attn'.*score.backward"):
        maps[0].output_gradient  # noqa: B018
    output[:, 1].sum().backward(retain_graph=True)
    first = [block.output_gradient.clone() for block in maps]
    output[:, 2].sum().backward(retain_graph=True)
    with pytest.warns(UserWarning, match="gradients of several scores add up"):
        both = [block.output_gradient.clone() for block in maps]
    with capture:
        output = model(images())
    output[:, 2].sum().backward()
    for block, one, sum_of_both in zip(capture.maps, first, both, strict=True):
        torch.testing.assert_close(block.output_gradient, sum_of_both - one)


def test_forwards_have_their_own_gradients() -> None:
    model = CASES["vit"].build()
    with AttentionCapture(model, gradients=True) as capture:
        outputs = [model(images(seed=seed)) for seed in (1, 2)]
        sum(output[:, 0].sum() for output in outputs).backward()
        singles = []
        for seed in (1, 2):
            model(images(seed=seed))[:, 0].sum().backward()
            singles.append(capture.maps)
    for together, alone in zip(capture.forwards[:2], singles, strict=True):
        for block, single in zip(together, alone, strict=True):
            torch.testing.assert_close(block.output_gradient, single.output_gradient)


def test_gradients_of_pixels_alone_leave_parameters_alone() -> None:
    model = CASES["vit"].build().requires_grad_(requires_grad=False)
    with AttentionCapture(model, gradients=True) as capture:
        model(images())
    with pytest.raises(GradientsNotKeptError, match=r"neither the parameters.*Call pixels\.requires_grad_\(\)"):
        capture.maps  # noqa: B018
    pixels = images().requires_grad_()
    with capture:
        torch.autograd.grad(model(pixels)[:, 3].sum(), pixels)
    assert capture.maps[0].gradient.rows([0]).abs().max() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["vit", "ViTForImageClassification", "torchvision"])
def test_grad_mode_off_is_an_error_with_the_remedy(name: str, guard) -> None:
    model = torchvision_vit() if name == "torchvision" else CASES[name].build()
    with guard(), AttentionCapture(model, gradients=True) as capture:
        model(images(2, size=(16, 16))) if name == "torchvision" else CASES[name].feed(model)
    with pytest.raises(
        GradientsNotKeptError, match=r"grad mode was off when it ran. Run the forward without torch.no_grad"
    ):
        capture.maps  # noqa: B018


def test_rows_are_whole_matrices() -> None:
    model = CASES["vit"].build()
    with pytest.raises(RowsNotKeptError, match=r"expected rows='all', got rows='cls'. Leave rows out"):
        AttentionCapture(model, rows="cls", gradients=True)
    with pytest.raises(RowsNotKeptError, match=r"got rows=\[0\]"):
        AttentionCapture(model, rows=[0], gradients=True)
    maps = followed(CASES["vit"])
    assert raw_attention(maps).values.shape == (2, *GRID)
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(images())
    with pytest.raises(GradientsNotKeptError, match=r"has no gradient: expected a capture with gradients=True"):
        capture.maps[0].gradient  # noqa: B018
    with pytest.raises(GradientsNotKeptError, match=r"has no values: expected a capture with values=True or"):
        capture.maps[0].values  # noqa: B018


def test_values_alone_need_no_gradient() -> None:
    model = CASES["vit"].build()
    with torch.inference_mode(), AttentionCapture(model, values=True) as capture:
        model(images())
    block = capture.maps[-1]
    assert block.rows.shape == (2, 4, 1, 16)
    assert block.values.shape == (2, 4, 16, 8)
    with pytest.raises(GradientsNotKeptError, match="has values but no gradient"):
        block.gradient  # noqa: B018
    with AttentionCapture(model, rows="all", values=True) as capture:
        model(images())
    torch.testing.assert_close(capture.maps[-1].values, block.values)


# --- how models are run --------------------------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, model: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = model, reentrant

    def forward(self, x):
        x = self.inner.patch_embed(x)
        x = self.inner._pos_embed(x)
        for block in self.inner.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.inner.forward_head(self.inner.norm(x))


def test_checkpointing_without_reentry_changes_nothing() -> None:
    case = CASES["vit"]
    model = case.build()
    with AttentionCapture(Checkpointed(model, reentrant=False), gradients=True) as capture:
        score_of(Checkpointed(model, reentrant=False)(images())).backward()
    for block, plain in zip(capture.maps, followed(case), strict=True):
        torch.testing.assert_close(block.output_gradient, plain.output_gradient)


def test_reentrant_checkpointing_is_refused_with_the_remedy() -> None:
    model = Checkpointed(CASES["vit"].build(), reentrant=True)
    with AttentionCapture(model, gradients=True) as capture:
        score_of(model(images())).backward()
    with pytest.raises(GradientsNotKeptError, match=r"checkpoints its blocks, use use_reentrant=False"):
        capture.maps  # noqa: B018


@pytest.mark.parametrize("autocast", [True, False])
def test_low_precision(autocast: bool) -> None:
    case = CASES["vit"]
    model = case.build() if autocast else case.build().bfloat16()
    pixels = images() if autocast else images().bfloat16()
    with AttentionCapture(model, gradients=True) as capture, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        score_of(model(pixels)).backward()
    for block, precise in zip(capture.maps, followed(case), strict=True):
        assert block.output_gradient.dtype is block.values.dtype is torch.bfloat16
        found, expected = block.gradient.dense(), precise.gradient.dense()
        assert found.dtype is torch.float32
        assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.97
        exact = block.output_gradient.double() @ block.values.double().mT
        torch.testing.assert_close(found.double(), exact, atol=1e-5 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("name", ["vit", "torchvision"])
def test_dropout_inside_a_fused_kernel_is_refused(name: str) -> None:
    model = torchvision_vit(attention_dropout=0.2) if name == "torchvision" else _dropping()
    pixels = images(2, size=(16, 16)) if name == "torchvision" else images()
    with AttentionCapture(model, gradients=True) as capture:
        model(pixels)
        assert len(capture.maps) == 2  # eval mode: nothing is dropped
    model.train()
    with capture:
        model(pixels)
    with pytest.raises(UnsupportedModelError, match=r"expected no attention dropout, got 0\.2.*Call model\.eval\(\)"):
        capture.maps  # noqa: B018


def _dropping() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(IMAGE, 8, embed_dim=32, depth=2, num_heads=4, attn_drop_rate=0.2, num_classes=3).eval()


def test_dropout_behind_an_explicit_softmax_is_exact() -> None:
    from timm.layers import set_fused_attn, use_fused_attn

    before = use_fused_attn()
    set_fused_attn(enable=False)
    try:
        model = _dropping().train()
    finally:
        set_fused_attn(before)
    seen = []
    handles = [
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: (args[0].retain_grad(), seen.append(args[0]))[0])
        for block in model.blocks
    ]
    with AttentionCapture(model, gradients=True) as capture:
        score_of(model(images())).backward()
    for handle in handles:
        handle.remove()
    for block, weights in zip(capture.maps, seen, strict=True):
        assert torch.equal(block.gradient.dense(), weights.grad)


def test_a_score_that_reads_returned_weights_is_not_half_followed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(16, 4, batch_first=True)).eval()
    tokens = torch.randn(2, 5, 16)
    with AttentionCapture(model, blocks="0", gradients=True) as capture:
        output, weights = model[0](tokens, tokens, tokens)
        output.sum().backward(retain_graph=True)
        assert capture.maps[0].gradient.shape == (2, 4, 5, 5)
        (output.sum() + weights[:, 0, 1].sum()).backward()
    for maps in (capture.maps, capture.maps.to("cpu"), copy.deepcopy(capture.maps)):
        with pytest.raises(GradientsNotKeptError, match=r"is incomplete.*Leave them out of the score"):
            maps[0].gradient  # noqa: B018


def test_transforms_of_functions_are_refused() -> None:
    model = CASES["vit"].build()
    with AttentionCapture(model, gradients=True) as capture:
        torch.func.grad(lambda pixels: model(pixels)[:, 0].sum())(images())
    with pytest.raises(UnsupportedModelError, match=r"inside a transform of torch\.func"):
        capture.maps  # noqa: B018


# --- moving, saving ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_save_load_and_move(implementation: str, tmp_path) -> None:
    maps = followed(CASES["vit"], implementation)
    maps.save(tmp_path / "maps.safetensors")
    for copied in (AttentionMaps.load(tmp_path / "maps.safetensors"), maps.to("cpu"), maps[:]):
        for block, kept in zip(copied, maps, strict=True):
            torch.testing.assert_close(block.weights(), kept.weights())
            assert torch.equal(block.gradient.dense(), kept.gradient.dense())
            if implementation == "sdpa":
                assert torch.equal(block.values, kept.values)
    assert maps.to("meta")[0].output_gradient.device.type == "meta" if implementation == "sdpa" else True


def test_neither_saved_nor_moved_before_the_gradient(tmp_path) -> None:
    model = CASES["vit"].build()
    with AttentionCapture(model, gradients=True) as capture:
        model(images())
    with pytest.raises(
        GradientsNotKeptError, match=r"cannot be moved, copied or saved before its gradient has arrived"
    ):
        capture.maps.save(tmp_path / "maps.safetensors")
    with pytest.raises(GradientsNotKeptError, match=r"expected score\.backward\(\) first"):
        capture.maps.to("cpu")
    assert not list(tmp_path.iterdir())


def test_kept_on_another_device() -> None:
    case = CASES["vit"]
    for block, plain in zip(followed(case, device="cpu"), followed(case), strict=True):
        assert torch.equal(block.output_gradient, plain.output_gradient)
        assert torch.equal(block.values, plain.values)


def test_what_it_says_of_itself() -> None:
    block = followed(CASES["vit"])[0]
    assert repr(block.gradient) == (
        "AttentionGradient(shape=(2, 4, 16, 16), from the output's gradient and the values)"
    )
    assert "dense" in repr(AttentionGradient(torch.zeros(1, 1, 2, 2)))


def test_an_adapter_of_ones_own() -> None:
    model = nn.Sequential(Grouped())
    anatomy = ModelAnatomy(sites=(AttentionSite("0", model[0]),), cls=None, readout=Readout("mean", "a test"))
    assert anatomy.sites[0].arranged_outcome(torch.zeros(2, 5, 4)).shape == (2, 1, 5, 4)
