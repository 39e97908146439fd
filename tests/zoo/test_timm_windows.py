"""Layouts of windowed models against the models' own partition: what stands at each place of a window, and received attention on the grid."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from attnhook import AttentionCapture, raw_attention, received_attention
from attnhook.capture.layout import TokenLayout
from attnhook.capture.windows import WindowLayout
from attnhook.errors import NoReadoutError, TokenLayoutError

SWIN = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2), "patch_size": 4, "strict_img_size": False}
# name: how to build it, size of the images, path from an attention module to the module whose input is cut
WINDOWED: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "swin": (lambda: timm.models.swin_transformer.SwinTransformer(img_size=64, window_size=3, **SWIN), (64, 80)),
    "swinv2": (
        lambda: timm.models.swin_transformer_v2.SwinTransformerV2(img_size=64, window_size=4, **SWIN),
        (72, 80),
    ),
    "swinv2_cr": (
        lambda: timm.models.swin_transformer_v2_cr.SwinTransformerV2Cr(
            img_size=(64, 96), window_size=4, patch_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2)
        ),
        (64, 96),
    ),
    "davit": (lambda: timm.create_model("davit_tiny", depths=(1, 1), embed_dims=(12, 24), num_heads=(2, 2)), (72, 96)),
    "gcvit": (
        lambda: timm.models.gcvit.GlobalContextVit(
            img_size=64, window_size=((8, 8), (4, 4)), depths=(2, 2), num_heads=(2, 2), embed_dim=16
        ),
        (64, 64),
    ),
    "tiny_vit": (
        lambda: timm.create_model(
            "tiny_vit_5m_224", embed_dims=(16, 16, 32), depths=(1, 2, 1), num_heads=(1, 2, 2), window_sizes=(3, 3, 3)
        ),
        (64, 80),
    ),
    "sam": (
        lambda: timm.models.vision_transformer_sam.VisionTransformerSAM(
            img_size=(64, 80), patch_size=8, embed_dim=12, depth=2, num_heads=2, window_size=3, global_attn_indexes=(1,)
        ),
        (64, 80),
    ),
    "sam2": (
        lambda: timm.models.hieradet_sam2.HieraDet(
            embed_dim=12, num_heads=2, stages=(1, 2, 2, 1), global_att_blocks=(2,), window_spec=(8, 4, 14, 7)
        ),
        (224, 192),
    ),
    "maxvit": (lambda: timm.create_model("test_maxvit"), (160, 160)),
    "mobilevit": (lambda: timm.create_model("mobilevit_xxs"), (96, 128)),
    "nest": (
        lambda: timm.models.nest.Nest(
            img_size=64, num_levels=3, embed_dims=(12, 12, 12), num_heads=(2, 2, 2), depths=(1, 1, 1)
        ),
        (64, 64),
    ),
    "twins": (
        lambda: timm.create_model(
            "twins_svt_small", embed_dims=(12,) * 4, num_heads=(2,) * 4, depths=(2,) * 4, wss=(3,) * 4
        ),
        (96, 128),
    ),
    "efficientvit_msra": (lambda: timm.create_model("efficientvit_m0"), (224, 224)),
    "halonet": (lambda: timm.create_model("halonet_h1"), (256, 256)),
    "hiera": (
        lambda: timm.create_model("hiera_tiny_224", embed_dim=8, num_heads=1, stages=(1, 2, 2, 1)),
        (224, 224),
    ),
}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    make, size = WINDOWED[name]
    if name == "maxvit" and not timm.is_model("test_maxvit"):
        pytest.skip("this timm has no small MaxViT")
    torch.manual_seed(0)
    return make().eval(), torch.randn(2, 3, *size)


@pytest.fixture(scope="module", params=WINDOWED)
def seen(request):
    model, pixels = build(request.param)
    with torch.no_grad():
        bare = model(pixels)
        with AttentionCapture(model, rows="all") as capture:
            output = model(pixels)
    return request.param, model, pixels, capture.maps, torch.equal(bare, output)


def test_rows_sum_to_one_and_nothing_changes(seen) -> None:
    _, _, _, maps, unchanged = seen
    assert unchanged
    for block in maps:
        torch.testing.assert_close(block.rows.sum(-1), torch.ones(block.shape[:3]), atol=1e-5, rtol=0)


def test_every_block_has_a_layout_that_accounts_for_its_batch(seen) -> None:
    name, _, _, maps, _ = seen
    kinds = {type(block.layout) for block in maps}
    assert WindowLayout in kinds, name
    for block in maps:
        if isinstance(block.layout, WindowLayout):
            assert block.shape[0] == 2 * block.layout.num_windows
            assert block.shape[3] == block.layout.num_tokens
            positions = block.layout.positions
            assert set(range(block.layout.grid[0] * block.layout.grid[1])) <= set(positions.flatten().tolist())


def test_received_attention_covers_the_grid_and_sums_to_what_fell_on_it(seen) -> None:
    _, _, _, maps, _ = seen
    for number, block in enumerate(maps):
        received = received_attention(maps, number, heads=None).values
        assert received.shape == (2, block.shape[1], *block.layout.grid)
        total = received.sum(dim=(-1, -2))
        assert float(total.max()) <= 1 + 1e-4
        if isinstance(block.layout, TokenLayout) or not (block.layout.positions < 0).any():
            torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)


def test_there_is_no_map_of_the_whole_image(seen) -> None:
    _, model, _, maps, _ = seen
    with pytest.raises(NoReadoutError, match="received_attention"):
        AttentionCapture(model)
    windowed = next(i for i, block in enumerate(maps) if isinstance(block.layout, WindowLayout))
    with pytest.raises((TokenLayoutError, NoReadoutError)):
        raw_attention(maps, block=windowed, row=0)


def test_batch_entries_are_windows_of_one_image_then_of_the_next(seen) -> None:
    name, model, pixels, maps, _ = seen
    if name == "gcvit" and version(timm.__version__) < (1, 0, 26):
        pytest.skip("this timm's GCViT mixes the images of a batch")
    if name in {"efficientvit_msra", "maxvit", "mobilevit", "tiny_vit", "halonet", "gcvit", "davit", "sam2", "twins"}:
        tolerance = 1e-4  # other batch sizes choose other kernels in the convolutions
    else:
        tolerance = 1e-5
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(pixels[1:])
    for both, single in zip(maps, capture.maps, strict=True):
        torch.testing.assert_close(both.rows[both.shape[0] // 2 :], single.rows, atol=tolerance, rtol=0)


def windows_of(module: nn.Module, tokens: torch.Tensor, batch: int) -> torch.Tensor:
    """What an attention module was given, `(windows, tokens, channels)` of image 0."""
    if tokens.dim() == 4 and type(module).__name__ == "CascadedGroupAttention":
        tokens = tokens.permute(0, 2, 3, 1)
    return tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])[: tokens.shape[0] // batch]


@pytest.mark.parametrize(
    "name", ["swin", "swinv2", "swinv2_cr", "davit", "gcvit", "tiny_vit", "sam", "sam2", "maxvit", "efficientvit_msra"]
)
def test_positions_are_where_the_model_itself_cut_its_windows(name: str) -> None:
    model, pixels = build(name)
    for module_name in ("norm1", "cpe1"):
        for module in model.modules():
            if hasattr(module, module_name):
                setattr(module, module_name, nn.Identity())
    maps = marked_forward(model, pixels)
    compared = 0
    for block, stage, windows in maps:
        layout = block.layout
        if not isinstance(layout, WindowLayout):
            continue
        flat = torch.cat([stage.reshape(-1, stage.shape[-1]), torch.zeros(1, stage.shape[-1])])
        torch.testing.assert_close(flat[layout.positions], windows, atol=0, rtol=0)  # -1 is the row of zeros: padding
        compared += 1
    assert compared


def marked_forward(model: nn.Module, pixels: torch.Tensor) -> list:
    """Each block with its stage's input `(h, w, channels)` of image 0, and its windows as the attention module got them."""
    names = dict(model.named_modules())
    inputs: dict[str, torch.Tensor] = {}
    capture = AttentionCapture(model, rows="all")
    handles = []
    for name in capture.block_names:
        for key in (name, name.rpartition(".")[0]):
            handles.append(names[key].register_forward_pre_hook(lambda _, args, key=key: inputs.update({key: args[0]})))
    with torch.no_grad(), capture:
        model(pixels)
    for handle in handles:
        handle.remove()
    found = []
    for block in capture.maps:
        name = block.name.partition(":")[0]
        stage = inputs[name.rpartition(".")[0]][0]
        if stage.dim() == 3 and type(names[name]).__name__ in {"CascadedGroupAttention"}:
            stage = stage.permute(1, 2, 0)
        if type(names[name]).__module__.endswith("davit"):
            stage = stage.permute(1, 2, 0)
        found.append((block, stage, windows_of(names[name], inputs[name], pixels.shape[0])))
    return found


