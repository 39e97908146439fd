"""The models of a comparison: named, and loaded one at a time."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnhook.zoo.loading import as_vision_model, load
from attnhook.zoo.vision_models import VisionModel

ModelSource = str | VisionModel | nn.Module | Callable[[], "str | VisionModel | nn.Module"]
"""What `compare` takes as a model: a spec, a `VisionModel`, a timm model, or a function that returns one of them."""


@dataclass(frozen=True)
class Subject:
    """One model of a comparison, not loaded yet.

    Attributes:
        name: What it is called everywhere.
        source: Where it comes from.
    """

    name: str
    source: ModelSource

    @property
    def owned(self) -> bool:
        """Whether nobody else holds the model, so that its weights may be overwritten."""
        return isinstance(self.source, str)

    @property
    def spec(self) -> str | None:
        """What `load` takes, if it comes from there."""
        return self.source if isinstance(self.source, str) else None

    def open(self, device: str | None = None) -> VisionModel:
        """Load it."""
        source: Any = self.source
        if callable(source) and not isinstance(source, nn.Module):
            source = source()
        if isinstance(source, str):
            with torch.random.fork_rng(devices=[]):  # libraries draw weights before they read them
                return load(source, device=device)
        if not isinstance(source, VisionModel | nn.Module):
            raise TypeError(
                f"model {self.name!r} cannot be compared: expected its function to return a spec or a VisionModel, got "
                f"{type(source).__name__}. Return VisionModel(model, preprocess)."
            )
        return as_vision_model(source)


def as_subjects(models: "Mapping[str, ModelSource] | Sequence[ModelSource] | ModelSource") -> tuple[Subject, ...]:
    """Name the models."""
    if isinstance(models, Mapping):
        named = [
            (str(name), VisionModel(model) if isinstance(model, nn.Module) else model) for name, model in models.items()
        ]
    else:
        several: list[Any] = list(models) if isinstance(models, list | tuple | Iterator) else [models]
        several = [VisionModel(model) if isinstance(model, nn.Module) else model for model in several]
        names = [_name(model, number) for number, model in enumerate(several)]
        short = [
            _shortened(name) if isinstance(model, str) else name for name, model in zip(names, several, strict=True)
        ]
        counted = Counter(short)
        named = [(s if counted[s] == 1 else n, m) for s, n, m in zip(short, names, several, strict=True)]
    if not named:
        raise ValueError("nothing to compare: expected at least one model, got none.")
    for name, count in Counter(name for name, _ in named).items():
        if count > 1:
            raise ValueError(
                f"two models are called {name!r}: expected a name of its own for each. Give each once, or a mapping, {{name: model, ...}}."
            )
    for name, model in named:
        _check(name, model)
    return tuple(Subject(name, model) for name, model in named)


def _name(model: object, number: int) -> str:
    if isinstance(model, str):
        return model
    if isinstance(model, VisionModel):
        return model.name
    name = getattr(model, "__name__", "<lambda>")
    return f"model {number}" if name == "<lambda>" else str(name)


def _shortened(name: str) -> str:
    """A spec without the folders of its files."""
    library, colon, rest = name.partition(":")
    if library == "hf" and Path(rest).expanduser().is_dir():
        return f"hf:{Path(rest).expanduser().resolve().name}"
    model, at, file = rest.rpartition("@")
    return f"{library}{colon}{model}@{Path(file).name}" if at and "/" in file else name


def _check(name: str, model: object) -> None:
    if not (isinstance(model, str | VisionModel) or callable(model)):
        raise TypeError(
            f"model {name!r} cannot be compared: expected a spec, a VisionModel or a function that gives one, got {type(model).__name__}."
        )
