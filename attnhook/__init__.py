"""Exact attention maps from any Vision Transformer: fused kernels on, output unchanged, no `output_attentions`."""

import importlib
from typing import Any

__version__ = "0.1.0.dev0"

_HOMES = {
    "attnhook.capture.adapters": ("ModelAnatomy", "Readout", "register_adapter"),
    "attnhook.capture.sites": ("AttentionSite",),
    "attnhook.capture.windows": ("WindowLayout",),
    "attnhook.capture.layout": ("TokenLayout",),
    "attnhook.capture.records": ("AttentionMaps", "BlockAttention"),
    "attnhook.capture.session": ("AttentionCapture",),
    "attnhook.imaging.geometry": ("ImageGeometry",),
    "attnhook.imaging.heatmaps": ("heatmap",),
    "attnhook.imaging.overlays": ("overlay",),
    "attnhook.zoo.loading": ("VisionModel", "load"),
    "attnhook.attribution.methods": ("METHODS",),
    "attnhook.attribution.raw_maps": ("raw_attention",),
    "attnhook.attribution.received": ("received_attention",),
    "attnhook.workflows.inspection": ("ModelDescription", "describe"),
    "attnhook.workflows.results": ("AttentionResult", "attend"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 (strings, collected above)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'attnhook' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
