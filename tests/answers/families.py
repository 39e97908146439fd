"""Tiny random vision-language models of each family, and inputs as their processors make them."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

IMAGE = 99
BEFORE_5 = int(transformers.__version__.partition(".")[0]) < 5  # some settings and outputs have other names
TEXT = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


CROSSING = ("encoder_attn", "crossattention")


def build(name: str, **config: Any) -> Any:
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = sharpened(kind(kind.config_class(**config)).eval())
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def sharpened(model: Any) -> Any:
    """The model with larger weights: those that transformers draws attend almost uniformly, and would not tell keys apart."""
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(4)
            if "q_proj" in path or "query" in path:
                weight.mul_(32 if any(word in path for word in CROSSING) else 4)
    return model


def text(kind: str = "llama", **more: Any) -> Any:
    return AutoConfig.for_model(kind, **{**TEXT, **more})


def vision(kind: str, **more: Any) -> Any:
    return AutoConfig.for_model(kind, **{**VISION, **more})


def rope(**settings: Any) -> dict[str, Any]:
    """Settings of rotary positions."""
    if not BEFORE_5:
        return {"rope_parameters": settings}
    return {"rope_theta": settings.pop("rope_theta"), "rope_scaling": settings}


def image_features(model: Any, *pixels: torch.Tensor, **named: torch.Tensor) -> Any:
    """What the language model is given of the images: a tensor, or one for each image."""
    with torch.no_grad():
        found = model.model.get_image_features(*pixels, **named)
    if isinstance(found, tuple) and not isinstance(found[0], torch.Tensor):
        return found[0]  # before transformers 5, Qwen3-VL returns features of other layers, too
    return getattr(found, "pooler_output", found)


def prompts(*rows: list[int], pad: int = 0) -> dict[str, torch.Tensor]:
    """Ids and attention mask, padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def pixels(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def images(count: int) -> list[int]:
    return [IMAGE] * count


def llava(**more: Any) -> tuple[Any, dict[str, Any]]:
    config = {"vision_config": vision("clip_vision_model"), "text_config": text(), "image_token_index": IMAGE}
    model = build("LlavaForConditionalGeneration", **{**config, **more})
    return model, {**prompts([1, *images(16), 5, 6, 7]), "pixel_values": pixels(1)}


def llava_batch(**more: Any) -> tuple[Any, dict[str, Any]]:
    """Left padding, and two images in the second prompt."""
    model, _ = llava(**more)
    rows = [1, *images(16), 5, 6], [1, 4, *images(16), 8, *images(16), 9, 10]
    return model, {**prompts(*rows), "pixel_values": pixels(3)}


def vipllava() -> tuple[Any, dict[str, Any]]:
    config = {"vision_config": vision("clip_vision_model"), "text_config": text(), "image_token_index": IMAGE}
    model = build("VipLlavaForConditionalGeneration", **config, vision_feature_layers=[-1, -2])
    return model, {**prompts([1, *images(16), 5, 6, 7]), "pixel_values": pixels(1)}


def llava_windows() -> tuple[Any, dict[str, Any]]:
    """A language model with a sliding window in every layer."""
    return llava(text_config=text("mistral", sliding_window=12))


def paligemma() -> tuple[Any, dict[str, Any]]:
    config = {"vision_config": vision("siglip_vision_model", projection_dim=32), "text_config": text("gemma")}
    model = build("PaliGemmaForConditionalGeneration", **config, image_token_index=IMAGE, projection_dim=32)
    given = prompts([*images(16), 1, 5, 6, 7])
    return model, {**given, "token_type_ids": torch.zeros_like(given["input_ids"]), "pixel_values": pixels(1)}


def gemma3() -> tuple[Any, dict[str, Any]]:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = {
        "vision_config": vision("siglip_vision_model", image_size=64),
        "text_config": text("gemma3_text", sliding_window=10, layer_types=layers, query_pre_attn_scalar=8),
    }
    model = build("Gemma3ForConditionalGeneration", **config, image_token_index=IMAGE, mm_tokens_per_image=16)
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_()  # it begins as zeros
    given = prompts([1, 4, *images(16), 5, 6, 7])
    kinds = (given["input_ids"] == IMAGE).long()
    return model, {**given, "token_type_ids": kinds, "pixel_values": pixels(1, 64, 64)}


def _qwen(name: str, vision_config: dict[str, Any], text_kind: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    ids = {"image_token_id": IMAGE, "video_token_id": 98, "vision_start_token_id": 97, "vision_end_token_id": 96}
    positions = rope(rope_type="default", mrope_section=[2, 1, 1], rope_theta=10000.0)
    text_config = {**TEXT, **positions, "model_type": text_kind, **more}
    model = build(name, vision_config=vision_config, text_config=text_config, **ids)
    grids = torch.tensor([[1, 4, 6], [1, 2, 8]])
    numbers = 3 * 2 * 8 * 8
    given = prompts([1, 97, *images(6), 96, 5, 97, *images(4), 96, 6, 7])
    patches = torch.rand(24 + 16, numbers, generator=torch.Generator().manual_seed(3))
    kinds = {} if BEFORE_5 else {"mm_token_type_ids": (given["input_ids"] == IMAGE).long()}
    return model, {**given, "pixel_values": patches, "image_grid_thw": grids, **kinds}


def qwen2_vl() -> tuple[Any, dict[str, Any]]:
    config = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2}
    return _qwen("Qwen2VLForConditionalGeneration", config, "qwen2_vl_text")


def qwen2_5_vl() -> tuple[Any, dict[str, Any]]:
    config = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "patch_size": 8}
    more = {"intermediate_size": 24, "window_size": 32, "fullatt_block_indexes": [1], "spatial_merge_size": 2}
    return _qwen("Qwen2_5_VLForConditionalGeneration", {**config, **more}, "qwen2_5_vl_text")


