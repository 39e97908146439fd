"""Exact attention maps from any Vision Transformer: fused kernels on, output unchanged, no `output_attentions`."""

from attnhook.names import lazy_names

__version__ = "0.2.0"

_names, __getattr__ = lazy_names(__name__)

__all__ = ["__version__", *_names]  # noqa: PLE0604 (strings, read from the stub)


def __dir__() -> list[str]:
    return sorted(__all__)
