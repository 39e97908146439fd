"""transformers' vision models: which modules are attention, what their tokens are, and what their heads read.

transformers is not imported: attention is recognised by what a class's code calls, vision towers by their patch embeddings.
"""

import inspect
import re
from contextlib import suppress
from functools import partial
from typing import Any

from torch import nn

from attnhook.capture.anatomy import ModelAnatomy, Readout
from attnhook.capture.recognition import attends, class_of
from attnhook.capture.registry import find_adapter, find_anatomy, register_adapter
from attnhook.capture.sites import AttentionSite, Kernel, Queries
from attnhook.errors import UnsupportedModelError
from attnhook.options import Rows
from attnhook.zoo._transformers_blocks import not_tokens, site_options
from attnhook.zoo._transformers_packed import packing_at, packing_of, tokens_of_call
from attnhook.zoo._transformers_towers import CONVOLUTIONS, Tower, find_towers, inside, text_parts, tokens_seen
from attnhook.zoo.token_rules import ModuleContext, SiteOptions, no_attention, unknown

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_CALLS = frozenset({_INTERFACE, "scaled_dot_product_attention", "softmax", "Softmax"})

# Classes whose head reads the mean over patches although there is a class token or an attention pooling.
_MEAN_HEADS = re.compile(r"(CLIP|Siglip2?|MetaClip2)ForImageClassification")
# Heads that read every position.
_DENSE_HEADS = re.compile(
    r"For(MaskedImageModeling|PreTraining|\w*Segmentation|DepthEstimation|NormalEstimation|PointmapEstimation|PoseEstimation|ImageMatting"
    r"|DensePrediction|ImageSuperResolution|KeypointDetection|KeypointMatching|TableRecognition|TextRecognition|SceneTextRecognition"
    r"|VideoGrounding)$"
)
_BOTH = "its head reads the class token and the mean of the patches; rows='mean' gives the latter"
_RUNS_FIRST = re.compile(
    r"\.(temporal_attention|message_attn)(\.|$)"
)  # of its layer, which creates it last: TimeSformer, X-CLIP
_POOLING = re.compile(r"AttentionPool|AttentivePool|PoolingHead|MgpstrA3Module")


def vision_model(model: Any) -> ModelAnatomy:
    """Anatomy of a `PreTrainedModel`: a vision tower, bare or inside a task model, or any other model with attention."""
    text = text_parts(model)
    towers = find_towers(model, text)
    tower = towers[0] if len(towers) == 1 else None
    sites = _sites(model, text, tower)
    vision = {name: module for name, module in model.named_modules() if not inside(name, text)}
    if not sites:
        raise UnsupportedModelError(_no_attention(model, [*vision.values()], has_text=bool(text)))
    image_module = next((module for module in vision.values() if isinstance(module, CONVOLUTIONS)), None)
    if tower is None:
        # The convolution behind the CNN of a detector, whose output is the feature map that is attended to.
        feature_map = next((one for name, one in vision.items() if name.rpartition(".")[2] == "input_projection"), None)
        return ModelAnatomy(
            sites=sites,
            cls=None,
            readout=_readout(model, sites, None),
            image_module=image_module,
            grid_module=feature_map,
        )
    special = tower.special_tokens
    packed = packing_of(tower) is not None
    runs = not isinstance(tower.embeddings, nn.ModuleList | nn.ModuleDict)
    return ModelAnatomy(
        sites=sites,
        cls=special.cls,
        registers=special.registers,
        distillation=special.distillation,
        suffix=special.suffix,
        readout=_readout(model, sites, tower),
        image_module=tower.embeddings if runs else image_module,
        grid_module=tower.projection if tower.convolves and not packed else None,
        token_module=tower.embeddings if runs and not packed else None,
        tokens_of=tokens_seen(tower) if runs else None,
    )


def _sites(model: nn.Module, text: tuple[str, ...], tower: Tower | None) -> tuple[AttentionSite, ...]:
    sites: list[AttentionSite] = []
    skipped = list(text)
    for name, module in model.named_modules():
        kind = class_of(module)
        if not name or inside(name, tuple(skipped)) or not_tokens(kind.__name__):
            continue
        if kind.__module__.startswith("timm.") and find_adapter(module) is not None:
            skipped.append(name)
            with suppress(UnsupportedModelError):  # a CNN
                if (inner := find_anatomy(module)) is not None:
                    sites += inner.under(name).sites
        elif attends(module, calls=_CALLS, base="PreTrainedModel"):
            options = _options(ModuleContext(model, name, module), tower)
            multihead = isinstance(module, nn.MultiheadAttention)
            site = AttentionSite(
                name,
                module,
                Kernel.MULTIHEAD if multihead else kernel_of,
                optional=options.get("queries") is Queries.OTHER,  # a second encoder, or a prompt's
                guessed=not multihead and not names_in_forward(module) & _CALLS,
                **options,
            )
            sites.insert(len(sites) - bool(_RUNS_FIRST.search(name)), site)
    return tuple(sites)


