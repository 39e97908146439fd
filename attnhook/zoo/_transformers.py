"""What transformers' vision models mean: which modules are attention, what their tokens are, what their heads read.

Imports nothing of transformers. The facts are read off what its vision towers share: an embeddings module that owns the patch embedding and the
special tokens, and attention modules whose forward looks its kernel up at the attention interface. Only what a head reads cannot be seen and
is written down, by family.
"""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.adapters import ModelAnatomy, Readout, SeenTokens, class_of, find_anatomy, register_adapter
from attnhook.capture.sites import AttentionSite, Kernel, Queries
from attnhook.errors import UnsupportedModelError
from attnhook.options import Rows
from attnhook.zoo._transformers_blocks import facts_of, not_tokens

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"
_CALLS = ("scaled_dot_product_attention", "softmax")

# Families whose pooler or classification head reads the class token where they have one, and the mean over patches where not.
_FAMILIES = frozenset(
    {
        "vit",
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "clip",
        "clip_vision_model",
        "siglip",
        "siglip_vision_model",
        "siglip2",
        "siglip2_vision_model",
        "beit",
        "data2vec-vision",
        "vit_mae",
        "vit_msn",
        "ijepa",
        "yolos",
        "chinese_clip_vision_model",
        "metaclip_2",
        "metaclip_2_vision_model",
        "mlcd",
        "mlcd_vision_model",
        "dpt",
        "vivit",
        "timesformer",
    }
)
# Classes whose head reads the mean over patches although there is a class token, or an attention pooling that it passes by.
_MEAN_HEADS = frozenset(
    {
        "CLIPForImageClassification",
        "SiglipForImageClassification",
        "Siglip2ForImageClassification",
        "MetaClip2ForImageClassification",
    }
)


def vision_model(model: Any) -> ModelAnatomy:
    """Anatomy of a `PreTrainedModel` that sees images: a vision tower, bare or inside a task model, or any other model with attention.

    Args:
        model: The model.

    Returns:
        Its anatomy. Of a model with a text tower, the vision tower's.

    Raises:
        UnsupportedModelError: If it has no softmax attention between tokens, or several vision towers.
    """
    towers = _embeddings(model)
    if len(towers) == 1 and (_has_text(model) or _model_type(model) in _FAMILIES):
        return _tower(model, *towers[0])
    if _has_text(model) and len(towers) != 1:
        raise UnsupportedModelError(_no_tower(model, towers))
    reads_text = getattr(model.config, "text_config", None) is not None
    sites = _sites(model, "")
    if not sites:
        raise UnsupportedModelError(_what_it_does(model))
    if len(towers) == 1 and isinstance(_projection(towers[0][1]), nn.Conv2d | nn.Conv3d):
        tower = replace(_tower(model, *towers[0]), sites=sites)
        return replace(tower, image_module=None) if reads_text else tower  # words are read before the image
    return ModelAnatomy(
        sites=sites,
        cls=None,
        readout=Readout(None, f"what the head of model_type {_model_type(model)!r} reads is not known"),
        image_module=None if reads_text else _first_convolution(model),
    )


