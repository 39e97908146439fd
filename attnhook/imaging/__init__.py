"""Between photos and patch maps: reading, geometry, interpolation, colour. Knows nothing of models or hooks."""

from importlib import import_module
from typing import Any

_HOMES = {
    "animations": ("overlay_video",),
    "drawing": ("heatmap", "overlay"),
    "depth_figures": ("depth_figure", "map_grid"),
    "figures": ("overlay_figure", "sheet", "triptych"),
    "geometry": ("ImageGeometry",),
    "images": ("read_image",),
    "overlays": ("colorize", "common_range", "overlay_batch", "value_range"),
    "patch_maps": ("PatchMap",),
    "styles": ("mass_mask",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 (strings, collected above)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
