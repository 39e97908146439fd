"""The models of a comparison: named, loaded one at a time, and described."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnhook.options import Size
from attnhook.running.fingerprints import Fingerprint, fingerprint
from attnhook.zoo.loading import as_vision_model, load
from attnhook.zoo.model_metadata import library_of, trained_grid
from attnhook.zoo.vision_models import VisionModel

ModelSource = str | VisionModel | nn.Module | Callable[[], "str | VisionModel | nn.Module"]
"""What `compare` takes as a model: a spec, a `VisionModel`, a timm model, or a function that returns one of them."""


@dataclass(frozen=True)
class ModelEntry:
    """One model that could be loaded."""

    name: str
    spec: str | None  # what `load` takes; None for an object
    library: str | None
    architecture: str  # the model's class
    parameters: int
    fingerprint: Fingerprint
    trained_grid: Size | None  # the patch grid that its positions were trained for, if known


@dataclass(frozen=True)
class Subject:
    """One model of a comparison, not loaded yet."""

    name: str
    source: ModelSource

    @property
    def owned(self) -> bool:
        """Whether nobody else holds the model, so that its weights may be overwritten."""
        return isinstance(self.source, str)

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

    def describe(self, vision: VisionModel) -> ModelEntry:
        """Describe it, once loaded."""
        model = vision.model
        return ModelEntry(
            name=self.name,
            spec=self.source if isinstance(self.source, str) else None,
            library=library_of(model),
            architecture=type(model).__name__,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            fingerprint=fingerprint(vision),
            trained_grid=trained_grid(model),
        )


def as_subjects(models: "Mapping[str, ModelSource] | Sequence[ModelSource] | ModelSource") -> tuple[Subject, ...]:
    """Name the models."""
    given: list[Any]
    if isinstance(models, Mapping):
        names, given = [str(name) for name in models], list(models.values())
    else:
        names, given = [], list(models) if isinstance(models, list | tuple | Iterator) else [models]
    sources = [VisionModel(model) if isinstance(model, nn.Module) else model for model in given]
    names = names or _names(sources)
    if not sources:
        raise ValueError("nothing to compare: expected at least one model, got none.")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(
                f"two models are called {name!r}: expected different names. Give each model once, or a mapping {{name: model, ...}}."
            )
    for name, model in zip(names, sources, strict=True):
        if not (isinstance(model, str | VisionModel) or callable(model)):
            raise TypeError(
                f"model {name!r} cannot be compared: expected a spec, a VisionModel or a function that returns one, got {type(model).__name__}."
            )
    return tuple(map(Subject, names, sources))


def _names(sources: Sequence[object]) -> list[str]:
    """A name for each; specs without the folders of their files, unless two would be the same."""
    names = [_name(model, number) for number, model in enumerate(sources)]
    short = [_shortened(name) if isinstance(model, str) else name for name, model in zip(names, sources, strict=True)]
    counted = Counter(short)
    return [brief if counted[brief] == 1 else name for brief, name in zip(short, names, strict=True)]


def _name(model: object, number: int) -> str:
    if isinstance(model, str):
        return model
    if isinstance(model, VisionModel):
        return model.name
    name = getattr(model, "__name__", "<lambda>")
    return f"model {number}" if name == "<lambda>" else str(name)


def _shortened(name: str) -> str:
    library, colon, rest = name.partition(":")
    if library == "hf" and Path(rest).expanduser().is_dir():
        return f"hf:{Path(rest).expanduser().resolve().name}"
    model, at, file = rest.rpartition("@")
    return f"{library}{colon}{model}@{Path(file).name}" if at and "/" in file else name
