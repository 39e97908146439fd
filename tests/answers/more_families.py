"""Tiny random models of further families that merge images as those of `families` do, and inputs as their processors make them."""

from collections.abc import Callable
from typing import Any

import torch

from tests.answers import families
from tests.answers.families import IMAGE, PINPOINTS, TEXT, VISION, build, images, pixels, prompts, text, vision

EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "n_routed_experts": 2}
EXPERTS |= {"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
PACKED = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "patch_size": 8, "image_size": 64}
PACKED |= {"intermediate_size": 24, "spatial_merge_size": 2}
QWEN3 = {**PACKED, "depth": 3, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}


def glm(name: str, kind: str, words: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    options = {"rope_parameters": rope, **more}
    tower = {**PACKED, "model_type": kind}
    model, inputs = families._qwen(f"{name}ForConditionalGeneration", tower, words, **options)
    with torch.no_grad():
        for path, weight in model.model.language_model.named_parameters():
            if "q_proj" in path:
                weight.mul_(4)
    return model, inputs


def qwen3_vl_moe() -> tuple[Any, dict[str, Any]]:
    return families._qwen("Qwen3VLMoeForConditionalGeneration", QWEN3, "qwen3_vl_moe_text", **EXPERTS)


def qwen3_5(moe: str = "", **more: Any) -> tuple[Any, dict[str, Any]]:
    """One layer of linear attention, which has no softmax, and two others."""
    kinds = {"layer_types": ["linear_attention", "full_attention", "full_attention"]}
    tower = {**QWEN3, "deepstack_visual_indexes": []}
    name = f"Qwen3_5{moe.title()}ForConditionalGeneration"
    return families._qwen(name, tower, f"qwen3_5{moe and '_'}{moe}_text", **LINEAR, **kinds, **more)


def paddleocr_vl() -> tuple[Any, dict[str, Any]]:
    tower = {**VISION, "hidden_size": 32, "spatial_merge_size": 2, "model_type": "paddleocr_vl_vision"}
    model, inputs = families._qwen("PaddleOCRVLForConditionalGeneration", tower, "paddleocr_vl_text")
    return model, {**inputs, "pixel_values": inputs["pixel_values"][:, :192].reshape(-1, 3, 8, 8)}


def gemma4(**more: Any) -> tuple[Any, dict[str, Any]]:
    """Two pictures of unequal grids, padded to one number of patches; heads of two widths."""
    tower = {**VISION, "hidden_size": 32, "num_key_value_heads": 4, "head_dim": 8, "pooling_kernel_size": 2}
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    words = {**TEXT, "num_hidden_layers": 4, "layer_types": kinds, "sliding_window": 10, "global_head_dim": 16}
    words |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 120, **more}
    ids = {"image_token_id": IMAGE, "boi_token_id": 97, "eoi_token_id": 96, "video_token_id": 95, "audio_token_id": 94}
    config = {"vision_config": {**tower, "position_embedding_size": 64}, "text_config": words, "audio_config": None}
    model = build("Gemma4ForConditionalGeneration", **config, **ids)
    given = prompts([1, 97, *images(6), 96, 5, 97, *images(4), 96, 6, 7])
    places = torch.full((2, 32, 2), -1)
    for number, (rows, columns) in enumerate(((4, 6), (2, 8))):
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
        places[number, : len(cells)] = cells
    patches = torch.rand(2, 32, 192, generator=torch.Generator().manual_seed(3)) * (places >= 0).all(-1, keepdim=True)
    given["mm_token_type_ids"] = (given["input_ids"] == IMAGE).long()
    return model, {**given, "pixel_values": patches, "image_position_ids": places}


def janus(image_size: int = 32) -> tuple[Any, dict[str, Any]]:
    tower = {**VISION, "image_size": image_size, "projection_dim": 32, "depth": 1}
    drawing = {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "base_channels": 32, "num_res_blocks": 1}
    drawing |= {"channel_multiplier": [1, 1], "projection_dim": 32, "double_latent": False, "image_token_embed_dim": 32}
    config = {"vision_config": tower, "vq_config": drawing, "text_config": text(), "image_token_id": IMAGE}
    model = build("JanusForConditionalGeneration", **config)
    return model, {**prompts([1, *images(16), 5, 6, 7]), "pixel_values": pixels(1)}


