"""Tiny models of every supported family, with random weights that make attention far from uniform."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from attnhook.zoo import loading

GRID = (3, 5)
PATCH = 8
IMAGE = (GRID[0] * PATCH, GRID[1] * PATCH)


def demo_at_224_pixels(monkeypatch: Any) -> None:
    """The real backbone at a fifth of its cost; `test_readme.py` runs it at 518 px."""
    load_demo = loading._load_demo
    monkeypatch.setattr(loading, "_load_demo", lambda *args, **options: load_demo(*args, **options | {"size": 224}))


def sharpen(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights under which queries meet keys with scores of standard deviation about 3."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() >= 2:
                fan_in = parameter[0].numel() if "token" not in name and "embed" not in name.rpartition(".")[2] else 1
                wide = any(key in name for key in ("q_proj", "k_proj", "qkv", "query", "key", "in_proj", ".q.", ".kv."))
                std = (2.0 if wide else 1.0) / fan_in**0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            elif "bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif parameter.dim() == 1 and ("gamma" in name or "lambda" in name or "cls" in name or "class_emb" in name):
                parameter.fill_(0.7)
    return model.eval()


@dataclass(frozen=True)
class Case:
    """A model, how to build it with another kernel, what it has."""

    name: str
    build: Callable[..., nn.Module]
    cls: int | None = 0
    registers: int = 0
    distillation: bool = False
    suffix: int = 0
    readout: str = "cls"
    blocks: int = 2
    inputs: Callable[[int], dict[str, Any]] | None = field(default=None)

    def feed(self, model: nn.Module, batch: int = 2, seed: int = 1) -> Any:
        """Run the model on random images."""
        if self.inputs is not None:
            return model(**self.inputs(batch))
        return model(images(batch, seed))


def images(batch: int = 2, seed: int = 1, size: tuple[int, int] = IMAGE) -> torch.Tensor:
    """Random images `(batch, 3, height, width)`."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


# --- transformers ---------------------------------------------------------------------------------------------------------------

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def hf(model: str, config: str, **settings: Any) -> Callable[..., nn.Module]:
    def build(implementation: str = "sdpa") -> nn.Module:
        import transformers

        sizes = _SIZES | {"image_size": IMAGE, "patch_size": PATCH} | settings
        made = getattr(transformers, config)(**{k: v for k, v in sizes.items() if v is not None})
        made._attn_implementation = implementation
        return sharpen(getattr(transformers, model)(made))

    return build


def hf_pair(model: str, config: str, vision: str, text: str) -> Callable[..., nn.Module]:
    def build(implementation: str = "sdpa") -> nn.Module:
        import transformers

        text_config = getattr(transformers, text)(**_SIZES, vocab_size=99, max_position_embeddings=16)
        vision_config = getattr(transformers, vision)(**_SIZES, image_size=GRID[0] * PATCH, patch_size=PATCH)
        made = getattr(transformers, config)(
            text_config=text_config.to_dict(), vision_config=vision_config.to_dict(), projection_dim=16
        )
        made._attn_implementation = implementation
        return sharpen(getattr(transformers, model)(made))

    return build


def square(batch: int) -> dict[str, Any]:
    return {"pixel_values": images(batch, size=(GRID[0] * PATCH, GRID[0] * PATCH))}


def interpolated(batch: int) -> dict[str, Any]:
    return {"pixel_values": images(batch), "interpolate_pos_encoding": True}


def text_and_image(batch: int) -> dict[str, Any]:
    return square(batch) | {"input_ids": torch.arange(5).repeat(batch, 1) + 3}


def packed(batch: int) -> dict[str, Any]:
    pixels = torch.randn(batch, 18, 3 * PATCH * PATCH, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(batch, 18, dtype=torch.int64)
    mask[:, : GRID[0] * GRID[1]] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor([GRID] * batch)}


_FIXED = {"image_size": GRID[0] * PATCH}
_SIGLIP2 = {"image_size": None, "num_patches": 16}