def _options(context: ModuleContext, tower: Tower | None) -> SiteOptions:
    options = site_options(context)
    if any(_POOLING.search(class_of(one).__name__) for one in (context.module, *context.parents[:-1][:1])):
        return {"queries": Queries.POOL, **options}
    if "tokens_of" in options:
        return options
    if tower is None:
        reason = "the tokens are unknown: expected one patch embedding in the model, got none or several. Read `.rows` without a grid."
        return options | unknown(reason, Queries.OTHER)
    if not tower.contains(context.name):
        where = f"the vision tower {tower.name!r}" if tower.name else "the vision tower"
        reason = f"the tokens are unknown: expected a block of {where}, got a module outside it. Read `.rows` without a grid."
        return options | unknown(reason, Queries.OTHER)
    if (packing := packing_of(tower)) is not None:
        own, whole = packing_at(packing, tower, context.name)
        rule = partial(tokens_of_call, own, tower.special_tokens, whole=whole)
        options |= {"tokens_of": rule, "seen_module": tower.module}
    return options


def names_in_forward(module: nn.Module) -> set[str]:
    """The names that a module's forward uses."""
    code = getattr(inspect.unwrap(class_of(module).forward), "__code__", None)
    return set() if code is None else set(code.co_names)


def kernel_of(module: Any) -> Kernel:
    """How an attention module of transformers computes attention with its present settings."""
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    names = names_in_forward(module)
    if _INTERFACE not in names or implementation in (None, "eager"):
        return Kernel.ANY
    interface = inspect.unwrap(class_of(module).forward).__globals__[_INTERFACE]
    function = interface.get(implementation, None)
    is_sdpa = getattr(function, "__module__", "") == "transformers.integrations.sdpa_attention"
    if (is_sdpa or function is None) and "getattr" in names and "get_interface" not in names:
        return Kernel.ANY  # getattr finds nothing at the interface: it may fall back to a softmax
    return Kernel.SDPA if is_sdpa else Kernel.INTERFACE


def _readout(model: Any, sites: tuple[AttentionSite, ...], tower: Tower | None) -> Readout:
    name = class_of(model).__name__
    averages = _MEAN_HEADS.fullmatch(name) is not None
    has_class_token = tower is not None and tower.special_tokens.cls is not None
    reads = None
    if name.endswith("ForObjectDetection"):
        reads = "one box per object query"
        if tower is not None and tower.special_tokens.suffix:
            reads = "the detection tokens, which are the last tokens: rows=range(-n, 0)"
    elif _DENSE_HEADS.search(name):
        reads = "every position (there is a class token)" if has_class_token else "every position"
    if reads is not None:
        return Readout(None, f"its head reads {reads}")
    if any(site.pooling for site in sites) and not averages:
        return Readout(Rows.POOL, "an attention pooling head")
    if tower is None:
        return Readout(None, "it has no vision tower, or several. Use rows='all'")
    inner = [site for site in sites if tower.contains(site.name) and site.queries is not Queries.OTHER]
    averages = averages or getattr(model.config, "use_mean_pooling", False)
    if has_class_token and not averages and any(site.queries is Queries.TOKENS for site in inner):
        return Readout(Rows.CLS, _BOTH if _reads_both(model) else "the class token")
    if any(site.tokens_of is not None for site in inner):
        return Readout(
            None,
            "its blocks attend within windows or on grids of their own. Use received_attention(maps, block) with rows='all'",
        )
    return Readout(Rows.MEAN, "the mean over patches" if averages else "no class token")


def _reads_both(model: Any) -> bool:
    """Whether the classifier takes two vectors of the tower's width, as those of DINOv2 do."""
    classifier, width = getattr(model, "classifier", None), getattr(model.config, "hidden_size", None)
    return isinstance(classifier, nn.Linear) and width is not None and classifier.in_features == 2 * width


def _no_attention(model: Any, vision: list[nn.Module], *, has_text: bool) -> str:
    found = sorted({words for module in vision if (words := not_tokens(class_of(module).__name__))})
    if any(isinstance(module, nn.Conv2d) for module in vision):
        found.append("convolutions")
    if not found:
        found = ["a language model that reads patches like words" if has_text else "no attention module"]
    model_type = getattr(getattr(model, "config", None), "model_type", "unknown")
    return no_attention(f"{class_of(model).__name__} (model_type {model_type!r})", found)


def timm_wrapper(model: Any) -> ModelAnatomy:
    """Anatomy of a timm model inside transformers' `TimmWrapper`."""
    inner = find_anatomy(model.timm_model)
    if inner is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not supported: expected a timm model at .timm_model, got {type(model.timm_model).__name__}. "
            "Register an adapter with register_adapter."
        )
    return inner.under("timm_model")


register_adapter("transformers.modeling_utils.PreTrainedModel", vision_model)
register_adapter("transformers.models.timm_wrapper.modeling_timm_wrapper.TimmWrapperPreTrainedModel", timm_wrapper)
