"""One model of a comparison: loaded, measured on every photo, measured again with shuffled weights, and released."""

import copy
import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from attnhook import __version__
from attnhook.comparison.map_kinds import MapKind
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.measuring import ModelMeasurer
from attnhook.comparison.photographs import MEASURING, Failure, Photo
from attnhook.comparison.subjects import ModelEntry, Subject
from attnhook.running.fingerprints import digest
from attnhook.running.versions import library_versions
from attnhook.zoo.vision_models import VisionModel

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
        views = [(view.method, view.depth) for view in self._settings.views]
        versions = [_CACHE_FORMAT, __version__, library_versions(), torch.get_default_dtype()]
        name = digest([*versions, entry.fingerprint.key, photo.digest, views, key, label, where])
        return folder / name[:2] / f"{name}.safetensors"


def shuffle_weights(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Put the entries of every parameter in a random order, in place: a control of the same architecture that has learned nothing.

    Each tensor keeps its distribution, so activations stay in range in any architecture. Buffers (position indices, running statistics) stay.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in {parameter.data_ptr(): parameter for parameter in model.parameters()}.values():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
    return model
