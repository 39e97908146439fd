"""What torchvision's models mean. Imports nothing of torchvision: types are registered by name."""

from typing import Any

from torch import nn

from attnhook.capture.anatomy import ModelAnatomy, Readout
from attnhook.capture.recognition import attends, class_of
from attnhook.capture.registry import register_adapter, register_library
from attnhook.capture.sites import Arrangement, AttentionSite, CallContext, Queries
from attnhook.capture.windows import WindowLayout
from attnhook.errors import UnsupportedModelError
from attnhook.options import Rows
from attnhook.zoo.stages import parents, windows

_STAGES = Readout(
    None,
    "its head averages the positions of the last stage, while blocks attend within windows. Take received_attention(maps, block) of a "
    "capture with rows='all'",
)


def vision_transformer(model: Any) -> ModelAnatomy:
    """Anatomy of torchvision's `VisionTransformer`."""
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


def swin(model: Any) -> ModelAnatomy:
    """Anatomy of torchvision's `SwinTransformer`, version 1 and 2."""
    return _hierarchical(model, {"ShiftedWindowAttention": _shifted, "ShiftedWindowAttentionV2": _shifted})


def maxvit(model: Any) -> ModelAnatomy:
    """Anatomy of torchvision's `MaxVit`."""
    return _hierarchical(model, {"RelativePositionalMultiHeadAttention": _partitioned})


def _hierarchical(model: nn.Module, rules: dict[str, Any]) -> ModelAnatomy:
    sites = tuple(
        rules[class_of(module).__name__](model, name, module)
        for name, module in model.named_modules()
        if class_of(module).__name__ in rules
    )
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return ModelAnatomy(sites=sites, cls=None, readout=_STAGES, image_module=first)


def _shifted(model: nn.Module, name: str, module: Any) -> AttentionSite:
    def cut(call: CallContext) -> WindowLayout:
        grid, window = (call.inputs[0][1], call.inputs[0][2]), tuple(module.window_size)
        # one window that holds the whole padded side is not shifted along it
        rows, columns = (
            0 if size >= side else step for size, side, step in zip(window, grid, module.shift_size, strict=True)
        )
        return WindowLayout.partition(grid, window=window, shift=(rows, columns), pad="before")

    return AttentionSite(name, module, queries=Queries.PATCHES, tokens_of=windows(cut), seen_module=module)


def _partitioned(model: nn.Module, name: str, module: Any) -> AttentionSite:
    layer: Any = parents(model, name)[1]

    def cut(call: CallContext) -> WindowLayout:
        grid = (call.inputs[0][2], call.inputs[0][3])
        strided = layer.partition_type == "grid"
        side = layer.g if strided else layer.p
        return WindowLayout.partition(grid, window=(side, side), strided=strided)

    return AttentionSite(
        name,
        module,
        queries=Queries.PATCHES,
        arrangement=Arrangement.WINDOWS,
        tokens_of=windows(cut),
        seen_module=layer,
    )


def _unknown(model: nn.Module) -> ModelAnatomy:
    if not any(attends(module) for module in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no softmax attention between tokens: expected queries that attend to keys, got convolutions. There is "
            "no attention map to capture; a gradient method such as Grad-CAM suits such models."
        )
    raise UnsupportedModelError(
        f"{type(model).__name__} has attention that attnhook does not know: expected VisionTransformer, SwinTransformer or MaxVit. Register an "
        "adapter with register_adapter."
    )


def _is_model(module: nn.Module) -> bool:
    return class_of(module).__module__.startswith("torchvision.models") and (
        hasattr(module, "classifier") or hasattr(module, "fc") or hasattr(module, "head") or hasattr(module, "backbone")
    )


register_adapter("torchvision.models.vision_transformer.VisionTransformer", vision_transformer)
register_adapter("torchvision.models.swin_transformer.SwinTransformer", swin)
register_adapter("torchvision.models.maxvit.MaxVit", maxvit)
register_library("torchvision", _unknown, _is_model)
