"""torchvision's models. torchvision is not imported: types are registered by name."""

from typing import Any

from torch import nn

from attnhook.capture.anatomy import ModelAnatomy, Readout
from attnhook.capture.recognition import attends, class_of
from attnhook.capture.registry import register_adapter, register_library
from attnhook.capture.sites import Arrangement, AttentionSite, CallContext
from attnhook.capture.windows import WindowLayout
from attnhook.errors import UnsupportedModelError
from attnhook.options import Rows
from attnhook.zoo.token_rules import ModuleContext, OptionsRule, SiteOptions, in_windows, input_grid, no_attention

_STAGES = Readout(
    None,
    "its head averages the positions of the last stage, while blocks attend within windows. Use received_attention(maps, block) with rows='all'",
)


def vision_transformer(model: Any) -> ModelAnatomy:
    """Anatomy of torchvision's `VisionTransformer`."""
    modules = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.MultiheadAttention)]
    return ModelAnatomy(
        sites=tuple(AttentionSite(name, module) for name, module in modules),
        cls=0,
        readout=Readout(Rows.CLS, "its head reads the first token"),
        image_module=model.conv_proj,
        grid_module=model.conv_proj,
    )


def swin(model: Any) -> ModelAnatomy:
    """Anatomy of torchvision's `SwinTransformer`, version 1 and 2."""
    return _hierarchical(model, _shifted, "ShiftedWindowAttention", "ShiftedWindowAttentionV2")


def maxvit(model: Any) -> ModelAnatomy:
    """Anatomy of torchvision's `MaxVit`."""
    return _hierarchical(model, _partitioned, "RelativePositionalMultiHeadAttention")


def _hierarchical(model: nn.Module, rule: OptionsRule, *kinds: str) -> ModelAnatomy:
    sites = tuple(
        AttentionSite(name, module, **rule(ModuleContext(model, name, module)))
        for name, module in model.named_modules()
        if class_of(module).__name__ in kinds
    )
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return ModelAnatomy(sites=sites, cls=None, readout=_STAGES, image_module=first)


def _shifted(context: ModuleContext) -> SiteOptions:
    module = context.module

    def cut(call: CallContext) -> WindowLayout:
        grid, window = input_grid(call), tuple(module.window_size)
        # a window that covers the whole padded side is not shifted along it
        rows, columns = (
            0 if size >= side else step for size, side, step in zip(window, grid, module.shift_size, strict=True)
        )
        return WindowLayout.partition(grid, window=window, shift=(rows, columns), pad="before")

    return in_windows(module, cut)


def _partitioned(context: ModuleContext) -> SiteOptions:
    layer = context.parents[1]

    def cut(call: CallContext) -> WindowLayout:
        strided = layer.partition_type == "grid"
        side = layer.g if strided else layer.p
        return WindowLayout.partition(input_grid(call, 2), window=(side, side), strided=strided)

    return in_windows(layer, cut, arrangement=Arrangement.WINDOWS)


def _unknown(model: nn.Module) -> ModelAnatomy:
    if not any(attends(module) for module in model.modules()):
        raise UnsupportedModelError(no_attention(type(model).__name__, ["convolutions"]))
    raise UnsupportedModelError(
        f"the attention of {type(model).__name__} is not supported: expected VisionTransformer, SwinTransformer or MaxVit of torchvision. "
        "Register an adapter with register_adapter."
    )


def _is_model(module: nn.Module) -> bool:
    heads = ("classifier", "fc", "head", "backbone")
    return class_of(module).__module__.startswith("torchvision.models") and any(hasattr(module, name) for name in heads)


register_adapter("torchvision.models.vision_transformer.VisionTransformer", vision_transformer)
register_adapter("torchvision.models.swin_transformer.SwinTransformer", swin)
register_adapter("torchvision.models.maxvit.MaxVit", maxvit)
register_library("torchvision", _unknown, _is_model)
