"""What transformers' vision models mean: which modules are attention, what their tokens are, what their heads read.

Imports nothing of transformers. Attention is recognised by what a class's code calls, towers by their patch embeddings, special tokens by the
parameters that towers share. What cannot be seen stands by class in `_transformers_blocks`, packed towers in `_transformers_packed`.
"""

import inspect
import re
from functools import partial
from typing import Any

from torch import nn

from attnhook.capture.anatomy import ModelAnatomy, Readout
from attnhook.capture.recognition import attends, class_of
from attnhook.capture.registry import find_adapter, find_anatomy, register_adapter
from attnhook.capture.sites import AttentionSite, Kernel, Queries, SiteTokens
from attnhook.errors import UnsupportedModelError
from attnhook.options import Rows
from attnhook.zoo._transformers_blocks import facts_of, not_tokens
from attnhook.zoo._transformers_packed import packing_at, packing_of, tokens_of_call
from attnhook.zoo._transformers_towers import (
    CONVOLUTIONS,
    Tower,
    find_towers,
    inside,
    shown_tokens,
    special_tokens,
    text_parts,
)

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_CALLS = frozenset({_INTERFACE, "scaled_dot_product_attention", "softmax", "Softmax"})

# Classes whose head reads the mean over patches although there is a class token, or an attention pooling that it passes by.
_MEAN_HEADS = frozenset(
    {
        "CLIPForImageClassification",
        "SiglipForImageClassification",
        "Siglip2ForImageClassification",
        "MetaClip2ForImageClassification",
    }
)
# Heads that read every position, and not one token or the patches' mean.
_DENSE_HEADS = re.compile(
    r"For(MaskedImageModeling|PreTraining|\w*Segmentation|DepthEstimation|NormalEstimation|PointmapEstimation|PoseEstimation|ImageMatting"
    r"|DensePrediction|ImageSuperResolution|KeypointDetection|KeypointMatching|TableRecognition|TextRecognition|SceneTextRecognition"
    r"|VideoGrounding)$"
)
_BOTH = "its head reads the class token and the mean of the patches; rows='mean' gives the latter"
_POOLING = re.compile(r"AttentionPool|AttentivePool|PoolingHead|MgpstrA3Module")


def vision_model(model: Any) -> ModelAnatomy:
    """Anatomy of a `PreTrainedModel` that sees images: a vision tower, bare or inside a task model, or any other model with attention."""
    outside = text_parts(model)
    towers = find_towers(model, outside)
    tower = towers[0] if len(towers) == 1 else None
    sites = _sites(model, outside, tower)
    if not sites:
        raise UnsupportedModelError(_what_it_does(model, outside))
    first = next((m for n, m in model.named_modules() if isinstance(m, CONVOLUTIONS) and not inside(n, outside)), None)
    if tower is None:
        return ModelAnatomy(
            sites=sites, cls=None, readout=_readout(model, sites, None, has_class_token=False), image_module=first
        )
    special = special_tokens(tower)
    packed = packing_of(tower) is not None
    embeds_itself = not isinstance(tower.embeddings, nn.ModuleList | nn.ModuleDict)
    return ModelAnatomy(
        sites=sites,
        cls=special.cls,
        registers=special.registers,
        distillation=special.distillation,
        suffix=special.suffix,
        readout=_readout(model, sites, tower, has_class_token=special.cls is not None),
        image_module=tower.embeddings if embeds_itself else first,
        grid_module=tower.projection if tower.convolves and not packed else None,
        token_module=tower.embeddings if embeds_itself and not packed else None,
        tokens_of=shown_tokens(tower, special) if embeds_itself else None,
    )


# --- attention modules ----------------------------------------------------------------------------------------------------------------------


def _sites(model: nn.Module, outside: tuple[str, ...], tower: Tower | None) -> tuple[AttentionSite, ...]:
    sites: list[AttentionSite] = []
    seen: list[str] = []  # models of other libraries
    packing = None if tower is None else packing_of(tower)
    special = None if tower is None else special_tokens(tower)
    for name, module in model.named_modules():
        kind = class_of(module)
        if not name or inside(name, outside) or inside(name, tuple(seen)) or not_tokens(kind.__name__):
            continue
        if kind.__module__.startswith("timm.") and find_adapter(module) is not None:
            seen.append(name)
            sites += _sites_of_timm(name, module)
            continue
        if not attends(module, calls=_CALLS, base="PreTrainedModel"):
            continue
        facts = facts_of(model, name, module)
        if _is_pooling(model, name):
            facts = {"queries": Queries.POOL, **facts}
        elif "tokens_of" not in facts and (tower is None or not tower.holds(name)):
            facts |= _beyond(tower)
        elif "tokens_of" not in facts and packing is not None and tower is not None and special is not None:
            own, whole = packing_at(packing, tower, name)
            rule = partial(tokens_of_call, own, special, whole=whole)
            facts |= {"tokens_of": rule, "seen_module": tower.module}
        guessed = not isinstance(module, nn.MultiheadAttention) and not _names_in_forward(module) & _CALLS
        kernel = Kernel.MULTIHEAD if isinstance(module, nn.MultiheadAttention) else _kernel
        optional = facts.get("queries") is Queries.OTHER  # a second encoder, a prompt's
        sites.append(AttentionSite(name, module, kernel, optional=optional, guessed=guessed, **facts))
    return tuple(sites)