def qwen3_vl() -> tuple[Any, dict[str, Any]]:
    config = {"depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "patch_size": 8}
    more = {"intermediate_size": 24, "spatial_merge_size": 2, "deepstack_visual_indexes": [0, 1]}
    positions = {"num_position_embeddings": 64}
    return _qwen("Qwen3VLForConditionalGeneration", {**config, **more, **positions}, "qwen3_vl_text")


def _tiles(name: str, kind: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    """Two rows of three tiles and the overview, four tokens each; then an image of one tile."""
    config = {"vision_config": vision(kind), "text_config": text(), "image_token_id": IMAGE, "scale_factor": 2}
    model = build(name, **{**config, **more})
    row = [1]
    for down in range(2):
        for across in range(3):
            row += [90, 60 + 3 * down + across, *images(4)]
        row += [13]
    row += [13, 90, 80, *images(4), 90, 5, 90, 80, *images(4), 90, 6, 7]
    return model, {**prompts(row), "pixel_values": pixels(8)[None]}


def idefics3() -> tuple[Any, dict[str, Any]]:
    return _tiles("Idefics3ForConditionalGeneration", "idefics3_vision")


def smolvlm() -> tuple[Any, dict[str, Any]]:
    return _tiles("SmolVLMForConditionalGeneration", "smolvlm_vision")


def llama4(**more: Any) -> tuple[Any, dict[str, Any]]:
    """Two rows of three tiles and the overview, four tokens each, then an image of one tile; in the second prompt, two rows of one tile.

    Layers see the last chunk of 25 tokens, which ends while the answer is made; the middle one sees everything, by temperature.
    """
    tower = {"image_size": 32, "patch_size": 8, "pixel_shuffle_ratio": 0.5, "hidden_size": 32, "intermediate_size": 128}
    tower |= {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32, "num_hidden_layers": 2}
    layers = {
        **TEXT,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "attention_chunk_size": 25,
        "floor_scale": 10,
    }
    layers |= {"interleave_moe_layer_step": 2, "no_rope_layers": [1, 0, 1], "attn_scale": 0.5}
    if not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):  # transformers 5.24.0 fails without it
        MoeCausalLMOutputWithPast.image_outputs = None
    model = build(
        "Llama4ForConditionalGeneration",
        vision_config={
            **tower,
            "num_attention_heads": 4,
            "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
            **more,
        },
        text_config=layers,
        image_token_index=IMAGE,
    )
    row = [1, 90]
    for _ in range(2):
        row += [*images(4), 81, *images(4), 81, *images(4), 82]
    row += [80, *images(4), 91, 5, 90, 80, *images(4), 91, 6, 7]
    tall = [1, 4, 90, *images(4), 82, *images(4), 82, 80, *images(4), 91, 5, 9]
    return model, {**prompts(row, tall), "pixel_values": pixels(11)}


def internvl() -> tuple[Any, dict[str, Any]]:
    """Two tiles and the overview in one run, then an image of one tile."""
    tower = vision("internvl_vision", image_size=[32, 32], patch_size=[8, 8])
    config = {"vision_config": tower, "text_config": text("qwen2"), "image_token_id": IMAGE, "downsample_ratio": 0.5}
    model = build("InternVLForConditionalGeneration", **config)
    return model, {**prompts([1, 97, *images(12), 96, 5, 97, *images(4), 96, 6]), "pixel_values": pixels(4)}


def mistral3() -> tuple[Any, dict[str, Any]]:
    tower = vision("pixtral", image_size=64, head_dim=8, hidden_size=32)
    config = {"vision_config": tower, "text_config": text("mistral"), "image_token_index": IMAGE}
    model = build("Mistral3ForConditionalGeneration", **config, spatial_merge_size=2, vision_feature_layer=-1)
    row = [1, *images(2), 91, *images(2), 92, 5, *images(3), 92, 6, 7]
    given = {"pixel_values": pixels(2, 32, 48), "image_sizes": torch.tensor([[32, 32], [16, 48]])}
    return model, {**prompts(row), **given}


def pixtral() -> tuple[Any, dict[str, Any]]:
    """LLaVA with a Pixtral tower."""
    tower = vision("pixtral", image_size=64, head_dim=8, hidden_size=32)
    more = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    model, _ = llava(vision_config=tower, text_config=text("mistral"), **more)
    row = [1, *images(4), 91, *images(4), 92, 5, 6, 7]
    return model, {**prompts(row), "pixel_values": pixels(1, 16, 32), "image_sizes": torch.tensor([[16, 32]])}


PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]]


