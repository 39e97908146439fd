"""Patches that overlap or are padded: cells lie where gradients say that the embedding's kernels look."""

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from attnhook import AttentionCapture, AttentionMaps, ImageGeometry, PatchMap, raw_attention, received_attention


def fields_of_view(embed, size: tuple[int, int], channels: int = 3) -> Tensor:
    """First and last pixel, along both axes, that each position of an embedding sees: `(h, w, 4)`, by gradients of all-positive kernels."""
    for one in embed.modules():
        if isinstance(one, nn.Conv2d):
            nn.init.ones_(one.weight)
            nn.init.zeros_(one.bias) if one.bias is not None else None
        elif isinstance(one, nn.BatchNorm2d):
            one.reset_running_stats()
    pixels = torch.ones(1, channels, *size, dtype=torch.float64, requires_grad=True)
    output = embed.double()(pixels)
    found = torch.zeros(*output.shape[-2:], 4)
    for row in range(output.shape[-2]):
        for column in range(output.shape[-1]):
            if row not in (0, output.shape[-2] - 1) and column not in (0, output.shape[-1] - 1):
                continue  # edges and corners say it all
            (gradient,) = torch.autograd.grad(output[0, :, row, column].sum(), pixels, retain_graph=True)
            rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
            found[row, column] = torch.tensor([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
    return found


class Overlapping(nn.Module):
    """The patch embedding of a timm model with a convolution of one's own."""

    def __init__(self, kernel: int, stride: int, padding: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel, stride, padding)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


def overlapping_vit(kernel: int, stride: int, padding: int, size: tuple[int, int]) -> VisionTransformer:
    grid = [(edge + 2 * padding - kernel) // stride + 1 for edge in size]
    model = timm.create_model("test_vit", pretrained=False, img_size=size, patch_size=16)
    model.patch_embed.proj = nn.Conv2d(3, model.embed_dim, kernel, stride, padding)
    model.patch_embed.strict_img_size = False
    model.patch_embed.grid_size = tuple(grid)
    model.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], model.embed_dim))
    return model.eval()


def captured(model, size: tuple[int, int], **options) -> AttentionMaps:
    with torch.no_grad(), AttentionCapture(model, **options) as capture:
        model(torch.rand(1, 3, *size))
    return capture.maps


KERNELS = [(16, 10, 0), (7, 4, 3), (3, 2, 1), (16, 16, 0), (9, 8, 4), (5, 4, 0)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), KERNELS)
def test_cells_lie_around_the_kernels(kernel: int, stride: int, padding: int) -> None:
    size = (64, 96)
    model = overlapping_vit(kernel, stride, padding, size)
    patch_map = raw_attention(captured(model, size))[0]
    # A kernel that reaches into the padding is centred where it would be without the picture's edge.
    first = kernel / 2 - padding
    ys, xs = patch_map.edges(ImageGeometry.identity(size))
    for edges, count in ((ys, patch_map.grid[0]), (xs, patch_map.grid[1])):
        centres = (edges[1:] + edges[:-1]) / 2
        assert centres == pytest.approx(first + stride * np.arange(count))
    views = fields_of_view(model.patch_embed.proj, size)
    inner = views[0, 1] if kernel > stride else views[0, 0]
    assert (inner[1] + inner[3]) / 2 == pytest.approx(
        (xs[1] + xs[2]) / 2 if kernel > stride else (xs[0] + xs[1]) / 2, abs=padding
    )
    seen = ~patch_map.heatmap(ImageGeometry.identity(size)).isnan()
    reached = torch.zeros(size, dtype=torch.bool)
    for top, left, bottom, right in views.reshape(-1, 4)[views.reshape(-1, 4).sum(1) > 0].long().tolist():
        reached[top:bottom, left:right] = True
    assert seen[reached].all()
    assert not seen[int(views[..., 2].max()) :].any()
    assert not seen[:, int(views[..., 3].max()) :].any()


@pytest.mark.parametrize(("kernel", "stride", "padding"), KERNELS)
def test_the_brightest_pixels_of_one_patch_are_its_kernels_middle(kernel: int, stride: int, padding: int) -> None:
    """In a photo three times as large, through its geometry, for patches inside and at the edges."""
    size = (64, 96)
    geometry = ImageGeometry.identity((3 * size[0], 3 * size[1])).resize(size)
    placed = raw_attention(captured(overlapping_vit(kernel, stride, padding, size), size))[0]
    for row, column in [(1, 2), (2, 1), (placed.grid[0] - 2, placed.grid[1] - 2)]:
        values = torch.zeros(placed.grid)
        values[row, column] = 1
        heat = placed.like(values).heatmap(geometry).nan_to_num()
        at = (heat > 0.97 * heat.max()).nonzero().float().mean(0) + 0.5
        middle = [3 * (kernel / 2 - padding + stride * index) for index in (row, column)]
        assert at.tolist() == pytest.approx(middle, abs=1.0)