def test_hiera_positions_follow_its_own_reordering() -> None:
    model, pixels = build("hiera")
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(pixels)
    first = capture.maps[0].layout
    order = model.unroll(torch.arange(56 * 56.0).reshape(1, -1, 1)).reshape(-1).long()
    units, keys = first.positions.shape
    torch.testing.assert_close(first.positions, order.reshape(keys, units).T)
    third = capture.maps[2].layout  # one pooling later: a token is known by where `reroll` puts it
    tokens = third.positions.numel()
    placed = model.reroll(torch.arange(float(tokens)).reshape(1, -1, 1), 2).reshape(-1).long()
    positions = torch.empty(tokens, dtype=torch.long)
    positions[placed] = torch.arange(tokens)
    torch.testing.assert_close(third.positions, positions.reshape(third.positions.shape[1], -1).T)
    attends_to_all = capture.maps[4].layout  # without mask units, and still in their order
    assert attends_to_all.positions.shape == (1, 14 * 14)
    placed = model.reroll(torch.arange(14.0 * 14).reshape(1, -1, 1), 4).reshape(-1).long()
    positions = torch.empty(14 * 14, dtype=torch.long)
    positions[placed] = torch.arange(14 * 14)
    torch.testing.assert_close(attends_to_all.positions[0], positions)
    assert not torch.equal(positions, torch.arange(14 * 14))
