"""torchvision's windowed models, nn.TransformerEncoder, open_clip, and Vision Transformers of nobody's library."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from attnhook import AttentionCapture, TokenLayout, WindowLayout, raw_attention, received_attention
from attnhook.errors import NothingCapturedError, TokenLayoutError, UnsupportedModelError
from tests.models import sharpen

pytest.importorskip("torchvision")
from torchvision.models import swin_transformer as tv_swin
from torchvision.models.maxvit import MaxVit


def swin(version: int) -> nn.Module:
    block = (tv_swin.SwinTransformerBlock, tv_swin.SwinTransformerBlockV2)[version - 1]
    merging = (tv_swin.PatchMerging, tv_swin.PatchMergingV2)[version - 1]
    return tv_swin.SwinTransformer(
        [4, 4], 12, [2, 2], [2, 2], [3, 4], block=block, downsample_layer=merging, num_classes=3
    )


def maxvit() -> nn.Module:
    return MaxVit(
        (64, 64), stem_channels=8, partition_size=2, block_channels=[8, 16], block_layers=[1, 1], head_dim=4,
        stochastic_depth_prob=0.0, num_classes=3,
    )  # fmt: skip


@pytest.mark.parametrize("build", [lambda: swin(1), lambda: swin(2), maxvit], ids=["swin", "swinv2", "maxvit"])
def test_torchvisions_windows_are_where_it_cut_them(build) -> None:
    torch.manual_seed(0)
    model = build().eval()
    capture = AttentionCapture(model, rows="all")
    pixels = torch.randn(2, 3, 64, 64)
    softmax, truth = F.softmax, []

    def spy(scores, *args, **kwargs):
        weights = softmax(scores, *args, **kwargs)
        truth.append(weights.detach())
        return weights

    with torch.no_grad():
        expected = model(pixels)
        with capture:
            assert torch.equal(model(pixels), expected)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "softmax", spy)
            model(pixels)
    for number, (block, weights) in enumerate(zip(capture.maps, truth, strict=True)):
        torch.testing.assert_close(block.rows, weights.reshape(block.shape), atol=2e-5, rtol=0)
        assert isinstance(block.layout, WindowLayout)
        assert block.shape[0] == 2 * block.layout.num_windows
        assert received_attention(capture.maps, number).values.shape == (2, *block.layout.grid)


@pytest.mark.parametrize("build", [lambda: swin(1), maxvit], ids=["swin", "maxvit"])
def test_torchvisions_models_are_known_under_the_classes_that_sharding_gives_them(build) -> None:
    model = build()
    names = AttentionCapture(model, rows="all").block_names
    for module in model.modules():  # as fully_shard does
        kind = type(module)
        module.__class__ = type(f"FSDP{kind.__name__}", (kind,), {"__module__": "torch.distributed.fsdp"})
    assert AttentionCapture(model, rows="all").block_names == names


def test_torchvisions_maxvit_strided_grids() -> None:
    torch.manual_seed(0)
    model = maxvit().eval()
    layers = [m for m in model.modules() if type(m).__name__ == "PartitionAttentionLayer"]
    stages, cut, handles = [], [], []
    for layer in layers:
        layer.attn_layer[0] = nn.Identity()
        handles.append(layer.register_forward_pre_hook(lambda _, args: stages.append(args[0])))
        handles.append(layer.attn_layer[1].register_forward_pre_hook(lambda _, args: cut.append(args[0])))
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(torch.randn(1, 3, 64, 64))
    for block, stage, windows in zip(capture.maps, stages, cut, strict=True):
        flat = stage[0].flatten(1).T
        torch.testing.assert_close(flat[block.layout.positions], windows[0], atol=0, rtol=0)


class EncoderViT(nn.Module):
    """An nn.TransformerEncoder over patches and a class token."""

    def __init__(self, **options):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, pixels, mask=None, padding=None):
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.encoder(tokens, mask=mask, src_key_padding_mask=padding)


@pytest.mark.parametrize("path", ["fast", "slow layer", "slow everything", "training"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("masks", ["none", "attention", "padding", "both"])
def test_encoder_layers_stay_on_their_path_and_give_exact_rows(path: str, norm_first: bool, masks: str) -> None:
    torch.manual_seed(0)
    activation = F.silu if path == "slow layer" else F.relu  # an activation that the fused layer does not know
    model = EncoderViT(norm_first=norm_first, activation=activation).train(path == "training")
    pixels = torch.randn(2, 3, 24, 32)
    mask = torch.rand(13, 13) > 0.7 if masks in ("attention", "both") else None
    if mask is not None:
        mask[:, 0] = False
    padding = torch.zeros(2, 13, dtype=torch.bool) if masks in ("padding", "both") else None
    if padding is not None:
        padding[1, 9:] = True
    truth = []

    def spell(module, args):
        tokens = args[0]
        weights = module.self_attn.in_proj_weight
        x = module.norm1(tokens) if norm_first else tokens
        q, k, _ = F.linear(x, weights, module.self_attn.in_proj_bias).chunk(3, dim=-1)
        q, k = (t.view(2, 13, 4, 4).transpose(1, 2).double() for t in (q, k))
        scores = q @ k.mT / math.sqrt(4)
        if mask is not None:
            scores = scores.masked_fill(mask, float("-inf"))
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None, :], float("-inf"))
        truth.append(torch.softmax(scores, dim=-1).detach())

    with torch.set_grad_enabled(path in ("slow everything", "training")):
        bare = model(pixels, mask, padding)
        with AttentionCapture(model, rows="all", layout=TokenLayout((3, 4))) as capture:
            output = model(pixels, mask, padding)
        handles = [layer.register_forward_pre_hook(spell) for layer in model.encoder.layers]
        model(pixels, mask, padding)
    for handle in handles:
        handle.remove()
    assert torch.equal(bare, output)
    assert len(capture.maps) == 2
    for block, expected in zip(capture.maps, truth, strict=True):
        torch.testing.assert_close(block.rows.double(), expected, atol=2e-5, rtol=0)
    assert raw_attention(capture.maps).values.shape == (2, 3, 4)
    if path == "fast":
        assert {block.kernel for block in capture.maps} == {"encoder layer"}


def test_an_encoder_layer_is_told_by_its_weights_or_refused() -> None:
    torch.manual_seed(0)
    model, pixels = EncoderViT(), torch.randn(2, 3, 24, 32)
    first, second = (layer.self_attn for layer in model.encoder.layers)
    expected = []
    for blocks in (None, ["encoder.layers.0.self_attn"]):
        with AttentionCapture(model, blocks=blocks, layout=TokenLayout((3, 4)), rows="cls") as capture:
            model(pixels)
        expected.append(capture.maps.stack())
    torch.testing.assert_close(expected[1][0], expected[0][0], atol=1e-6, rtol=0)
    reads = []

    class Counts(nn.Module):
        def forward(self, weight):
            reads.append(1)
            return weight

    parametrize.register_parametrization(second, "in_proj_weight", Counts())
    reads.clear()  # registering reads it, too
    model(pixels)
    alone = len(reads)
    with (
        pytest.raises(UnsupportedModelError, match="parametrised 'in_proj_weight'"),
        AttentionCapture(model, layout=TokenLayout((3, 4))),
    ):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    reads.clear()
    with AttentionCapture(model, blocks=["encoder.layers.0.self_attn"], layout=TokenLayout((3, 4))) as capture:
        model(pixels)
    assert len(reads) == alone
    torch.testing.assert_close(capture.maps.stack(), expected[1], atol=1e-6, rtol=0)
    parametrize.remove_parametrizations(second, "in_proj_weight")
    second.in_proj_weight, second.in_proj_bias = first.in_proj_weight, first.in_proj_bias
    with AttentionCapture(model, layout=TokenLayout((3, 4))) as capture:
        model(pixels)
    with pytest.raises(UnsupportedModelError, match="cannot be told apart from another"):
        _ = capture.maps


def test_an_encoder_layer_on_its_own_is_refused_with_a_way_out() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    with pytest.raises(UnsupportedModelError, match=r"on its own.*nn\.Sequential\(layer\)"):
        AttentionCapture(layer, layout=TokenLayout((2, 2)))
    wrapped, tokens = nn.Sequential(layer), torch.randn(2, 5, 16)
    with torch.no_grad():
        bare = layer(tokens)
        with AttentionCapture(wrapped, layout=TokenLayout((2, 2))) as capture:
            assert torch.equal(wrapped(tokens), bare)
    assert capture.maps[0].kernel == "encoder layer"


def test_float_masks_hide_on_the_fast_path_of_an_encoder_layer() -> None:
    """The kernel reads whatever is not 0 as hidden; rows must give the layer's own output, whatever the mask was meant to be."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    mask, tokens = torch.where(torch.rand(13, 13) > 0.6, -2.0, 0.0).fill_diagonal_(0), torch.randn(2, 13, 32)
    with torch.no_grad(), AttentionCapture(encoder, rows="all", layout=TokenLayout((3, 4))) as capture:
        output = encoder(tokens, mask=mask)
    assert capture.maps[0].kernel == "encoder layer"
    inner = encoder.layers[0]
    with torch.no_grad():
        weights, bias = inner.self_attn.in_proj_weight[64:], inner.self_attn.in_proj_bias[64:]
        values = F.linear(tokens, weights, bias).unflatten(-1, (4, 8)).transpose(1, 2)
        attended = (capture.maps[0].weights() @ values).transpose(1, 2).flatten(2)
        x = inner.norm1(tokens + inner.self_attn.out_proj(attended))
        expected = inner.norm2(x + inner.linear2(F.relu(inner.linear1(x))))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_of_an_encoder_are_refused() -> None:
    model = EncoderViT().eval()
    model.encoder.enable_nested_tensor = model.encoder.use_nested_tensor = True
    padding = torch.zeros(2, 13, dtype=torch.bool)
    padding[1, 9:] = True
    with torch.no_grad(), AttentionCapture(model, layout=TokenLayout((3, 4))) as capture:
        model(torch.randn(2, 3, 24, 32), None, padding)
    with pytest.raises(UnsupportedModelError, match="nested tensors"):
        _ = capture.maps


