"""A capture leaves everything as it found it: output, gradients, random numbers, hooks, process-wide attributes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnhook import AttentionCapture
from attnhook.errors import UnknownBlockError
from tests.models import IMAGE, TIMM, TRANSFORMERS, images

CASES = {case.name: case for case in TIMM + TRANSFORMERS}


def torchvision_vit(dropout: float = 0.0) -> nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(24, 8, 2, 4, 32, 48, attention_dropout=dropout, num_classes=6).eval()


def hf_vit(implementation: str, dropout: float = 0.0) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=IMAGE,
        patch_size=8,
        attention_probs_dropout_prob=dropout,
    )
    config._attn_implementation = implementation
    return ViTModel(config).eval()


def timm_vit(dropout: float = 0.0) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        IMAGE, 8, embed_dim=32, depth=2, num_heads=4, num_classes=6, attn_drop_rate=dropout, proj_drop_rate=dropout
    ).eval()


BUILD = {
    "timm": timm_vit,
    "sdpa": lambda dropout=0.0: hf_vit("sdpa", dropout),
    "eager": lambda dropout=0.0: hf_vit("eager", dropout),
    "torchvision": torchvision_vit,
}
each_model = pytest.mark.parametrize("name", BUILD)


def photos(name: str) -> torch.Tensor:
    return images(2, size=(24, 24)) if name == "torchvision" else images(2)


def output_of(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    output = model(batch)
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


def state_of(model: nn.Module) -> dict:
    from transformers.models.vit import modeling_vit

    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
    return {
        "hooks": [[len(getattr(m, hook)) for hook in hooks] for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "grad": [p.requires_grad for p in model.parameters()],
        "sdpa": id(F.scaled_dot_product_attention),
        "interface": dict(modeling_vit.ALL_ATTENTION_FUNCTIONS._local_mapping),
        "modes": torch._C._len_torch_function_stack(),
        "stance": torch._dynamo.eval_frame._stance.stance,
        "grad mode": torch.is_grad_enabled(),
        "keys": [list(vars(m)) for m in model.modules()],
    }


class Watch:
    """Compares what must not change around a piece of code."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = state_of(model)
        self.weights = copy.deepcopy(model.state_dict())

    def check(self) -> None:
        assert state_of(self.model) == self.before
        assert all(torch.equal(value, self.weights[name]) for name, value in self.model.state_dict().items())


@each_model
def test_nothing_changes_when_all_goes_well(name: str) -> None:
    model, batch = BUILD[name](), photos(name)
    next(model.parameters()).requires_grad_(False)
    model.train()
    next(iter(model.children())).eval()
    watch, rng = Watch(model), torch.get_rng_state()
    with AttentionCapture(model) as capture:
        output_of(model, batch)
    assert len(capture.maps) == 2
    watch.check()
    assert torch.equal(torch.get_rng_state(), rng)


@each_model
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["body", "model"])
def test_nothing_stays_behind_an_error(name: str, error: type[BaseException], where: str) -> None:
    model, batch = BUILD[name](), photos(name)
    linear = next(
        m
        for n, m in model.named_modules()
        if n.endswith(("attn.proj", "o_proj", "attention.output.dense", "mlp.0", "mlp.linear_1"))
    )

    def fail(*_) -> None:
        raise error("on purpose")

    handle = linear.register_forward_hook(fail) if where == "model" else None
    watch = Watch(model)

    def run() -> None:
        with AttentionCapture(model):
            output_of(model, batch)
            raise error("on purpose")

    with pytest.raises(error, match="on purpose"):
        run()
    watch.check()
    if handle is not None:
        handle.remove()
    with AttentionCapture(model) as capture:
        output_of(model, batch)
    assert capture.maps.block_names == capture.block_names


@each_model
def test_interrupted_forwards_inside_one_context_leave_no_scope_open(name: str) -> None:
    model, batch = BUILD[name](), photos(name)
    watch = Watch(model)
    linear = next(
        m
        for n, m in model.named_modules()
        if n.endswith(("attn.proj", "o_proj", "attention.output.dense", "mlp.0", "mlp.linear_1"))
    )

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    with AttentionCapture(model) as capture:
        handle = linear.register_forward_hook(interrupt)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                output_of(model, batch)
        handle.remove()
        output_of(model, batch)
    watch.check()
    assert capture.maps.block_names == capture.block_names


@each_model
def test_an_exception_closes_its_scope_before_the_context_ends(name: str) -> None:
    model, batch = BUILD[name](), photos(name)
    linear = next(
        m
        for n, m in model.named_modules()
        if n.endswith(("attn.proj", "o_proj", "attention.output.dense", "mlp.0", "mlp.linear_1"))
    )

    def fail(*_) -> None:
        raise ValueError("on purpose")

    linear.register_forward_hook(fail)
    with AttentionCapture(model):
        with pytest.raises(ValueError, match="on purpose"):
            output_of(model, batch)
        assert torch._C._len_torch_function_stack() == 0


@each_model
def test_a_bad_block_name_touches_nothing(name: str) -> None:
    model = BUILD[name]()
    watch = Watch(model)
    with pytest.raises(UnknownBlockError, match="unknown block 'nowhere'"):
        AttentionCapture(model, blocks="nowhere")
    watch.check()