def llava_next() -> tuple[Any, dict[str, Any]]:
    """A photo of 40 x 100 pixels: an overview, and 1 x 3 tiles of which the middle of the rows is kept."""
    tower = vision("clip_vision_model")
    config = {"vision_config": tower, "text_config": text(), "image_token_index": IMAGE}
    model = build("LlavaNextForConditionalGeneration", **config, image_grid_pinpoints=PINPOINTS)
    size = torch.tensor([[24, 96]])
    return model, {**_any_resolution(model, size, 4), "image_sizes": size, "pixel_values": pixels(4)[None]}


def llava_onevision() -> tuple[Any, dict[str, Any]]:
    tower = vision("siglip_vision_model", vision_use_head=False)
    config = {"vision_config": tower, "text_config": text("qwen2"), "image_token_index": IMAGE, "video_token_index": 98}
    model = build("LlavaOnevisionForConditionalGeneration", **config, image_grid_pinpoints=PINPOINTS)
    size = torch.tensor([[24, 96]])
    return model, {**_any_resolution(model, size, 4), "image_sizes": size, "pixel_values": pixels(4)[None]}


def _any_resolution(model: Any, size: torch.Tensor, inputs: int) -> dict[str, Any]:
    """The model's own count of features says how many tokens its image has."""
    features = image_features(model, pixels(inputs)[None], size)
    return prompts([1, *images(len(features[0])), 5, 6, 7])


FAMILIES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "llava": llava,
    "llava batch": llava_batch,
    "llava windows": llava_windows,
    "vipllava": vipllava,
    "paligemma": paligemma,
    "gemma3": gemma3,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "llama4": llama4,
    "internvl": internvl,
    "mistral3": mistral3,
    "pixtral": pixtral,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
}


def mllama(**options: Any) -> tuple[Any, dict[str, Any]]:
    """Two prompts: with one image of 1 x 2 tiles, and with one tile; the first two of four layers' cross-attention."""
    tower = {**VISION, "attention_heads": 4, "max_num_tiles": 4, "num_global_layers": 1, "vision_output_dim": 48}
    more = {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2]], **options}
    layers = {
        **TEXT,
        "num_hidden_layers": 4,
        "cross_attention_layers": [1, 3],
        **rope(rope_type="default", rope_theta=1e4),
    }
    config = {"vision_config": {**tower, **more}, "text_config": layers, "image_token_index": 110}
    model = build("MllamaForConditionalGeneration", **config)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "cross_attn_attn_gate" in path or "cross_attn_mlp_gate" in path:
                weight.fill_(0.5)
    given = prompts([1, 110, 5, 6, 7, 8], [1, 110, 5, 6])
    width = given["input_ids"].shape[1]
    seen = torch.zeros(2, width, 1, 4, dtype=torch.long)
    seen[0, 1:, 0, :2] = 1
    seen[1, 3:, 0, :1] = 1
    tiles = pixels(8).reshape(2, 1, 4, 3, 32, 32)
    more_inputs = {"aspect_ratio_ids": torch.tensor([[2], [1]]), "cross_attention_mask": seen}
    mask = torch.tensor([[[1, 1, 0, 0]], [[1, 0, 0, 0]]])
    return model, {**given, "pixel_values": tiles, "aspect_ratio_mask": mask, **more_inputs}


