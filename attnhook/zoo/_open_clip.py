"""open_clip's vision towers. open_clip is not imported: types are registered by name."""

from typing import Any

from attnhook.capture.anatomy import ModelAnatomy, Readout
from attnhook.capture.recognition import attends
from attnhook.capture.registry import register_adapter
from attnhook.capture.sites import AttentionSite, Queries
from attnhook.options import Rows


def vision_transformer(model: Any) -> ModelAnatomy:
    """Anatomy of open_clip's `VisionTransformer`, bare or as the vision tower of a CLIP or CoCa."""
    sites = tuple(
        AttentionSite(name, module, queries=Queries.POOL if name.startswith("attn_pool") else Queries.TOKENS)
        for name, module in model.named_modules()
        if attends(module)
    )
    if getattr(model, "attn_pool", None) is not None:
        readout = Readout(Rows.POOL, "an attention pooling")
    elif model.pool_type == "avg":
        readout = Readout(Rows.MEAN, "pool_type='avg'")
    else:
        readout = Readout(Rows.CLS, f"pool_type={model.pool_type!r}, and it has a class token")
    return ModelAnatomy(sites=sites, cls=0, readout=readout, image_module=model.conv1, grid_module=model.conv1)


register_adapter("open_clip.transformer.VisionTransformer", vision_transformer)
