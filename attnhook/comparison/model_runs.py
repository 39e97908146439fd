"""The models of a comparison, one at a time: named, loaded, measured on every photo, measured with shuffled weights, released."""

import copy
import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from attnhook import __version__
from attnhook.comparison.measurements import MapKind, Measurement
from attnhook.comparison.measuring import ModelMeasurer
from attnhook.comparison.photographs import MEASURING, Failure, Photo
from attnhook.files import readable, user_path
from attnhook.options import Size
from attnhook.running.fingerprints import Fingerprint, digest, fingerprint, library_versions
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
    names = [readable(name) for name in names or _names(sources)]
    if not sources:
        raise ValueError(
            "nothing to compare: expected at least one model, got none. Pass a spec such as 'demo', a VisionModel, or a list of them."
        )
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
    if library == "hf" and user_path(rest).is_dir():
        return f"hf:{user_path(rest).resolve().name}"
    model, at, file = rest.rpartition("@")
    return f"{library}{colon}{model}@{Path(file).name}" if at and "/" in file else name


_CONTROL = "measuring with random weights"
_CACHE_FORMAT = 6  # raised whenever a measurement of the same content may come out differently


@dataclass(frozen=True)
class RunSettings:
    """How every model of a comparison is measured."""

    views: tuple[MapKind, ...]
    statistics: int  # on so many photos
    faithfulness: bool
    controls: bool  # whether models with shuffled weights are measured on photos with a mask
    seed: int  # of the shuffled weights
    device: str | None  # of models that are loaded by name
    cache: Path | None  # the folder of cached measurements


class ModelRun:
    """Measures one model. Whatever a model raises is recorded, so that the others finish."""

    def __init__(self, subject: Subject, settings: RunSettings, tick: Callable[[], None]) -> None:
        self.entry: ModelEntry | None = None
        self.measurements: dict[int, Measurement] = {}  # by the index of the photo
        self.controls: dict[int, Measurement] = {}  # with shuffled weights
        self.failures: list[Failure] = []
        self._subject, self._settings, self._tick = subject, settings, tick

    def run(self, photos: Sequence[Photo]) -> None:
        """Load the model, measure it on every photo, and release it."""
        try:
            vision = self._subject.open(self._settings.device)
            self.entry = self._subject.describe(vision)
        except Exception as error:
            self._failed("loading", error)
            return
        modes = [(module, module.training) for module in vision.model.modules()]
        try:
            vision.model.eval()
            for what, step in ((MEASURING, self._measure_model), (_CONTROL, self._measure_control)):
                try:
                    step(vision, photos)
                except Exception as error:
                    self._failed(what, error)
        finally:
            for module, training in modes:
                module.training = training
        if not self.measurements and len({(failure.what, failure.error) for failure in self.failures}) == 1:
            self.failures = [replace(self.failures[0], photo=None)]  # the same on every photo is listed once
        del vision, modes
        gc.collect()

    def _failed(self, what: str, error: Exception, photo: str | None = None) -> None:
        words = " ".join(str(error).split()) or type(error).__name__
        self.failures.append(Failure(self._subject.name, photo, what, words))

    def _measure_model(self, vision: VisionModel, photos: Sequence[Photo]) -> None:
        """Measure the model as it is, with statistics on the first photos."""
        numbered, settings = list(enumerate(photos)), self._settings
        for statistics in (True, False):
            chosen = numbered[: settings.statistics] if statistics else numbered[settings.statistics :]
            plan = {"statistics": statistics, "faithfulness": settings.faithfulness}
            make = partial(ModelMeasurer, vision, settings.views, **plan)
            key = (MEASURING, statistics, settings.faithfulness)
            self.measurements |= self._measured(vision, chosen, make, key)

    def _measure_control(self, vision: VisionModel, photos: Sequence[Photo]) -> None:
        """Measure the model with shuffled weights on the photos that have a mask."""
        own, settings = self.measurements, self._settings

        def make() -> ModelMeasurer:
            model = vision.model if self._subject.owned else copy.deepcopy(vision.model)
            control = vision.with_model(shuffle_weights(model, seed=settings.seed))
            return ModelMeasurer(control, settings.views, statistics=False)

        masked = [(n, photo) for n, photo in enumerate(photos) if photo.mask is not None and n in own and own[n].maps]
        chosen = masked if settings.controls else []
        self.controls |= self._measured(vision, chosen, make, (_CONTROL, settings.seed))

    def _measured(
        self,
        vision: VisionModel,
        photos: Iterable[tuple[int, Photo]],
        make: Callable[[], ModelMeasurer],
        key: tuple[str, *tuple[int, ...]],
    ) -> dict[int, Measurement]:
        """Measure photos that are not in the cache. If the measurer cannot be made, the model fails once, not on every photo."""
        measurer, found = cache(make), {}
        for number, photo in photos:
            path = self._cache_path(vision, photo, key)
            measurement = None if path is None else Measurement.load(path)
            if measurement is None:
                ready = measurer()
                try:
                    measurement = ready.measure(photo.read(), photo.label)
                except Exception as error:
                    self._failed(key[0], error, photo.name)
                else:
                    self._save(measurement, path)
            if measurement is not None:
                found[number] = measurement
            self._tick()
        return found

    def _save(self, measurement: Measurement, path: Path | None) -> None:
        try:
            if path is not None:
                measurement.save(path)
        except (OSError, SafetensorError) as error:  # a full disk costs the next run time, and this one nothing
            if not any(failure.what == "caching" for failure in self.failures):
                self._failed("caching", error)

    def _cache_path(self, vision: VisionModel, photo: Photo, key: tuple[object, ...]) -> Path | None:
        """Where a measurement is cached: by the content of model and photo, the settings, and the versions of what computed it."""
        folder, entry = self._settings.cache, self.entry
        if folder is None or entry is None or not entry.fingerprint.complete:
            return None
        label = (photo.label, vision.labels) if isinstance(photo.label, str) else photo.label
        parameter = next(vision.model.parameters(), None)
        where = None if parameter is None else (parameter.device.type, parameter.dtype)
        views = [(view.method, view.depth, view.heads) for view in self._settings.views]
        versions = [_CACHE_FORMAT, __version__, library_versions(), torch.get_default_dtype()]
        name = digest([*versions, entry.fingerprint.key, photo.digest, views, key, label, where])
        return folder / name[:2] / f"{name}.safetensors"


def shuffle_weights(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Put the entries of every parameter in a random order, in place: a control of the same architecture that has learned nothing.

    Each tensor keeps its distribution, so activations stay in range in any architecture. Buffers (position indices, running statistics) stay.
    """
    generator = torch.Generator().manual_seed(seed)
    firsts: dict[int, nn.Parameter] = {}  # of parameters that share memory
    for parameter in model.parameters():
        firsts.setdefault(parameter.data_ptr(), parameter)
    with torch.no_grad():
        for parameter in firsts.values():
            order = torch.randperm(parameter.numel(), generator=generator, device="cpu").to(parameter.device)
            parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
    return model
