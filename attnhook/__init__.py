"""Exact attention maps from any Vision Transformer: fused kernels on, output unchanged, no `output_attentions`."""

import importlib
from typing import Any

from attnhook.names import HOMES

__version__ = "0.1.0"

_HOME_OF = {name: home for home, names in HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 (strings, collected above)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'attnhook' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
