"""What timm's models mean: which modules are attention, what their tokens are, what their heads read.

Imports nothing of timm: modules are recognised by what their code calls, facts are read from the attributes that timm's classes share, and what
cannot be seen stands by class in `_timm_blocks`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.anatomy import ModelAnatomy, Readout, SequenceInfo
from attnhook.capture.recognition import attends, class_of
from attnhook.capture.registry import register_library
from attnhook.capture.sites import AttentionSite, Kernel
from attnhook.errors import UnsupportedModelError
from attnhook.options import Rows, Size
from attnhook.zoo._timm_blocks import NOT_TOKENS, Place, facts_of
from attnhook.zoo.stages import pair

_FEATURE_NETS = frozenset({"FeatureListNet", "FeatureDictNet", "FeatureHookNet"})  # what features_only makes of a model


def any_model(model: Any) -> ModelAnatomy:
    """Anatomy of any model that timm builds."""
    sites = _sites(model)
    if not sites:
        raise UnsupportedModelError(_what_it_does(model))
    cls, distilled, registers = _special_tokens(model)
    plain = any(site.tokens_of is None for site in sites)
    embedding = _patch_embedding(model)
    patch_drop = getattr(model, "patch_drop", None)
    drops = isinstance(patch_drop, nn.Module) and type(patch_drop) is not nn.Identity
    packing = _packing_embedding(model)
    if packing is not None:
        return _packed(model, packing, sites, cls=cls, registers=registers)
    return ModelAnatomy(
        sites=sites,
        cls=0 if cls else None,
        registers=registers,
        distillation=distilled,
        readout=_readout(model, sites, has_class_token=cls),
        image_module=_image_module(model, embedding if plain else None),
        grid_module=embedding if plain else None,
        token_module=patch_drop if drops else None,
        tokens_of=_kept_patches,
    )


def _sites(model: nn.Module) -> tuple[AttentionSite, ...]:
    sites = []
    for name, module in model.named_modules():
        if (
            name and class_of(module).__name__ not in NOT_TOKENS and attends(module)
        ):  # the model's own softmax weighs features
            sites.append(AttentionSite(name, module, _kernel, **facts_of(Place(model, name, module))))
    return tuple(sites)


def _kernel(module: nn.Module) -> Kernel:
    return Kernel.SDPA if getattr(module, "fused_attn", False) else Kernel.ANY


def _special_tokens(model: Any) -> tuple[bool, bool, int]:
    """Whether there is a class token and a distillation token, and how many registers."""
    distilled = getattr(model, "dist_token", None) is not None
    holders = (model, getattr(model, "embeds", None))  # NaFlexVit keeps them with its embeddings
    cls = any(getattr(holder, "cls_token", None) is not None for holder in holders) or hasattr(model, "cls_token_0")
    prefix = int(getattr(model, "num_prefix_tokens", int(cls) + int(distilled)))
    return cls, distilled, max(prefix - int(cls) - int(distilled), 0)


def _patch_embedding(model: Any) -> nn.Module | None:
    for holder in (model, getattr(model, "encoder", None)):
        embed = getattr(holder, "patch_embed", None)
        if isinstance(embed, nn.Module):
            projection = getattr(embed, "proj", embed)
            return projection if isinstance(projection, nn.Module) else embed
    return None


def _image_module(model: nn.Module, embedding: nn.Module | None) -> nn.Module | None:
    if isinstance(getattr(model, "patch_embed", None), nn.Module) and embedding is not None:
        return model.patch_embed  # type: ignore[return-value]
    if embedding is not None:
        return embedding
    if isinstance(getattr(model, "pixel_embed", None), nn.Module):  # TNT's, whose convolution is fed patches
        return model.pixel_embed  # type: ignore[return-value]
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)


def _readout(model: Any, sites: tuple[AttentionSite, ...], *, has_class_token: bool) -> Readout:
    pool = getattr(model, "global_pool", None)
    pooling = next((site for site in sites if site.pooling), None)
    if pooling is not None and (pooling.readout_rows is not None or pool in ("map", "", None)):
        return Readout(Rows.POOL, f"global_pool={pool!r}, an attention pooling")
    if has_class_token and pool in ("token", "", None):
        return Readout(Rows.CLS, f"global_pool={pool!r}, and it has a class token")
    if any(site.tokens_of is not None for site in sites):
        return Readout(
            None,
            "its head averages the positions of the last stage, while blocks attend on other grids or within windows. Take "
            "received_attention(maps, block) of a capture with rows='all'",
        )
    averages = pool == "avg" and not getattr(model, "pool_include_prefix", False)
    if averages or (pool in ("", "none", None, "merge", "align", "soft") and not has_class_token):
        return Readout(Rows.MEAN, f"global_pool={pool!r}" + ("" if averages else ", and it has no class token"))
    return Readout(
        None, f"its head pools with global_pool={pool!r}, which is neither one token nor the mean over patches"
    )


def _packing_embedding(model: Any) -> Any:
    """The embeddings of NaFlexVit and Gemma 4, which take images, or patches and their coordinates; None for other models."""
    for holder, name in ((model, "embeds"), (model, "patch_embed"), (getattr(model, "encoder", None), "patch_embed")):
        embed = getattr(holder, name, None)
        if embed is not None and class_of(embed).__name__ in {"NaFlexEmbeds", "Gemma4PatchEmbed"}:
            return embed
    return None


def _packed(
    model: Any, embeddings: Any, sites: tuple[AttentionSite, ...], *, cls: bool, registers: int
) -> ModelAnatomy:
    return ModelAnatomy(
        sites=sites,
        cls=0 if cls else None,
        registers=registers,
        readout=_readout(model, sites, has_class_token=cls),
        image_module=embeddings,
        token_module=embeddings,
        tokens_of=partial(_packed_tokens, pair(embeddings.patch_size)),
    )


def _packed_tokens(patch: Size, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> SequenceInfo:
    given = {**dict(zip(("patches", "patch_coord", "patch_valid"), args, strict=False)), **kwargs}
    patches, places = given.get("patches", given.get("x")), given.get("patch_coord")
    if not isinstance(patches, Tensor) or (places is None and patches.dim() != 4):
        return SequenceInfo(problem="the patch grid is not known: expected images, or patches and their coordinates.")
    if places is None:
        grid = (patches.shape[2] // patch[0], patches.shape[3] // patch[1])
        return SequenceInfo(grid=grid, area=(grid[0] * patch[0], grid[1] * patch[1]))
    valid = given.get("patch_valid")
    counts = {places.shape[1]} if valid is None else set(valid.sum(dim=1).tolist())
    count = max(counts)
    last = places[:, :count].amax(dim=1) + 1
    grids = {(int(h), int(w)) for h, w in last.tolist()}
    grid = grids.pop()
    rows_first = torch.cartesian_prod(*(torch.arange(length, device=places.device) for length in grid)).to(places)
    if grids or len(counts) > 1 or count != grid[0] * grid[1] or not bool((places[:, :count] == rows_first).all()):
        return SequenceInfo(
            problem="the images of this batch have different patch grids, or their patches are not in order: expected one grid. Run "
            "images of one grid together, or read the rows without a grid."
        )
    return SequenceInfo(grid=grid, area=(grid[0] * patch[0], grid[1] * patch[1]), padding=places.shape[1] - count)


def _kept_patches(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> SequenceInfo:
    """`PatchDropoutWithIndices` answers (tokens, indices); indices are None outside training."""
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Tensor):
        return SequenceInfo(order=output[1].detach())
    return SequenceInfo()


def _what_it_does(model: nn.Module) -> str:
    kinds = {class_of(module).__name__ for module in model.modules()}
    words = sorted({NOT_TOKENS[kind] for kind in kinds & NOT_TOKENS.keys()})
    if not words and any("pool" in kind.lower() and "mix" in kind.lower() for kind in kinds):
        words = ["token mixing by pooling"]
    if any(isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 for module in model.modules()):
        words.append("convolutions")
    elif not words:
        words.append("multilayer perceptrons over tokens")
    return (
        f"{type(model).__name__} has no softmax attention between tokens: expected queries that attend to keys, got {', '.join(words)}. "
        "There is no attention map to capture; a gradient method such as Grad-CAM suits such models."
    )


def _is_model(module: nn.Module) -> bool:
    kind = class_of(module)
    if not kind.__module__.startswith("timm.models"):
        return False
    if kind.__module__ == "timm.models._features":
        return kind.__name__ in _FEATURE_NETS  # a FeatureGetterNet holds a whole model
    return hasattr(module, "forward_head") or hasattr(module, "pretrained_cfg")


register_library("timm", any_model, _is_model)
