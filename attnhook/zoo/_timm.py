"""timm's models: which modules are attention, what their tokens are, and what their heads read.

timm is not imported: what their code calls and the attributes that they share tell its classes apart; `_timm_blocks` lists the rest.
"""

from dataclasses import replace
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
from attnhook.zoo._timm_blocks import NOT_TOKENS, site_options
from attnhook.zoo.token_rules import ModuleContext, no_attention, pair

_FEATURE_NETS = frozenset({"FeatureListNet", "FeatureDictNet", "FeatureHookNet"})  # of features_only=True


def any_model(model: Any) -> ModelAnatomy:
    """Anatomy of any model that timm builds."""
    sites = _sites(model)
    if not sites:
        raise UnsupportedModelError(no_attention(type(model).__name__, _token_mixers(model)))
    cls, distilled, registers = _special_tokens(model)
    anatomy = ModelAnatomy(
        sites=sites,
        cls=0 if cls else None,
        registers=registers,
        distillation=distilled,
        readout=_readout(model, sites, has_class_token=cls),
    )
    if (packing := _packing_embedding(model)) is not None:
        tokens_of = partial(_packed_tokens, pair(packing.patch_size))
        return replace(anatomy, image_module=packing, token_module=packing, tokens_of=tokens_of)
    embedding = _patch_embedding(model) if any(site.tokens_of is None for site in sites) else None
    patch_drop = getattr(model, "patch_drop", None)
    return replace(
        anatomy,
        image_module=_image_module(model, embedding),
        grid_module=embedding,
        token_module=patch_drop if isinstance(patch_drop, nn.Module) and type(patch_drop) is not nn.Identity else None,
        tokens_of=_patches_kept,
    )


def _sites(model: nn.Module) -> tuple[AttentionSite, ...]:
    return tuple(
        AttentionSite(name, module, _kernel, **site_options(ModuleContext(model, name, module)))
        for name, module in model.named_modules()  # without the model: its own softmax weighs features
        if name and class_of(module).__name__ not in NOT_TOKENS and attends(module)
    )


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
    own = getattr(model, "pixel_embed" if embedding is None else "patch_embed", None)
    if isinstance(own, nn.Module):
        return own  # TNT's pixel embedding has a convolution, which is fed patches
    if embedding is not None:
        return embedding
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
            "its head averages the positions of the last stage, while blocks attend on other grids or within windows. Use "
            "received_attention(maps, block) with rows='all'",
        )
    averages = pool == "avg" and not getattr(model, "pool_include_prefix", False)
    if averages or (pool in ("", "none", None, "merge", "align", "soft") and not has_class_token):
        return Readout(Rows.MEAN, f"global_pool={pool!r}" + ("" if averages else ", and it has no class token"))
    return Readout(
        None, f"its head pools with global_pool={pool!r}, which is neither one token nor the mean over patches"
    )


def _packing_embedding(model: Any) -> Any:
    """The embeddings of NaFlexVit and Gemma 4, which take images or patches with their coordinates; None for other models."""
    for holder, name in ((model, "embeds"), (model, "patch_embed"), (getattr(model, "encoder", None), "patch_embed")):
        embed = getattr(holder, name, None)
        if embed is not None and class_of(embed).__name__ in {"NaFlexEmbeds", "Gemma4PatchEmbed"}:
            return embed
    return None


def _packed_tokens(patch: Size, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> SequenceInfo:
    given = {**dict(zip(("patches", "patch_coord", "patch_valid"), args, strict=False)), **kwargs}
    patches, coordinates = given.get("patches", given.get("x")), given.get("patch_coord")
    if not isinstance(patches, Tensor) or (coordinates is None and patches.dim() != 4):
        return SequenceInfo(
            problem="the patch grid is unknown: expected images, or patches and their coordinates. Pass patch_coord=."
        )
    if coordinates is None:
        grid = (patches.shape[2] // patch[0], patches.shape[3] // patch[1])
        return SequenceInfo(grid=grid, area=(grid[0] * patch[0], grid[1] * patch[1]))
    valid = given.get("patch_valid")
    counts = {coordinates.shape[1]} if valid is None else set(valid.sum(dim=1).tolist())
    count = max(counts)
    last = coordinates[:, :count].amax(dim=1) + 1
    grids = {(int(h), int(w)) for h, w in last.tolist()}
    grid = grids.pop()
    axes = (torch.arange(length, device=coordinates.device) for length in grid)
    rows_first = torch.cartesian_prod(*axes).to(coordinates)
    if grids or len(counts) > 1 or count != grid[0] * grid[1] or not bool((coordinates[:, :count] == rows_first).all()):
        return SequenceInfo(
            problem="the patch grid is ambiguous: expected one grid, row by row, for all images of the batch, got different grids or another "
            "order. Run images of one grid together, or read the rows without a grid."
        )
    return SequenceInfo(grid=grid, area=(grid[0] * patch[0], grid[1] * patch[1]), padding=coordinates.shape[1] - count)


def _patches_kept(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> SequenceInfo:
    """`PatchDropoutWithIndices` returns (tokens, indices); indices are None outside training."""
    dropped = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Tensor)
    return SequenceInfo(order=output[1].detach() if dropped else None)


def _token_mixers(model: nn.Module) -> list[str]:
    kinds = {class_of(module).__name__ for module in model.modules()}
    words = sorted({NOT_TOKENS[kind] for kind in kinds & NOT_TOKENS.keys()})
    if not words and any("pool" in kind.lower() and "mix" in kind.lower() for kind in kinds):
        words = ["token mixing by pooling"]
    if any(isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 for module in model.modules()):
        words.append("convolutions")
    elif not words:
        words.append("multilayer perceptrons over tokens")
    return words


def _is_model(module: nn.Module) -> bool:
    kind = class_of(module)
    if kind.__module__ == "timm.models._features":
        return kind.__name__ in _FEATURE_NETS  # a FeatureGetterNet holds a whole model
    whole = hasattr(module, "forward_head") or hasattr(module, "pretrained_cfg")
    return whole and kind.__module__.startswith("timm.models")


register_library("timm", any_model, _is_model)