def _first_convolution(model: nn.Module) -> nn.Module | None:
    return next((module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)


def _tower(model: Any, name: str, embeddings: Any) -> ModelAnatomy:
    """Anatomy of a family whose embeddings module owns the patch embedding and the special tokens."""
    tower = name.rpartition(".")[0]
    sites = _sites(model, f"{tower}." if tower else "")
    if not sites:
        raise UnsupportedModelError(_what_it_does(model))
    class_token = next(
        (t for n in ("cls_token", "class_embedding") if (t := getattr(embeddings, n, None)) is not None), None
    )
    projection = _projection(embeddings)
    packed = not isinstance(projection, nn.Conv2d | nn.Conv3d) and hasattr(embeddings, "patch_size")
    convolves = isinstance(projection, nn.Conv2d | nn.Conv3d)
    return ModelAnatomy(
        sites=sites,
        cls=None if class_token is None else 0,
        registers=_count(embeddings, "register_tokens"),
        distillation=getattr(embeddings, "distillation_token", None) is not None,
        suffix=_count(embeddings, "detection_tokens"),
        readout=_readout(model, sites, has_class_token=class_token is not None),
        image_module=embeddings,
        grid_module=projection if convolves else None,
        token_module=embeddings if packed or convolves else None,
        tokens_of=_packed_tokens(embeddings) if packed else _masked_tokens,
    )


def _has_text(model: Any) -> bool:
    config = getattr(model, "config", None)
    return getattr(config, "text_config", None) is not None and getattr(config, "vision_config", None) is not None


def _embeddings(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if any(isinstance(getattr(module, child, None), nn.Module) for child in ("patch_embeddings", "patch_embedding"))
    ]


def _no_tower(model: nn.Module, towers: list[tuple[str, nn.Module]]) -> str:
    kind = f"{class_of(model).__name__} (model_type {_model_type(model)!r})"
    if not towers:
        return (
            f"{kind} has no module that owns a patch embedding: expected one vision tower. Capture its vision tower itself, such as "
            "model.vision_tower, or register an adapter."
        )
    names = ", ".join(repr(name) for name, _ in towers)
    return f"{kind} has several patch embeddings: expected one vision tower, got {names}. Capture one of the towers."


def _what_it_does(model: nn.Module) -> str:
    kinds = {class_of(module).__name__ for module in model.modules()}
    words = sorted({words for kind in kinds if (words := not_tokens(kind))})
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        words.append("convolutions")
    return (
        f"{class_of(model).__name__} (model_type {_model_type(model)!r}) has no softmax attention between tokens: expected queries that attend "
        f"to keys, got {', '.join(words) or 'no attention module'}. There is no attention map to capture."
    )


def _projection(embeddings: Any) -> nn.Module:
    patches = getattr(embeddings, "patch_embeddings", None)
    if patches is None:
        patches = embeddings.patch_embedding
    inner = getattr(patches, "projection", getattr(patches, "proj", None))
    return inner if isinstance(inner, nn.Module) else patches


def _count(embeddings: nn.Module, name: str) -> int:
    tokens = getattr(embeddings, name, None)
    return 0 if tokens is None else int(tokens.shape[1])


def _model_type(model: Any) -> str:
    return getattr(getattr(model, "config", None), "model_type", "unknown")


def _sites(model: nn.Module, tower: str) -> tuple[AttentionSite, ...]:
    sites = []
    for name, module in model.named_modules():
        kind = class_of(module)
        if not name or not name.startswith(tower) or not_tokens(kind.__name__):
            continue
        if isinstance(module, nn.MultiheadAttention):
            queries = Queries.POOL if _model_type(model) in _FAMILIES else Queries.TOKENS
            sites.append(AttentionSite(name, module, queries=queries))
        elif _calls(kind):
            guessed = not _names_in_forward(module) & {_INTERFACE, *_CALLS}
            sites.append(AttentionSite(name, module, _kernel, guessed=guessed, **facts_of(model, name, module)))
    return tuple(sites)


def _calls(kind: type[Any]) -> bool:
    """Whether the code of a class looks its kernel up at the attention interface, or calls one or a softmax itself."""
    for part in kind.__mro__:
        if part.__module__.startswith("torch.") or part.__name__ == "PreTrainedModel":
            return False
        functions = (inspect.unwrap(f) for f in vars(part).values() if inspect.isfunction(f))
        if any({_INTERFACE, *_CALLS} & set(f.__code__.co_names) for f in functions):
            return True
    return False


def _names_in_forward(module: nn.Module) -> set[str]:
    code = getattr(inspect.unwrap(class_of(module).forward), "__code__", None)
    return set() if code is None else set(code.co_names)


def _kernel(module: Any) -> Kernel:
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if _INTERFACE not in _names_in_forward(module) or implementation in (None, "eager"):
        return Kernel.OPEN
    interface = inspect.unwrap(class_of(module).forward).__globals__[_INTERFACE]
    function = interface.get(implementation, None)
    own = getattr(function, "__module__", "") == "transformers.integrations.sdpa_attention"
    return Kernel.SDPA if own else Kernel.INTERFACE


def _readout(model: Any, sites: tuple[AttentionSite, ...], *, has_class_token: bool) -> Readout:
    name = class_of(model).__name__
    if any(site.tokens_of is not None for site in sites) and _model_type(model) not in _FAMILIES:
        return Readout(
            None,
            "its blocks attend within windows or on grids of their own. Take received_attention(maps, block) of a capture with rows='all'",
        )
    if _model_type(model) not in _FAMILIES:
        return Readout(None, f"what the head of model_type {_model_type(model)!r} reads is not known")
    if name.endswith("ForObjectDetection"):
        return Readout(None, "its head reads the detection tokens, which are the last tokens: rows=range(-n, 0)")
    if any(site.pooling for site in sites) and name not in _MEAN_HEADS:
        return Readout(Rows.POOL, "an attention pooling head")
    averages = name in _MEAN_HEADS or getattr(model.config, "use_mean_pooling", False)
    if averages or not has_class_token:
        return Readout(Rows.MEAN, "the mean over patches" if averages else "no class token")
    return Readout(Rows.CLS, "the class token")


def _masked_tokens(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> SeenTokens:
    """MAE's embeddings answer (kept tokens, mask, ids_restore): patches are shuffled even when none is masked."""
    if not (isinstance(output, tuple) and len(output) == 3 and all(isinstance(part, Tensor) for part in output)):
        return SeenTokens()
    tokens, _, restore = output
    kept = tokens.shape[1] - 1
    return SeenTokens(order=torch.argsort(restore.detach(), dim=1)[:, :kept])


def _packed_tokens(embeddings: Any) -> Any:
    """SigLIP2's embeddings take patches that are cut already, `(batch, patches, pixels)`, and each image's `(rows, columns)`."""
    patch = int(getattr(embeddings, "patch_size", 0) or embeddings.config.patch_size)

    def tokens_of(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> SeenTokens:
        shapes = kwargs.get("spatial_shapes", args[1] if len(args) > 1 else None)
        if shapes is None:
            return SeenTokens(
                problem="the patch grid is not known: the embeddings got no spatial_shapes. Pass layout=TokenLayout(...)."
            )
        grids = {(int(rows), int(columns)) for rows, columns in torch.as_tensor(shapes).tolist()}
        if len(grids) > 1:
            return SeenTokens(
                problem=f"the images of this batch have {len(grids)} different patch grids, {sorted(grids)}: expected one. Run images "
                "of one grid together."
            )
        grid = grids.pop()
        area = (grid[0] * patch, grid[1] * patch)
        return SeenTokens(grid=grid, patch_area=area, padding=int(output.shape[1]) - grid[0] * grid[1])

    return tokens_of


def timm_wrapper(model: Any) -> ModelAnatomy:
    """Anatomy of a timm model in transformers' clothes.

    Args:
        model: A `TimmWrapperModel` or `TimmWrapperForImageClassification`.

    Returns:
        The anatomy of the model inside.

    Raises:
        UnsupportedModelError: If that one has no softmax attention between tokens.
    """
    inner = find_anatomy(model.timm_model)
    if inner is None:
        raise UnsupportedModelError(f"{type(model).__name__} holds no model of timm: expected one at .timm_model.")
    return inner.under("timm_model")


register_adapter("transformers.modeling_utils.PreTrainedModel", vision_model)
register_adapter("transformers.models.timm_wrapper.modeling_timm_wrapper.TimmWrapperPreTrainedModel", timm_wrapper)
