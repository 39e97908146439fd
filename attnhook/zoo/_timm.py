"""What timm's Vision Transformers mean: which modules are attention, what their tokens are, what their heads read.

Imports nothing of timm: types are registered by name, facts are read from the attributes that timm's classes share.
"""

from typing import Any

from torch import Tensor, nn

from attnhook.capture.adapters import ModelAnatomy, Readout, SeenTokens, register_adapter
from attnhook.capture.sites import AttentionSite, Kernel, Queries
from attnhook.errors import UnsupportedModelError
from attnhook.options import Rows

_POOLINGS = {"AttentionPoolLatent"}
_DIFFERENTIAL = {"DiffAttention", "DiffParallelScalingBlock"}


def vision_transformer(model: Any) -> ModelAnatomy:
    """Anatomy of timm's `VisionTransformer`, `Eva`, `Beit`, and what derives from them.

    Args:
        model: The model.

    Returns:
        Its anatomy.
    """
    distilled = getattr(model, "dist_token", None) is not None
    has_class_token = getattr(model, "cls_token", None) is not None
    prefix = int(model.num_prefix_tokens)
    patch_drop = getattr(model, "patch_drop", None)
    return ModelAnatomy(
        sites=_sites(model),
        cls=0 if has_class_token else None,
        registers=prefix - int(has_class_token) - int(distilled),
        distillation=distilled,
        readout=_readout(model, has_class_token=has_class_token),
        image_module=model.patch_embed,
        grid_module=getattr(model.patch_embed, "proj", model.patch_embed),
        token_module=patch_drop if isinstance(patch_drop, nn.Module) else None,
        tokens_of=_kept_patches,
    )


def _sites(model: nn.Module) -> tuple[AttentionSite, ...]:
    """Every module with timm's switch between the fused and the explicit kernel."""
    sites = []
    for name, module in model.named_modules():
        if not hasattr(module, "fused_attn"):
            continue
        if type(module).__name__ in _DIFFERENTIAL:
            raise UnsupportedModelError(
                f"block {name!r} computes differential attention ({type(module).__name__}): what multiplies the values is the "
                "difference of two softmaxes, not attention rows. Choose blocks without it."
            )
        sites.append(
            AttentionSite(
                name, module, _kernel, queries=Queries.POOL if type(module).__name__ in _POOLINGS else Queries.TOKENS
            )
        )
    return tuple(sites)


def _kernel(module: nn.Module) -> Kernel:
    return Kernel.SDPA if getattr(module, "fused_attn", False) else Kernel.OPEN


def _readout(model: Any, *, has_class_token: bool) -> Readout:
    pool = model.global_pool
    if pool == "token":
        return Readout(Rows.CLS, "global_pool='token'")
    if pool == "map":
        return Readout(Rows.POOL, "global_pool='map', an attention pooling")
    if pool == "avg" and not getattr(model, "pool_include_prefix", False):
        return Readout(Rows.MEAN, "global_pool='avg'")
    if pool == "":
        rows = Rows.CLS if has_class_token else Rows.MEAN
        return Readout(rows, "no pooling; " + ("it has a class token" if has_class_token else "it has no class token"))
    return Readout(
        None, f"its head pools with global_pool={pool!r}, which is neither one token nor the mean over patches"
    )


def _kept_patches(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> SeenTokens:
    """`PatchDropoutWithIndices` answers (tokens, indices); indices are None outside training."""
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Tensor):
        return SeenTokens(order=output[1].detach())
    return SeenTokens()


for _name in ("vision_transformer.VisionTransformer", "eva.Eva", "beit.Beit"):
    register_adapter(f"timm.models.{_name}", vision_transformer)