def _sites_of_timm(name: str, model: nn.Module) -> tuple[AttentionSite, ...]:
    try:
        inner = find_anatomy(model)
    except UnsupportedModelError:  # a CNN
        return ()
    return () if inner is None else inner.under(name).sites


def _is_pooling(model: nn.Module, name: str) -> bool:
    holder = name.rpartition(".")[0]
    return any(_POOLING.search(class_of(model.get_submodule(path)).__name__) for path in (name, holder) if path)


def _beyond(tower: Tower | None) -> dict[str, Any]:
    if tower is None:
        words = "no one patch embedding was recognised, so it is not known what the tokens are. Read `.rows` without a grid."
    else:
        where = f"the vision tower {tower.name!r}" if tower.name else "the vision tower"
        words = f"it is no block of {where}: its tokens are not, or not only, the patches in order. Read `.rows` without a grid."
    return {"queries": Queries.OTHER, "tokens_of": lambda _: SiteTokens(words)}


def _names_in_forward(module: nn.Module) -> set[str]:
    code = getattr(inspect.unwrap(class_of(module).forward), "__code__", None)
    return set() if code is None else set(code.co_names)


def _kernel(module: Any) -> Kernel:
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    names = _names_in_forward(module)
    if _INTERFACE not in names or implementation in (None, "eager"):
        return Kernel.ANY
    if "getattr" in names and "get_interface" not in names:  # which finds nothing there, and falls back to eager
        return Kernel.ANY
    interface = inspect.unwrap(class_of(module).forward).__globals__[_INTERFACE]
    function = interface.get(implementation, None)
    own = getattr(function, "__module__", "") == "transformers.integrations.sdpa_attention"
    return Kernel.SDPA if own else Kernel.INTERFACE


# --- what heads read ------------------------------------------------------------------------------------------------------------------------


def _readout(model: Any, sites: tuple[AttentionSite, ...], tower: Tower | None, *, has_class_token: bool) -> Readout:
    name = class_of(model).__name__
    if (dense := _dense_readout(name, tower, has_class_token=has_class_token)) is not None:
        return dense
    if any(site.pooling for site in sites) and name not in _MEAN_HEADS:
        return Readout(Rows.POOL, "an attention pooling head")
    if tower is None:
        return Readout(None, "no one vision tower was recognised in it. Take rows='all'")
    inner = [site for site in sites if tower.holds(site.name) and site.queries is not Queries.OTHER]
    averages = name in _MEAN_HEADS or getattr(model.config, "use_mean_pooling", False)
    if has_class_token and not averages and any(site.queries is Queries.TOKENS for site in inner):
        return Readout(Rows.CLS, _BOTH if _reads_both(model) else "the class token")
    if any(site.tokens_of is not None for site in inner):
        return Readout(
            None,
            "its blocks attend within windows, or on grids of their own. Take received_attention(maps, block) of a capture with rows='all'",
        )
    return Readout(Rows.MEAN, "the mean over patches" if averages else "no class token")


def _reads_both(model: Any) -> bool:
    """Whether the classifier takes two vectors of the tower's width, as those of DINOv2 do."""
    classifier, width = getattr(model, "classifier", None), getattr(model.config, "hidden_size", None)
    return isinstance(classifier, nn.Linear) and width is not None and classifier.in_features == 2 * width


def _dense_readout(name: str, tower: Tower | None, *, has_class_token: bool) -> Readout | None:
    """What heads read that give more than one answer an image."""
    if name.endswith("ForObjectDetection"):
        suffix = tower is not None and special_tokens(tower).suffix
        words = (
            "the detection tokens, which are the last tokens: rows=range(-n, 0)" if suffix else "a box an object query"
        )
        return Readout(None, f"its head reads {words}")
    if _DENSE_HEADS.search(name):
        return Readout(None, "its head reads every position" + (" (there is a class token)" if has_class_token else ""))
    return None


# --- refusals -------------------------------------------------------------------------------------------------------------------------------


def _model_type(model: Any) -> str:
    return getattr(getattr(model, "config", None), "model_type", "unknown")


def _what_it_does(model: nn.Module, outside: tuple[str, ...]) -> str:
    kinds = {class_of(module).__name__ for name, module in model.named_modules() if not inside(name, outside)}
    words = sorted({words for kind in kinds if (words := not_tokens(kind))})
    if any(isinstance(m, nn.Conv2d) for n, m in model.named_modules() if not inside(n, outside)):
        words.append("convolutions")
    if outside and not words:
        words.append("a language model that reads patches as words, and no vision tower")
    return (
        f"{class_of(model).__name__} (model_type {_model_type(model)!r}) has no softmax attention between tokens: expected queries that attend "
        f"to keys, got {', '.join(words) or 'no attention module'}. There is no attention map to capture."
    )


def timm_wrapper(model: Any) -> ModelAnatomy:
    """Anatomy of a timm model in transformers' clothes."""
    inner = find_anatomy(model.timm_model)
    if inner is None:
        raise UnsupportedModelError(f"{type(model).__name__} holds no model of timm: expected one at .timm_model.")
    return inner.under("timm_model")


register_adapter("transformers.modeling_utils.PreTrainedModel", vision_model)
register_adapter("transformers.models.timm_wrapper.modeling_timm_wrapper.TimmWrapperPreTrainedModel", timm_wrapper)
