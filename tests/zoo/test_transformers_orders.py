"""Models of transformers that put their patches in an order of their own: a patch's key stands where the layout says.

One patch of an image that is not square is changed. In the first block its key changes, and no other: the scores of that column alone move,
up to a constant a row. Where that column lies on the grid must be where the patch lies in the image.
"""

import pytest
import torch
from torch import nn

from attnhook import AttentionCapture, WindowLayout, raw_attention, received_attention
from attnhook.errors import NoReadoutError

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8}
SAM = {**VIT, "mlp_dim": 16, "window_size": 3, "global_attn_indexes": [1], "output_channels": 8}
LW_DETR = {**VIT, "window_block_indices": [0], "num_windows": 4, "num_windows_side": 2, "out_features": ["stage2"]}
RF_DETR = {**VIT, "num_windows": 2, "window_block_indexes": [0], "out_features": ["stage2"]}
SAM2 = {
    "hidden_size": 16, "embed_dim_per_stage": [16, 32], "num_attention_heads_per_stage": [2, 2], "blocks_per_stage": [1, 2],
    "window_size_per_stage": [4, 4], "global_attention_blocks": [2], "num_query_pool_stages": 1, "image_size": [64, 64],
}  # fmt: skip


def build(module: str, model: str, config: str, settings: dict) -> nn.Module:
    package = pytest.importorskip(f"transformers.models.{module}.modeling_{module}")
    settings_class = getattr(package, config, None) or getattr(transformers, config)
    torch.manual_seed(0)
    built = getattr(package, model)(settings_class(**settings)).eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() >= 2 and any(part in name for part in ("q_proj", "k_proj", "qkv", "query", "key")):
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            elif parameter.dim() >= 2:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return built


def moved(model: nn.Module, one: dict, other: dict, block: int = 0) -> tuple[object, torch.Tensor]:
    """The layout of a block, and by how much each key's column of scores moved: `(entries, keys)`."""
    seen = []
    for inputs in (one, other):
        with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
            model(**inputs)
        seen.append(capture.maps[block].rows.double().clamp_min(1e-30).log())
    change = seen[1] - seen[0]
    change = change - change.median(dim=-1, keepdim=True).values
    return capture.maps[block].layout, change.abs().median(dim=2).values.sum(dim=1)


def changed(pixels: torch.Tensor, row: int, column: int, patch: int = 8) -> torch.Tensor:
    other = pixels.clone()
    other[..., row * patch + 2 : row * patch + 5, column * patch + 2 : column * patch + 5] += 3
    return other


@pytest.mark.parametrize(
    ("module", "model", "config", "settings"),
    [
        ("lw_detr", "LwDetrViTBackbone", "LwDetrViTConfig", LW_DETR),
        ("lw_detr", "LwDetrViTBackbone", "LwDetrViTConfig", {**LW_DETR, "window_block_indices": [1]}),
        ("rf_detr", "RfDetrDinov2Backbone", "RfDetrDinov2Config", RF_DETR),
        ("rf_detr", "RfDetrDinov2Backbone", "RfDetrDinov2Config", {**RF_DETR, "window_block_indexes": [1]}),
        ("vitdet", "VitDetModel", "VitDetConfig", {**VIT, "window_size": 4, "window_block_indices": [0]}),
        ("got_ocr2", "GotOcr2VisionEncoder", "GotOcr2VisionConfig", SAM),
        ("sam2", "Sam2HieraDetModel", "Sam2HieraDetConfig", SAM2),
    ],
)
@pytest.mark.parametrize("patch", [(1, 6), (6, 3)])
def test_a_changed_patch_moves_the_key_in_its_place(
    module: str, model: str, config: str, settings: dict, patch
) -> None:
    built = build(module, model, config, settings)
    size = (64, 64) if module == "got_ocr2" else (64, 96)
    pixels = torch.randn(2, 3, *size)
    layout, columns = moved(built, {"pixel_values": pixels}, {"pixel_values": changed(pixels, *patch)})
    grid = layout.scatter(columns) if isinstance(layout, WindowLayout) else layout.patches(columns)
    height, width = grid.shape[-2:]
    for image in grid:
        peak = divmod(int(image.argmax()), width)
        assert (peak[0] * 8 // height, peak[1] * size[1] // 8 // width) == patch


def test_windows_and_pooled_queries_have_no_readout_but_received_attention() -> None:
    built = build("sam2", "Sam2HieraDetModel", "Sam2HieraDetConfig", SAM2)
    with pytest.raises(NoReadoutError, match="received_attention"):
        AttentionCapture(built)
    with torch.no_grad(), AttentionCapture(built, rows="all") as capture:
        built(torch.randn(2, 3, 64, 96))
    pooled = capture.maps[1]
    assert pooled.layout.grid == (16, 24)
    assert pooled.layout.query_grid == (8, 12)
    for block in range(len(capture.maps)):
        total = received_attention(capture.maps, block).values.sum(dim=(1, 2))
        torch.testing.assert_close(total, torch.ones(2), atol=1e-4, rtol=0)


def test_hidden_mask_units_are_not_taken_for_a_later_stage() -> None:
    settings = {
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1],
        "image_size": [64, 64],
        "mlp_ratio": 1.0,
    }
    decoder = {"decoder_hidden_size": 8, "decoder_depth": 1, "decoder_num_heads": 1}
    built = build("hiera", "HieraForPreTraining", "HieraConfig", {**settings, **decoder})
    with torch.no_grad(), AttentionCapture(built, rows="all") as capture:
        built(torch.randn(2, 3, 64, 64))
    assert "mask units are hidden" in str(capture.maps[0].token_layout)