@pytest.mark.parametrize("name", ["ViT-B-32", "coca_ViT-B-32"])
def test_open_clip(name: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    config["vision_cfg"] |= {"layers": 2, "width": 64, "head_width": 16, "image_size": 96}
    config["embed_dim"] = 64
    config.pop("custom_text", None)
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 4, "layers": 1}
    tower = open_clip.model._build_vision_tower(64, open_clip.model.CLIPVisionCfg(**config["vision_cfg"])).eval()
    clip = open_clip.CLIP(64, config["vision_cfg"], text).eval() if name == "ViT-B-32" else None
    sharpen(tower)
    pixels = torch.randn(2, 3, 96, 96)
    for model, run in ((tower, tower), (clip, getattr(clip, "encode_image", None))):
        if model is None:
            continue
        with torch.no_grad():
            bare = run(pixels)
            with AttentionCapture(model, rows="all") as capture:
                output = run(pixels)
        bare, output = (x[0] if isinstance(x, tuple) else x for x in (bare, output))
        assert torch.equal(bare, output)
        assert all("visual" in n or model is tower for n in capture.block_names)
        assert capture.maps[0].layout == TokenLayout((3, 3))
        for block in capture.maps:
            torch.testing.assert_close(block.rows.sum(-1), torch.ones(block.shape[:3]), atol=1e-5, rtol=0)
    if name == "ViT-B-32":
        modules = dict(tower.named_modules())
        with torch.no_grad(), AttentionCapture(tower) as capture:
            weights = []
            handles = [
                modules[n].register_forward_pre_hook(
                    lambda m, args: weights.append(
                        nn.MultiheadAttention.forward(m, *args, need_weights=True, average_attn_weights=False)[1]
                    )
                )
                for n in capture.block_names
            ]
            tower(pixels)
        for handle in handles:
            handle.remove()
        for block, expected in zip(capture.maps, weights, strict=True):
            torch.testing.assert_close(block.rows, expected[:, :, :1], atol=2e-5, rtol=0)


