"""Windowed, hierarchical and video models of transformers: exact rows, and layouts that put every key where the model cut it."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnhook import AttentionCapture, TokenLayout, WindowLayout, raw_attention, received_attention
from attnhook.errors import NoReadoutError, UnsupportedModelError

transformers = pytest.importorskip("transformers")

SWIN = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "patch_size": 4, "image_size": 64}
SAM = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
HIERA = {"embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 4], "image_size": [64, 96], "num_query_pool": 2}
PYRAMID = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 2, 2]}
MODELS = {
    "swin": ("SwinModel", "SwinConfig", {**SWIN, "window_size": 3}, (64, 80)),
    "swinv2": ("Swinv2Model", "Swinv2Config", {**SWIN, "window_size": 4}, (64, 64)),
    "donut": ("DonutSwinModel", "DonutSwinConfig", {**SWIN, "window_size": 3}, (64, 80)),
    "sam": (
        "SamVisionModel",
        "SamVisionConfig",
        {**SAM, "window_size": 3, "global_attn_indexes": [1], "output_channels": 8, "mlp_dim": 16},
        (64, 64),
    ),
    "vitdet": ("VitDetModel", "VitDetConfig", {**SAM, "window_size": 3, "window_block_indices": [0]}, (64, 64)),
    "hiera": (
        "HieraModel",
        "HieraConfig",
        {**HIERA, "masked_unit_size": [4, 4], "masked_unit_attention": [True, True, False]},
        (64, 96),
    ),
    "segformer": ("SegformerModel", "SegformerConfig", {**PYRAMID, "sr_ratios": [8, 4, 2, 1]}, (64, 96)),
    "pvt": ("PvtModel", "PvtConfig", {**PYRAMID, "image_size": 64, "mlp_ratios": [2] * 4}, (64, 64)),
    "cvt": ("CvtModel", "CvtConfig", {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}, (64, 96)),
    "levit": (
        "LevitModel",
        "LevitConfig",
        {"image_size": 64, "hidden_sizes": [16, 16, 16], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1]},
        (64, 64),
    ),
    "mobilevit": (
        "MobileViTModel",
        "MobileViTConfig",
        {"image_size": 64, "hidden_sizes": [16, 16, 16], "num_attention_heads": 2},
        (128, 192),
    ),
}


def build(name: str, implementation: str = "sdpa") -> tuple[nn.Module, torch.Tensor]:
    model, config, settings, size = MODELS[name]
    torch.manual_seed(0)
    kind = getattr(transformers, model)
    chosen = implementation if getattr(kind, "_supports_sdpa", False) else "eager"
    built = kind._from_config(getattr(transformers, config)(**settings), attn_implementation=chosen)
    for key, parameter in built.named_parameters():
        if parameter.dim() >= 2 and any(word in key for word in ("query", "key", "qkv", "q_proj", "k_proj")):
            with torch.no_grad():
                parameter.copy_(torch.randn_like(parameter) * 2 / parameter[0].numel() ** 0.5)
    return built.eval(), torch.randn(2, 3, *size)


def spelt(model: nn.Module, pixels: torch.Tensor, names: tuple[str, ...]) -> dict[str, list[torch.Tensor]]:
    """Every softmax that runs inside the named modules, in a run with explicit attention where the family has it."""
    from torch.overrides import TorchFunctionMode

    stack, found = [""], {name: [] for name in names}
    modules = dict(model.named_modules())
    handles = []
    for name in names:
        handles.append(modules[name].register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(modules[name].register_forward_hook(lambda *_: stack.pop() and None))

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func in (torch.softmax, F.softmax, torch.Tensor.softmax) and stack[-1]:
                found[stack[-1]].append(result.detach().double())
            return result

    with torch.no_grad(), Watch():
        model(pixels)
    for handle in handles:
        handle.remove()
    return found


@pytest.fixture(scope="module", params=MODELS)
def seen(request):
    model, pixels = build(request.param)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = model(pixels)[0]
        with AttentionCapture(model, rows="all") as capture:
            output = model(pixels)[0]
    return request.param, model, pixels, capture.maps, torch.equal(bare, output)


def test_rows_are_those_of_the_explicit_softmax(seen) -> None:
    name, model, pixels, maps, unchanged = seen
    assert unchanged
    explicit, _ = build(name, "eager")
    explicit.load_state_dict(model.state_dict())
    truth = spelt(explicit, pixels, tuple({block.name for block in maps}))
    for block in maps:
        (matrix,) = truth[block.name]
        if matrix.dim() == 5:
            matrix = matrix.transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(block.rows.double(), matrix.reshape(block.shape), atol=2e-5, rtol=0)


def test_layouts_account_for_batch_and_keys_and_received_attention_sums_up(seen) -> None:
    _, _, _, maps, _ = seen
    for number, block in enumerate(maps):
        layout = block.layout
        if isinstance(layout, WindowLayout):
            assert block.shape[0] == 2 * layout.num_windows
        assert block.shape[3] == layout.num_tokens
        received = received_attention(maps, number).values
        assert received.shape == (2, *layout.grid)
        assert float(received.sum(dim=(1, 2)).max()) <= 1 + 1e-4


@pytest.mark.parametrize("name", ["swin", "swinv2", "donut", "sam", "vitdet"])
def test_positions_are_where_the_model_itself_cut_its_windows(name: str) -> None:
    model, pixels = build(name)
    for norm in ("layernorm_before", "layer_norm1", "norm1"):
        for module in model.modules():
            if hasattr(module, norm) and name != "swinv2":  # which normalises behind
                setattr(module, norm, nn.Identity())
    capture = AttentionCapture(model, rows="all")
    inputs, handles = {}, []
    for site in capture.plan.sites:
        for module in {site.module, site.seen_module}:
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, kwargs: inputs.update({m: (*args, *kwargs.values())[0]}), with_kwargs=True
                )
            )
    with torch.no_grad(), capture:
        model(pixels)
    for handle in handles:
        handle.remove()
    for site, block in zip(capture.plan.sites, capture.maps, strict=True):
        stage = inputs[site.seen_module][0]
        if name == "vitdet":
            stage = stage.permute(1, 2, 0)
        flat = torch.cat([stage.reshape(-1, stage.shape[-1]), torch.zeros(1, stage.shape[-1])])
        cut = inputs[site.module]
        windows = cut.reshape(cut.shape[0], -1, cut.shape[-1])[: block.layout.num_windows]
        torch.testing.assert_close(flat[block.layout.positions], windows, atol=0, rtol=0)


def test_hieras_positions_follow_its_own_rerolling() -> None:
    model, pixels = build("hiera")
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(pixels)
    layout = capture.maps[0].layout
    tokens = layout.positions.numel()
    placed = model.encoder.reroll(torch.arange(float(tokens)).reshape(1, -1, 1), 0).reshape(-1).long()
    positions = torch.empty(tokens, dtype=torch.long)
    positions[placed] = torch.arange(tokens)
    torch.testing.assert_close(layout.positions, positions.reshape(layout.num_tokens, -1).T)


def test_windows_have_no_readout() -> None:
    model, _ = build("swin")
    with pytest.raises(NoReadoutError, match="received_attention"):
        AttentionCapture(model)


VIDEO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32}


@pytest.mark.parametrize("name", ["VideoMAE", "Vivit", "Timesformer"])
def test_video_models_have_grids_in_time(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**VIDEO, num_frames=4, patch_size=8) if name != "Vivit" else (
        transformers.VivitConfig(**VIDEO, num_frames=4, tubelet_size=[2, 8, 8])
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config).eval()
    pixels = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(pixels)
    if name == "Timesformer":
        spatial = next(block for block in capture.maps if ".attention." in block.name and "temporal" not in block.name)
        assert spatial.layout == TokenLayout((4, 4), frames_in_batch=4)
        assert spatial.shape[0] == 2 * 4
        return
    layout = capture.maps[0].layout
    assert layout == TokenLayout((4, 4), cls=0 if name == "Vivit" else None, frames=2)
    assert received_attention(capture.maps).values.shape == (2, 2, 4, 4)
    if name == "Vivit":
        assert raw_attention(capture.maps).values.shape == (2, 2, 4, 4)


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        ("MobileViTV2Model", "MobileViTV2Config", "separable linear attention"),
        ("SwiftFormerModel", "SwiftFormerConfig", "additive attention"),
        ("ConvNextModel", "ConvNextConfig", "convolutions"),
        ("PoolFormerModel", "PoolFormerConfig", "convolutions"),
    ],
)
def test_models_without_token_attention_say_what_they_do(model: str, config: str, words: str) -> None:
    with torch.device("meta"):
        made = getattr(transformers, model)(getattr(transformers, config)())
    with pytest.raises(UnsupportedModelError, match=words):
        AttentionCapture(made)