def _encoder_decoder(encoder: Any, decoder: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 3, 0
    model = sharpened(transformers.VisionEncoderDecoderModel(config=config).eval())
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 3, 0
    model.generation_config.eos_token_id = None
    return model, {"pixel_values": pixels(2, encoder.image_size, encoder.image_size)}


def donut() -> tuple[Any, dict[str, Any]]:
    tower = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    decoder = {
        "vocab_size": 50,
        "d_model": 16,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 24,
    }
    more = {"encoder_layers": 0, "max_position_embeddings": 64, "is_decoder": True, "add_cross_attention": True}
    return _encoder_decoder(
        AutoConfig.for_model("donut-swin", **tower), AutoConfig.for_model("mbart", **decoder, **more)
    )


def trocr() -> tuple[Any, dict[str, Any]]:
    decoder = {
        "vocab_size": 50,
        "d_model": 24,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 24,
    }
    return _encoder_decoder(vision("vit"), AutoConfig.for_model("trocr", **decoder, max_position_embeddings=64))


def blip() -> tuple[Any, dict[str, Any]]:
    words = {**TEXT, "sep_token_id": 2, "encoder_hidden_size": 24, "projection_dim": 16}
    tower = {**VISION, "projection_dim": 16, "initializer_range": 0.1}
    config = {"vision_config": tower, "text_config": words, "projection_dim": 16}
    model = build("BlipForConditionalGeneration", **config)
    model.text_decoder.generation_config.eos_token_id = None
    return model, {**prompts([1, 5, 6, 2], [1, 7, 8, 2]), "pixel_values": pixels(2)}


def florence2(image_size: int = 32, **more: Any) -> tuple[Any, dict[str, Any]]:
    """A hierarchical tower of overlapping convolutions, and BART; padding on the right, and two images in the second prompt."""
    tower = {"depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]}
    tower |= {"patch_prenorm": [False, True], "embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2]}
    words = {"vocab_size": 120, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "decoder_attention_heads": 4}
    words |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    model = build(
        "Florence2ForConditionalGeneration",
        vision_config={**tower, "window_size": 4, "projection_dim": 16, "model_type": "florence_vision", **more},
        text_config=AutoConfig.for_model("bart", **words, max_position_embeddings=256, forced_eos_token_id=None),
        image_token_id=IMAGE,
    )
    rows = [*images(17), 1, 5, 6, 2], [*images(17), 1, 7, *images(17), 8, 9, 2]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return model, {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": pixels(3, image_size, image_size),
    }


def numbered(*grids: tuple[int, int], side: int = 8, length: int = 24) -> torch.Tensor:
    """Patches with rows and columns in front, padded."""
    patches = torch.zeros(len(grids), length, 2 + 3 * side * side)
    for number, (rows, columns) in enumerate(grids):
        places = torch.cartesian_prod(torch.arange(1.0, rows + 1), torch.arange(1.0, columns + 1))
        patches[number, : len(places), :2] = places
        random = torch.Generator().manual_seed(number)
        patches[number, : len(places), 2:] = torch.randn(len(places), 3 * side * side, generator=random)
    return patches


def pix2struct() -> tuple[Any, dict[str, Any]]:
    """Two pictures of unequal grids, padded to one number of patches."""
    tower = {"hidden_size": 24, "patch_embed_hidden_size": 192, "d_ff": 32, "d_kv": 6, "num_hidden_layers": 2}
    words = {"vocab_size": 50, "hidden_size": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    more = {"num_attention_heads": 4, "seq_len": 64}
    config = {"vision_config": {**tower, **more}, "text_config": words, "initializer_range": 0.2}
    model = build("Pix2StructForConditionalGeneration", **config)
    with torch.no_grad():
        for path, weight in model.decoder.named_parameters():
            if "query" in path:
                weight.div_(16)  # its logits are not divided by the root of the width
    patches = numbered((4, 5), (3, 8))
    return model, {"flattened_patches": patches, "attention_mask": (patches.sum(-1) != 0).float()}


CROSS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "mllama": mllama,
    "donut": donut,
    "trocr": trocr,
    "blip": blip,
    "florence2": florence2,
    "pix2struct": pix2struct,
}