TRANSFORMERS = [
    Case("ViTModel", hf("ViTModel", "ViTConfig")),
    Case("ViTForImageClassification", hf("ViTForImageClassification", "ViTConfig")),
    Case("DeiTModel", hf("DeiTModel", "DeiTConfig"), distillation=True),
    Case("DeiTWithTeacher", hf("DeiTForImageClassificationWithTeacher", "DeiTConfig"), distillation=True),
    Case("Dinov2Model", hf("Dinov2Model", "Dinov2Config", **_FIXED)),
    Case("Dinov2ForImageClassification", hf("Dinov2ForImageClassification", "Dinov2Config", **_FIXED)),
    Case("Dinov2WithRegisters", hf("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **_FIXED), registers=4),
    Case("DINOv3ViT", hf("DINOv3ViTModel", "DINOv3ViTConfig", num_register_tokens=4, image_size=24), registers=4),
    Case("CLIPVision", hf("CLIPVisionModel", "CLIPVisionConfig", **_FIXED), inputs=interpolated),
    Case(
        "CLIPModel",
        hf_pair("CLIPModel", "CLIPConfig", "CLIPVisionConfig", "CLIPTextConfig"),
        inputs=text_and_image,
    ),
    Case(
        "SiglipVision",
        hf("SiglipVisionModel", "SiglipVisionConfig", **_FIXED),
        cls=None,
        readout="pool",
        blocks=3,
        inputs=interpolated,
    ),
    Case(
        "Siglip2Vision",
        hf("Siglip2VisionModel", "Siglip2VisionConfig", **_SIGLIP2),
        cls=None,
        readout="pool",
        blocks=3,
        suffix=3,
        inputs=packed,
    ),
    Case(
        "BeitModel",
        hf("BeitModel", "BeitConfig", use_relative_position_bias=True, **_FIXED),
        readout="mean",
        inputs=square,
    ),
    Case(
        "BeitForImageClassification",
        hf("BeitForImageClassification", "BeitConfig", use_mean_pooling=False, **_FIXED),
        inputs=square,
    ),
    Case(
        "Data2VecVision",
        hf("Data2VecVisionModel", "Data2VecVisionConfig", use_shared_relative_position_bias=True, **_FIXED),
        readout="mean",
        inputs=square,
    ),
    Case("ViTMAE", hf("ViTMAEModel", "ViTMAEConfig", mask_ratio=0.4, **_FIXED), inputs=square),
    Case("ViTMSN", hf("ViTMSNModel", "ViTMSNConfig")),
    Case("IJepa", hf("IJepaModel", "IJepaConfig"), cls=None, readout="mean"),
    Case("YolosModel", hf("YolosModel", "YolosConfig", num_detection_tokens=7), suffix=7),
]

# --- timm -----------------------------------------------------------------------------------------------------------------------

_SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4}


def timm(kind: str, **settings: Any) -> Callable[..., nn.Module]:
    def build(implementation: str = "sdpa") -> nn.Module:
        import importlib

        from timm.layers import set_fused_attn, use_fused_attn

        module, _, name = kind.rpartition(".")
        before = use_fused_attn()
        set_fused_attn(implementation == "sdpa")
        try:
            defaults = {"img_size": IMAGE, "patch_size": PATCH, "num_classes": 6}
            model = getattr(importlib.import_module(f"timm.models.{module}"), name)(**(defaults | _SMALL | settings))
        finally:
            set_fused_attn(before)
        return sharpen(model)

    return build


_VIT, _EVA, _BEIT = "vision_transformer.VisionTransformer", "eva.Eva", "beit.Beit"
_ROPE = {"use_rot_pos_emb": True, "num_reg_tokens": 4, "global_pool": "token"}

TIMM = [
    Case("vit", timm(_VIT)),
    Case("vit_avg", timm(_VIT, global_pool="avg"), readout="mean"),
    Case("vit_qk_norm", timm(_VIT, qk_norm=True, init_values=0.1)),
    Case("vit_registers", timm(_VIT, reg_tokens=4, no_embed_class=True), registers=4),
    Case(
        "vit_reg_gap",
        timm(_VIT, reg_tokens=4, class_token=False, global_pool="avg"),
        cls=None,
        registers=4,
        readout="mean",
    ),
    Case("vit_siglip", timm(_VIT, class_token=False, global_pool="map"), cls=None, readout="pool", blocks=3),
    Case(
        "vit_map_registers",
        timm(_VIT, class_token=False, reg_tokens=2, global_pool="map"),
        cls=None,
        registers=2,
        readout="pool",
        blocks=3,
    ),
    Case("vit_distilled", timm("deit.VisionTransformerDistilled"), distillation=True),
    Case("vit_dynamic", timm(_VIT, dynamic_img_size=True, img_size=(48, 16))),
    Case("vit_dynamic_pad", timm(_VIT, dynamic_img_size=True, dynamic_img_pad=True, img_size=(48, 16))),
    Case("vit_no_pool", timm(_VIT, global_pool="", num_classes=0)),
    Case("eva_rope", timm(_EVA, **_ROPE), registers=4),
    Case("eva_avg", timm(_EVA, qkv_fused=False, use_rot_pos_emb=True), readout="mean"),
    Case("beit", timm(_BEIT, use_rel_pos_bias=True), readout="mean"),
    Case("beit_token", timm(_BEIT, use_shared_rel_pos_bias=True, global_pool="token")),
]