def test_parts_that_a_forward_passes_by_are_left_out() -> None:
    settings = {
        **VIT,
        "crop_size": 32,
        "image_size": 32,
        "frames_per_clip": 2,
        "pred_hidden_size": 32,
        "pred_num_hidden_layers": 1,
    }
    more = {"pred_num_attention_heads": 2, "num_pooler_layers": 1, "mlp_ratio": 1.0, "pred_mlp_ratio": 1.0}
    built = build("vjepa2", "VJEPA2ForVideoClassification", "VJEPA2Config", {**settings, **more})
    with torch.no_grad(), AttentionCapture(built, rows="all") as capture:
        built(torch.randn(1, 2, 3, 32, 32))
    assert not any("predictor" in block.name for block in capture.maps)
    assert sum("encoder" in block.name for block in capture.maps) == 2


def test_an_interface_that_is_never_found_is_read_from_its_softmax() -> None:
    settings = {
        "hidden_size": 32,
        "head_dim": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    }
    built = build(
        "kosmos2_5", "Kosmos2_5VisionModel", "Kosmos2_5VisionConfig", {**settings, "patch_embed_hidden_size": 12}
    )
    places = torch.cartesian_prod(torch.arange(1, 3), torch.arange(1, 4)).float()
    patches = torch.cat([places, torch.rand(6, 12)], dim=-1)[None]
    with torch.no_grad(), AttentionCapture(built) as capture:
        built(patches)
    assert raw_attention(capture.maps).values.shape == (1, 2, 3)


def test_maps_of_a_part_that_ran_alone_can_be_read_twice() -> None:
    built = build("vitdet", "VitDetModel", "VitDetConfig", {**VIT, "window_size": 0})
    with torch.no_grad(), AttentionCapture(built, rows="all") as capture:
        built.encoder(torch.randn(1, 32, 4, 6))
    assert capture.maps is capture.maps


@pytest.mark.parametrize("patch", [(1, 6), (6, 3)])
def test_qwens_blocks_of_patches_are_put_back_on_the_grid(patch) -> None:
    processor = transformers.Qwen2VLImageProcessor(patch_size=8, merge_size=2, do_resize=False, do_normalize=False)
    settings = {"depth": 2, "embed_dim": 32, "hidden_size": 16, "num_heads": 2, "patch_size": 8, "mlp_ratio": 1}
    built = build("qwen2_vl", "Qwen2VisionTransformerPretrainedModel", "Qwen2VLVisionConfig", settings)
    pixels = torch.rand(3, 64, 96)
    given = []
    for image in (pixels, changed(pixels, *patch)):
        batch = processor(images=[image], do_rescale=False, return_tensors="pt")
        given.append({"hidden_states": batch["pixel_values"], "grid_thw": batch["image_grid_thw"]})
    layout, columns = moved(built, *given)
    grid = layout.patches(columns)
    assert grid.shape == (1, 8, 12)
    assert divmod(int(grid.argmax()), 12) == patch
