"""Between photos and patch maps: reading, geometry, interpolation, colour. Knows nothing of models or hooks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnhook.imaging.figures import overlay_figure, sheet
    from attnhook.imaging.geometry import ImageGeometry
    from attnhook.imaging.heatmaps import heatmap
    from attnhook.imaging.images import read_image
    from attnhook.imaging.overlays import colorize, overlay, value_range

__all__ = ["ImageGeometry", "colorize", "heatmap", "overlay", "overlay_figure", "read_image", "sheet", "value_range"]

_HOMES = {
    "ImageGeometry": "geometry",
    "colorize": "overlays",
    "heatmap": "heatmaps",
    "overlay": "overlays",
    "overlay_figure": "figures",
    "read_image": "images",
    "sheet": "figures",
    "value_range": "overlays",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