class DinoAttention(nn.Module):
    """In the style of the DINO repository: an explicit softmax, and the matrix returned beside the output."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width)), weights


class Gate(nn.Module):
    def forward(self, x):
        return x * F.softmax(x.mean(dim=(0, 1)), dim=-1)


class DinoViT(nn.Module):
    """Of nobody's library: patches, a class token, four registers, a gate with a softmax of its own."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, 5, 16))
        self.blocks = nn.ModuleList(DinoAttention() for _ in range(3))
        self.gate = Gate()
        self.seen: list[torch.Tensor] = []

    def forward(self, pixels):
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = self.gate(torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1))
        self.seen.clear()
        for block in self.blocks:
            y, weights = block(x)
            self.seen.append(weights)
            x = x + y
        return x[:, 0]


def test_a_home_made_vit_needs_its_layout_alone() -> None:
    torch.manual_seed(0)
    model = sharpen(DinoViT())
    pixels = torch.randn(2, 3, 16, 40)
    with torch.no_grad(), AttentionCapture(model, layout=TokenLayout((2, 5), registers=4)) as capture:
        model(pixels)
    assert capture.maps.block_names == ("blocks.0", "blocks.1", "blocks.2")  # the gate attends to no token
    for block, expected in zip(capture.maps, model.seen, strict=True):
        torch.testing.assert_close(block.rows, expected[:, :, :1], atol=1e-6, rtol=0)
    assert raw_attention(capture.maps).values.shape == (2, 2, 5)


def test_a_home_made_vit_with_a_wrong_layout_or_none_is_loud() -> None:
    model = DinoViT()
    with pytest.raises(UnsupportedModelError, match="layout=TokenLayout"):
        AttentionCapture(model)
    with AttentionCapture(model, layout=TokenLayout((2, 5))) as capture:
        model(torch.randn(1, 3, 16, 40))
    with pytest.raises(TokenLayoutError, match=r"expected 11 .* got 15"):
        raw_attention(capture.maps)


def test_guessed_modules_of_which_none_attends_are_loud() -> None:
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = Gate()

        def forward(self, x):
            return self.gate(x)

    model = Gated()
    with AttentionCapture(model, layout=TokenLayout((2, 5))) as capture:
        model(torch.randn(1, 11, 16))
    with pytest.raises(NothingCapturedError):
        _ = capture.maps
