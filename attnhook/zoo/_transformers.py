"""What transformers' vision models mean: which modules are attention, what their tokens are, what their heads read.

Imports nothing of transformers. The facts are read off what its vision towers share: an embeddings module that owns the patch embedding and the
special tokens, and attention modules whose forward looks its kernel up at the attention interface. Only what a head reads cannot be seen and
is written down, by family.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.adapters import ModelAnatomy, Readout, SeenTokens, class_of, find_anatomy, register_adapter
from attnhook.capture.sites import AttentionSite, Kernel, Queries
from attnhook.errors import UnsupportedModelError
from attnhook.options import Rows

_INTERFACE = "ALL_ATTENTION_FUNCTIONS"

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
    }
)
# Classes whose head reads the mean over patches although there is a class token, or an attention pooling that it passes by.
_MEAN_HEADS = frozenset({"CLIPForImageClassification", "SiglipForImageClassification", "Siglip2ForImageClassification"})


def vision_model(model: Any) -> ModelAnatomy:
    """Anatomy of a `PreTrainedModel` with one vision tower, bare or inside a task model.

    Args:
        model: The model.

    Returns:
        Its anatomy, without the attention of text towers and decoders.

    Raises:
        UnsupportedModelError: If it has no vision tower with a patch embedding and softmax attention, or several.
    """
    name, embeddings = _embeddings(model)
    tower = name.rpartition(".")[0]
    sites = _sites(model, f"{tower}." if tower else "")
    if not sites:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {_model_type(model)!r}) has a patch embedding but no attention module that uses "
            "transformers' attention interface. Name its attention modules with blocks=[...] in a model of your own, or register an adapter."
        )
    class_token = next(
        (t for n in ("cls_token", "class_embedding") if (t := getattr(embeddings, n, None)) is not None), None
    )
    projection = _projection(embeddings)
    packed = not isinstance(projection, nn.Conv2d)
    return ModelAnatomy(
        sites=sites,
        cls=None if class_token is None else 0,
        registers=_count(embeddings, "register_tokens"),
        distillation=getattr(embeddings, "distillation_token", None) is not None,
        suffix=_count(embeddings, "detection_tokens"),
        readout=_readout(model, sites, has_class_token=class_token is not None),
        image_module=embeddings,
        grid_module=None if packed else projection,
        token_module=embeddings,
        tokens_of=_packed_tokens(embeddings) if packed else _masked_tokens,
    )


def _embeddings(model: nn.Module) -> tuple[str, nn.Module]:
    found = [
        (name, module)
        for name, module in model.named_modules()
        if any(isinstance(getattr(module, child, None), nn.Module) for child in ("patch_embeddings", "patch_embedding"))
    ]
    if len(found) == 1:
        return found[0]
    kind = f"{type(model).__name__} (model_type {_model_type(model)!r})"
    if not found:
        raise UnsupportedModelError(
            f"{kind} has no module that owns a patch embedding: expected a Vision Transformer of transformers. It may be a CNN, a text "
            "model, or a family that is not supported yet; register_adapter teaches attnhook a new one."
        )
    names = ", ".join(repr(name) for name, _ in found)
    raise UnsupportedModelError(
        f"{kind} has several patch embeddings: expected one vision tower, got {names}. Capture one of the towers."
    )


def _projection(embeddings: Any) -> nn.Module:
    patches = getattr(embeddings, "patch_embeddings", None)
    if patches is None:
        patches = embeddings.patch_embedding
    inner = getattr(patches, "projection", None)
    return inner if isinstance(inner, nn.Module) else patches


def _count(embeddings: nn.Module, name: str) -> int:
    tokens = getattr(embeddings, name, None)
    return 0 if tokens is None else int(tokens.shape[1])


def _model_type(model: Any) -> str:
    return getattr(getattr(model, "config", None), "model_type", "unknown")


def _sites(model: nn.Module, tower: str) -> tuple[AttentionSite, ...]:
    sites = []
    for name, module in model.named_modules():
        if not name.startswith(tower):
            continue
        if isinstance(module, nn.MultiheadAttention):
            sites.append(AttentionSite(name, module, queries=Queries.POOL))
        elif _names_in_forward(module) & {_INTERFACE, "scaled_dot_product_attention", "softmax"}:
            sites.append(AttentionSite(name, module, _kernel))
    return tuple(sites)


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