def deepseek_vl(image_size: int = 32) -> tuple[Any, dict[str, Any]]:
    tower = vision("siglip_vision_model", image_size=image_size)
    model = build("DeepseekVLForConditionalGeneration", vision_config=tower, text_config=text(), image_token_id=IMAGE)
    return model, {**prompts([1, *images(16), 5, 6, 7]), "pixel_values": pixels(1)}


def lighton_ocr() -> tuple[Any, dict[str, Any]]:
    tower = vision("pixtral", image_size=64, head_dim=8)
    tower.hidden_size = 32
    config = {"vision_config": tower, "text_config": text("qwen3"), "image_token_id": IMAGE, "spatial_merge_size": 2}
    model = build("LightOnOcrForConditionalGeneration", **config)
    given = {"pixel_values": pixels(2, 32, 48), "image_sizes": torch.tensor([[32, 32], [16, 48]])}
    return model, {**prompts([1, *images(4), 5, *images(3), 6, 7]), **given}


def llava_next_video(image_size: int = 32, points: Any = PINPOINTS) -> tuple[Any, dict[str, Any]]:
    tower = vision("clip_vision_model", image_size=image_size)
    config = {"vision_config": tower, "text_config": text(), "image_token_index": IMAGE, "video_token_index": 98}
    model = build("LlavaNextVideoForConditionalGeneration", **config, image_grid_pinpoints=points)
    if image_size != 32:
        return model, {}
    size = torch.tensor([[24, 96]])
    given = families._any_resolution(model, size, 4)
    return model, {**given, "image_sizes": size, "pixel_values": pixels(4)[None]}


def _tiles(name: str, image_size: int, **more: Any) -> Any:
    tower = vision("siglip_vision_model", vision_use_head=False, image_size=image_size)
    config = {"vision_config": tower, "text_config": text("cohere2", sliding_window=64), "image_token_id": IMAGE}
    return build(f"{name}ForConditionalGeneration", **config, downsample_factor=2, **more)


def cohere_row(tiles: int, length: int) -> list[int]:
    """An image's tiles, with a token after each."""
    return [97, *([*images(length), 95] * tiles), 96]


def aya_row(tiles: int, length: int) -> list[int]:
    """An image's tiles, numbered, and the overview."""
    return [
        97,
        *(id for tile in range(1, tiles) for id in (80, 81, 20 + tile, *images(length))),
        82,
        *images(length),
        96,
    ]


def cohere2_vision(image_size: int = 32) -> tuple[Any, dict[str, Any]]:
    """Two tiles and the overview, then an image of one tile; two tiles side by side in the second prompt."""
    model = _tiles("Cohere2Vision", image_size, alignment_intermediate_size=32)
    rows = [1, *cohere_row(3, 4), *cohere_row(1, 4), 6], [1, *cohere_row(2, 4), 5]
    return model, {**prompts(*rows), "pixel_values": pixels(6)}


def aya_vision(image_size: int = 32) -> tuple[Any, dict[str, Any]]:
    model = _tiles("AyaVision", image_size, adapter_layer_norm_eps=1e-6, vision_feature_layer=-1)
    rows = [1, *aya_row(4, 4), *aya_row(1, 4), 6], [1, *aya_row(3, 4), 5]
    return model, {**prompts(*rows), "pixel_values": pixels(8)}


MORE: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "glm4v": lambda: glm("Glm4v", "glm4v_vision", "glm4v_text"),
    "glm4v_moe": lambda: glm("Glm4vMoe", "glm4v_moe_vision", "glm4v_moe_text", **EXPERTS),
    "glm46v": lambda: glm("Glm46V", "glm4v_vision", "glm4v_text"),
    "glm_ocr": lambda: glm("GlmOcr", "glm_ocr_vision", "glm_ocr_text"),
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": lambda: qwen3_5("moe", shared_expert_intermediate_size=16, **EXPERTS),
    "paddleocr_vl": paddleocr_vl,
    "gemma4": gemma4,
    "janus": janus,
    "deepseek_vl": deepseek_vl,
    "lighton_ocr": lighton_ocr,
    "llava_next_video": llava_next_video,
    "cohere2_vision": cohere2_vision,
    "aya_vision": aya_vision,
}
