"""What torchvision's Vision Transformers mean. Imports nothing of torchvision: types are registered by name."""

from typing import Any

from torch import nn

from attnhook.capture.adapters import ModelAnatomy, Readout, register_adapter
from attnhook.capture.sites import AttentionSite
from attnhook.options import Rows


def vision_transformer(model: Any) -> ModelAnatomy:
    """Anatomy of torchvision's `VisionTransformer`.

    Args:
        model: The model.

    Returns:
        Its anatomy.
    """
    sites = [
        AttentionSite(name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    ]
    return ModelAnatomy(
        sites=tuple(sites),
        cls=0,
        readout=Readout(Rows.CLS, "its head reads the first token"),
        image_module=model.conv_proj,
        grid_module=model.conv_proj,
    )


register_adapter("torchvision.models.vision_transformer.VisionTransformer", vision_transformer)