@pytest.mark.parametrize(
    "name", ["xcit_nano_12_p16_224", "pvt_v2_b0", "hiera_tiny_224", "swin_tiny_patch4_window7_224"]
)
def test_stems_and_stages(name: str) -> None:
    """Against gradients through the whole embedding, for a position that no padding touches."""
    model = timm.create_model(name, pretrained=False).eval()
    size = (224, 224)
    maps = captured(model, size, rows="all", blocks=[0])
    placed = received_attention(maps)[0]
    module = model.patch_embed.proj
    pixels = torch.rand(1, 3, *size, requires_grad=True)
    output = module(pixels)
    row, column = output.shape[-2] // 2, output.shape[-1] // 2
    (gradient,) = torch.autograd.grad(output[0, :, row, column].square().sum(), pixels)
    rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
    centre = [(rows.min() + rows.max() + 1).item() / 2, (columns.min() + columns.max() + 1).item() / 2]
    ys, xs = placed.edges(ImageGeometry.identity(size))
    step = output.shape[-2] // placed.grid[0]  # keys may be merged
    if step == 1:
        assert [(ys[row] + ys[row + 1]) / 2, (xs[column] + xs[column + 1]) / 2] == pytest.approx(centre)


def test_merged_keys_lie_where_their_own_stage_puts_them() -> None:
    """PVTv2: all stages have keys 32 pixels apart, merged without overlap from tokens that lie differently; against gradients of `sr`."""
    model = timm.create_model("pvt_v2_b0", pretrained=False).eval()
    size = (224, 224)
    maps = captured(model, size, rows="all")
    pixels = torch.rand(1, 3, *size, requires_grad=True)
    merged: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda *call: 0 * call[-1])  # it would mix all tokens
        if module.sr is not None:
            module.sr.register_forward_hook(lambda *call: merged.__setitem__(name, call[-1]))

    for block in maps:
        keep(block.name)
    model(pixels)
    for name in [f"stages.{stage}.blocks.0.attn" for stage in range(3)]:
        (gradient,) = torch.autograd.grad(merged[name][0, :, 3, 3].square().sum(), pixels, retain_graph=True)
        seen = gradient[0].abs().sum(0)
        rows, columns = (seen > 1e-6 * seen.max()).nonzero().unbind(1)
        ys, xs = received_attention(maps, block=name)[0].edges(ImageGeometry.identity(size))
        # The depthwise kernels of the blocks before are symmetric, so they move no centre.
        assert (ys[3] + ys[4]) / 2 == pytest.approx((rows.min() + rows.max() + 1).item() / 2, abs=0.51)
        assert (xs[3] + xs[4]) / 2 == pytest.approx((columns.min() + columns.max() + 1).item() / 2, abs=0.51)


def test_spectrograms() -> None:
    """AST: kernels of 16 ten pixels apart; all but the last pixels are painted."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.ASTModel(transformers.ASTConfig(**sizes, max_length=128, num_mel_bins=64)).eval()
    with torch.no_grad(), AttentionCapture(model, rows="cls") as capture:
        model(torch.rand(1, 128, 64))
    placed = raw_attention(capture.maps)[0]
    ys, xs = placed.edges(ImageGeometry.identity((64, 128)))
    assert (ys[:2].tolist(), xs[:2].tolist()) == ([3.0, 13.0], [3.0, 13.0])
    seen = placed.heatmap(ImageGeometry.identity((64, 128))).isfinite()
    assert seen[:56, :126].all()
    assert not seen[56:].any()
    assert not seen[:, 126:].any()


def test_overlap_survives_files(tmp_path) -> None:
    maps = captured(overlapping_vit(16, 10, 0, (64, 96)), (64, 96))
    maps.save(tmp_path / "maps.safetensors")
    read = AttentionMaps.load(tmp_path / "maps.safetensors")
    before, after = raw_attention(maps)[0], raw_attention(read)[0]
    assert before.overlap == after.overlap != PatchMap(torch.zeros(2, 2)).overlap
    again = PatchMap.with_facts(before.values, before.facts())
    assert again.overlap == before.overlap
    photo = Image.new("RGB", (96, 64), "white")
    geometry = ImageGeometry.identity((64, 96))
    assert before.overlay(photo, geometry).tobytes() == again.overlay(photo, geometry).tobytes()
