"""Lists of public models that are worth comparing, in both zoos."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Preset:
    """Models that answer a question together."""

    question: str
    specs: tuple[str, ...]  # what `load` takes, of timm and of transformers


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "registers": Preset(
            "Do register tokens remove the sinks from DINOv2's maps? (Darcet et al. 2023, arXiv 2309.16588)",
            (
                "timm:vit_small_patch14_dinov2.lvd142m",
                "timm:vit_small_patch14_reg4_dinov2.lvd142m",
                "hf:facebook/dinov2-small",
                "hf:facebook/dinov2-with-registers-small",
            ),
        ),
        "supervised-vs-ssl": Preset(
            "Does a class token look at different places when it is trained with labels? (Caron et al. 2021, arXiv 2104.14294)",
            (
                "timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
                "timm:deit_base_patch16_224.fb_in1k",
                "timm:vit_base_patch16_224.dino",
                "hf:google/vit-base-patch16-224",
                "hf:facebook/dino-vitb16",
                "hf:openai/clip-vit-base-patch16",
            ),
        ),
        "sizes": Preset(
            "Do larger models of one family look at different places?",
            (
                "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k",
                "timm:vit_small_patch16_224.augreg_in21k_ft_in1k",
                "timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
                "hf:facebook/dinov2-small",
                "hf:facebook/dinov2-base",
                "hf:facebook/dinov2-large",
            ),
        ),
    }
)
"""By name; the weights come from a hub."""
