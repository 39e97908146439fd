"""One model of a comparison: loaded, measured on every photo, measured again with shuffled weights, and released."""

import copy
import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
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
_CACHE_FORMAT = 6
"""Raised whenever a measurement of the same content may come out differently."""


@dataclass(frozen=True)
class RunSettings:
    """How every model of a comparison is measured.

    Attributes:
        views: The maps.
        statistics: The number of photos on which statistics are measured.
        faithfulness: Whether deletion and insertion are measured.
        controls: Whether the model with shuffled weights is measured on photos with a mask.
        seed: Of the shuffled weights.
        device: Where models run that are loaded by name; None for the CPU.
        cache: The folder of cached measurements; None for no cache.
    """

    views: tuple[MapKind, ...]
    statistics: int
    faithfulness: bool
    controls: bool
    seed: int
    device: str | None
    cache: Path | None


@dataclass(eq=False)
class ModelRun:
    """What came of one model.

    Attributes:
        entry: Its description; None if it could not be loaded.
        measurements: By photo.
        controls: By photo: of the same model with shuffled weights.
        failures: What went wrong.
    """

    entry: ModelEntry | None = None
    measurements: dict[int, Measurement] = field(default_factory=dict)
    controls: dict[int, Measurement] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def run_model(subject: Subject, photos: Sequence[Photo], settings: RunSettings, tick: Callable[[], None]) -> ModelRun:
    """Load a model, measure it on every photo, and release it.

    Whatever a model raises is recorded, so that the others finish.
    """
    run = ModelRun()
    try:
        vision = subject.open(settings.device)
        run.entry = subject.describe(vision)
    except Exception as error:
        run.failures.append(Failure(subject.name, None, "loading", _words(error)))
        return run
    modes = [(module, module.training) for module in vision.model.modules()]
    runner = _Runner(subject, vision, run, settings, tick)
    steps = {MEASURING: runner.measure} | ({_CONTROL: runner.measure_control} if settings.controls else {})
    try:
        vision.model.eval()
        for what, step in steps.items():
            try:
                step(photos)
            except Exception as error:
                run.failures.append(Failure(subject.name, None, what, _words(error)))
    finally:
        for module, training in modes:
            module.training = training
    if not run.measurements and len({(failure.what, failure.error) for failure in run.failures}) == 1:
        run.failures = [replace(run.failures[0], photo=None)]  # the same on every photo is said once
    del vision, runner, steps, step
    gc.collect()
    return run


def shuffle_weights(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Put the entries of every parameter in a random order, in place: a control of the same architecture that has learned nothing.

    Each tensor keeps its distribution, so activations stay in range in any architecture. Buffers (position indices, running statistics) stay.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.data_ptr() not in done:
                done.add(parameter.data_ptr())
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
    return model


@dataclass(frozen=True, eq=False)
class _Runner:
    """Measures a loaded model on the photos."""

    subject: Subject
    vision: VisionModel
    run: ModelRun
    settings: RunSettings
    tick: Callable[[], None]

    def measure(self, photos: Sequence[Photo]) -> None:
        """Measure the model as it is, with statistics on the first photos."""
        numbered, few = list(enumerate(photos)), self.settings.statistics
        faithfulness = self.settings.faithfulness
        for statistics, chosen in ((True, numbered[:few]), (False, numbered[few:])):
            make = partial(
                ModelMeasurer, self.vision, self.settings.views, statistics=statistics, faithfulness=faithfulness
            )
            self._measure(chosen, make, (statistics, faithfulness), self.run.measurements, MEASURING)

    def measure_control(self, photos: Sequence[Photo]) -> None:
        """Measure the model with shuffled weights on the photos that have a mask."""
        own = self.run.measurements
        chosen = [(n, photo) for n, photo in enumerate(photos) if photo.mask is not None and n in own and own[n].maps]
        self._measure(chosen, self._control, (_CONTROL, self.settings.seed), self.run.controls, _CONTROL)

    def _control(self) -> ModelMeasurer:
        model = self.vision.model if self.subject.owned else copy.deepcopy(self.vision.model)
        control = self.vision.with_model(shuffle_weights(model, seed=self.settings.seed))
        return ModelMeasurer(control, self.settings.views, statistics=False)

    def _measure(
        self,
        photos: Iterable[tuple[int, Photo]],
        make: Callable[[], ModelMeasurer],
        key: tuple[object, ...],
        found: dict[int, Measurement],
        what: str,
    ) -> None:
        """Fill `found`. The measurer is made only if a photo is not in the cache; if that fails, the model fails once and not on every photo."""
        measurer = cache(make)
        for number, photo in photos:
            path = self._cached(photo, key)
            measurement = None if path is None else Measurement.load(path)
            if measurement is None:
                measurement = self._measured(photo, measurer(), what)
                if measurement is not None and path is not None:
                    self._save(measurement, path)
            if measurement is not None:
                found[number] = measurement
            self.tick()

    def _measured(self, photo: Photo, measurer: ModelMeasurer, what: str) -> Measurement | None:
        try:
            return measurer.measure(photo.read(), photo.label)
        except Exception as error:
            self.run.failures.append(Failure(self.subject.name, photo.name, what, _words(error)))
            return None

    def _save(self, measurement: Measurement, path: Path) -> None:
        try:
            measurement.save(path)
        except (OSError, SafetensorError) as error:  # a full disk costs the next run time, and this one nothing
            if not any(failure.what == "caching" for failure in self.run.failures):
                self.run.failures.append(Failure(self.subject.name, None, "caching", _words(error)))

    def _cached(self, photo: Photo, key: tuple[object, ...]) -> Path | None:
        """Where a measurement is cached: by the content of model and photo, the settings, and the versions of what computed it."""
        folder, entry = self.settings.cache, self.run.entry
        if folder is None or entry is None or not entry.fingerprint.complete:
            return None
        label = (photo.label, self.vision.labels) if isinstance(photo.label, str) else photo.label
        parameter = next(self.vision.model.parameters(), None)
        where = "" if parameter is None else f"{parameter.device.type} {parameter.dtype}"
        views = [(view.method, view.depth) for view in self.settings.views]
        versions = [_CACHE_FORMAT, __version__, library_versions(), torch.get_default_dtype()]
        name = digest([*versions, entry.fingerprint.key, photo.digest, views, key, label, where])
        return folder / name[:2] / f"{name}.safetensors"


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
