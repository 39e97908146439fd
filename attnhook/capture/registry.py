"""The registered adapters, and the way from a model to its anatomy.

Those of the libraries, in `attnhook.zoo`, are imported when a model of that library turns up, never before; none imports its library.
"""

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from attnhook.capture.anatomy import ModelAnatomy, Readout
from attnhook.capture.sites import AttentionSite
from attnhook.errors import UnsupportedModelError

_LIBRARIES = ("timm", "transformers", "torchvision", "open_clip")

Adapter = Callable[[Any], ModelAnatomy]
"""Describes the models of one type; raises `UnsupportedModelError`, saying what it does instead, for one without token attention."""

_registry: dict[str, Adapter] = {}
_libraries: dict[str, tuple[Adapter, Callable[[nn.Module], bool]]] = {}


def register_adapter(model_type: type | str, adapter: Adapter) -> None:
    """Register an adapter for a new type of model.

    Args:
        model_type: The class of the models, or its full name (`"package.module.Class"`), so that registering imports nothing. Subclasses
            are covered; the closest registered class along the MRO wins, and a later registration of the same class replaces the earlier.
        adapter: Takes the model and returns its `ModelAnatomy`.

    Example:
        >>> from torch import nn
        >>> from attnhook import AttentionSite, ModelAnatomy, register_adapter
        >>> class MyViT(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.patches = nn.Conv2d(3, 8, 4, 4)
        ...         self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> def my_vit(model):
        ...     site = AttentionSite("attention", model.attention)
        ...     return ModelAnatomy(sites=(site,), cls=None, image_module=model.patches, grid_module=model.patches)
        >>> register_adapter(MyViT, my_vit)
    """
    _registry[model_type if isinstance(model_type, str) else _full_name(model_type)] = adapter


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def register_library(package: str, adapter: Adapter, is_model: Callable[[nn.Module], bool]) -> None:
    """Teach capture all models of a top-level package that have no adapter of their own; `is_model` distinguishes them from their layers."""
    _libraries[package] = (adapter, is_model)


def find_adapter(model: nn.Module) -> Adapter | None:
    """The adapter of the closest registered class along the MRO of `model`'s type, or its library's, or None."""
    packages = []
    for kind in type(model).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _LIBRARIES:
            importlib.import_module(f"attnhook.zoo._{package}")  # registers its adapters, once
            packages.append(package)
        if (adapter := _registry.get(_full_name(kind))) is not None:
            return adapter
    libraries = [_libraries[package] for package in packages if package in _libraries]
    return next((adapter for adapter, is_model in libraries if is_model(model)), None)


def find_anatomy(model: nn.Module) -> ModelAnatomy | None:
    """The anatomy of a model, or of the one known model inside it (wrappers, `torch.compile`, DDP), with names relative to `model`.

    None if nothing in it is known; `UnsupportedModelError` if it holds several known models, or an adapter's answer is invalid.
    """
    found: list[tuple[str, ModelAnatomy]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") or not outer for outer, _ in found)
        if not inside and (adapter := find_adapter(module)) is not None:
            found.append((name, _checked(adapter(module), module)))
    if len(found) > 1:
        names = ", ".join(repr(name) for name, _ in found)
        raise UnsupportedModelError(
            f"{type(model).__name__} holds several models with attention: expected one, got {names}. Capture one of them: "
            f"AttentionCapture(model.{found[0][0]})."
        )
    return found[0][1].under(found[0][0]) if found else None


def _checked(answer: Any, model: nn.Module) -> ModelAnatomy:
    """An adapter's answer, checked: users write adapters."""
    said = f"the adapter of {type(model).__name__}"
    if not isinstance(answer, ModelAnatomy):
        raise UnsupportedModelError(
            f"{said} describes no model: expected a ModelAnatomy, got {answer!r}. Return one from the function given to register_adapter."
        )
    if not isinstance(answer.readout, Readout):
        raise UnsupportedModelError(
            f"{said} gives no readout: expected a Readout or none, got readout={answer.readout!r}. Pass Readout(rows, reason), such as "
            'Readout("cls", "its head reads the class token").'
        )
    sites: Any = answer.sites
    listed = isinstance(sites, tuple | list)
    if not (listed and sites and all(isinstance(site, AttentionSite) for site in sites)):
        got = f"({', '.join(type(site).__name__ for site in sites)})" if listed else repr(sites)
        raise UnsupportedModelError(
            f"{said} names no attention modules: expected a tuple of at least one AttentionSite, got sites={got}. Give an "
            "AttentionSite(name, module) for each module that attends."
        )
    return answer