@each_model
@pytest.mark.parametrize("nth", [0, 1])
def test_entering_that_fails_half_way_takes_its_hooks_off(name: str, nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = BUILD[name]()
    watch = Watch(model)
    calls = []

    def failing_after_nth(register):
        def failing(self, *args, **kwargs):
            calls.append(self)
            if len(calls) > nth:
                raise RuntimeError("no more hooks")
            return register(self, *args, **kwargs)

        return failing

    capture = AttentionCapture(model)
    with monkeypatch.context() as patch:
        for kind in ("register_forward_hook", "register_forward_pre_hook"):
            patch.setattr(nn.Module, kind, failing_after_nth(getattr(nn.Module, kind)))
        with pytest.raises(RuntimeError, match="no more hooks"):
            capture.__enter__()
    watch.check()
    with capture:
        output_of(model, photos(name))
    assert len(capture.maps) == 2


@each_model
@pytest.mark.parametrize("rows", ["readout", "mean", "all"])
def test_gradients_are_the_same_bit_for_bit(name: str, rows: str) -> None:
    model, batch = BUILD[name](), photos(name)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        output_of(model, batch).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    bare = gradients()
    with AttentionCapture(model, rows=rows) as capture:
        watched = gradients()
    assert len(capture.maps) == 2
    assert len(bare) > 10
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))


@each_model
@pytest.mark.parametrize("rows", ["readout", "mean", "all"])
def test_dropout_draws_the_same_numbers_and_rows_are_those_before_it(name: str, rows: str) -> None:
    model, batch = BUILD[name](0.5), photos(name)
    with AttentionCapture(model, rows=rows) as capture:
        model(batch)
    without = capture.maps[0].rows  # of the first block, which no dropout comes before
    model.train()
    torch.manual_seed(7)
    bare = output_of(model, batch)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    with AttentionCapture(model, rows=rows) as capture:
        watched = output_of(model, batch)
    assert torch.equal(bare, watched)
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(capture.maps[0].rows, without, atol=1e-6, rtol=0)
    for block in capture.maps:
        torch.testing.assert_close(block.rows.sum(-1), torch.ones(block.shape[:-1]), atol=1e-5, rtol=0)


@each_model
@pytest.mark.parametrize("rows", ["readout", "mean", "all"])
@pytest.mark.parametrize("precision", ["bf16", "autocast", "float64"])
def test_rows_in_every_precision_are_float32_and_sum_to_one(name: str, rows: str, precision: str) -> None:
    kind = {"bf16": torch.bfloat16, "autocast": torch.float32, "float64": torch.float64}[precision]
    model, batch = BUILD[name]().to(kind), photos(name).to(kind)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        bare = output_of(model, batch)
        with AttentionCapture(model, rows=rows) as capture:
            watched = output_of(model, batch)
        inside = capture.maps[0].rows
    assert torch.equal(bare, watched)
    assert inside.dtype is torch.float32
    for block in capture.maps:
        assert block.rows.dtype is torch.float32
        torch.testing.assert_close(block.rows.sum(-1), torch.ones(block.shape[:-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["timm", "sdpa"])
@pytest.mark.parametrize("precision", ["bf16", "autocast", "float32"])
def test_rows_are_the_float64_softmax_of_the_models_own_queries_and_keys(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    model, batch = BUILD[name]().to(kind), photos(name).to(kind)
    calls: list[torch.Tensor] = []
    sdpa = F.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        scores = query.double() @ key.double().transpose(-1, -2) * query.shape[-1] ** -0.5
        calls.append(scores.exp() / scores.exp().sum(-1, keepdim=True))
        return sdpa(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")
    with torch.no_grad(), autocast, AttentionCapture(model, rows="all") as capture:
        output_of(model, batch)
    assert F.scaled_dot_product_attention is spy
    for block, expected in zip(capture.maps, calls, strict=True):
        torch.testing.assert_close(block.rows.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["vit", "ViTModel"])
def test_values_that_are_the_identity_make_the_kernel_print_its_matrix(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, matrices = CASES[name].build(), images(2), []
    sdpa = F.scaled_dot_product_attention

    def oracle(query, key, value, **kwargs):
        one_hot = torch.eye(key.shape[-2]).expand(*key.shape[:2], -1, -1)
        matrices.append(sdpa(query, key, one_hot, **kwargs))  # A @ I = A
        return sdpa(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", oracle)
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(batch)
    for block, matrix in zip(capture.maps, matrices, strict=True):
        torch.testing.assert_close(block.rows, matrix, atol=2e-5, rtol=0)


def test_one_hot_values_make_torchvisions_attention_print_its_matrix() -> None:
    model, inputs = torchvision_vit(), []
    module = model.encoder.layers[0].self_attention
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(photos("torchvision"))
    handle.remove()
    (tokens,), width, dim = inputs, 32, 8
    oracle = copy.deepcopy(module)
    with torch.no_grad():
        # Values select 8 tokens at a time: W_v is the identity and the values handed in are one-hot.
        oracle.in_proj_weight[2 * width :] = torch.eye(width)
        oracle.in_proj_bias[2 * width :] = 0
        oracle.out_proj.weight.copy_(torch.eye(width))
        oracle.out_proj.bias.zero_()
        columns = []
        for first in range(0, tokens.shape[1], dim):
            values = torch.zeros(tokens.shape[1], dim)
            for column in range(min(dim, tokens.shape[1] - first)):
                values[first + column, column] = 1
            seen = oracle(tokens, tokens, values.repeat(2, 1, 4), need_weights=False)[0]
            columns.append(seen.view(2, -1, 4, dim).transpose(1, 2))
    matrix = torch.cat(columns, -1)[..., : tokens.shape[1]]
    torch.testing.assert_close(capture.maps[0].rows, matrix, atol=2e-5, rtol=0)
