"""One model of a comparison from loading to letting go: measured on every photo, its random twin after it."""

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from safetensors import SafetensorError

from attnhook.comparison.caches import MeasurementCache
from attnhook.comparison.entries import ModelEntry, model_entry
from attnhook.comparison.map_kinds import View
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.measuring import Gauge
from attnhook.comparison.photographs import MEASURING, Failure, Photo
from attnhook.comparison.subjects import Subject
from attnhook.comparison.twins import randomise
from attnhook.zoo.vision_models import VisionModel

_RANDOM = "measuring with random weights"


@dataclass(frozen=True)
class RunSettings:
    """What every model of a comparison is measured by.

    Attributes:
        views: The maps.
        statistics: On how many photos statistics are measured.
        faithful: Whether patches are taken away.
        twins: Whether the architecture with random weights is measured as well.
        seed: Of the random weights.
        device: Where models go that are loaded by name; None for the CPU.
        cache: Where measurements are kept.
    """

    views: tuple[View, ...]
    statistics: int
    faithful: bool
    twins: bool
    seed: int
    device: str | None
    cache: MeasurementCache


@dataclass(eq=False)
class ModelRun:
    """What became of one model.

    Attributes:
        entry: What is said of it; None if it could not be loaded.
        measurements: By photo.
        twins: Of the same architecture with random weights, by photo.
        failures: What went wrong.
    """

    entry: ModelEntry | None = None
    measurements: dict[int, Measurement] = field(default_factory=dict)
    twins: dict[int, Measurement] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def run_model(subject: Subject, photos: Sequence[Photo], settings: RunSettings, tick: Callable[[], None]) -> ModelRun:
    """Load a model, measure it on every photo, and let it go.

    Whatever a model raises is written down: the others are to finish.
    """
    run = ModelRun()
    try:
        vision = subject.open(settings.device)
        run.entry = model_entry(subject, vision)
    except Exception as error:
        run.failures.append(Failure(subject.name, None, "loading", _words(error)))
        return run
    modes = [(module, module.training) for module in vision.model.modules()]
    runner = _Runner(subject, vision, run, settings, tick)
    try:
        vision.model.eval()
        _tried(run, subject, MEASURING, runner.measure, photos)
        if settings.twins:
            _tried(run, subject, _RANDOM, runner.measure_twin, photos)
    finally:
        for module, training in modes:
            module.training = training
    run.failures = _together(run)
    del vision, runner
    gc.collect()
    return run


def _tried(
    run: ModelRun, subject: Subject, what: str, step: Callable[[Sequence[Photo]], None], photos: Sequence[Photo]
) -> None:
    try:
        step(photos)
    except Exception as error:
        run.failures.append(Failure(subject.name, None, what, _words(error)))


def _together(run: ModelRun) -> list[Failure]:
    """What went wrong in the same way on every photo, once."""
    errors = {(failure.what, failure.error) for failure in run.failures}
    if run.measurements or len(errors) != 1:
        return run.failures
    return [replace(run.failures[0], photo=None)]


@dataclass(frozen=True, eq=False)
class _Runner:
    """A loaded model on its way through the photos."""

    subject: Subject
    vision: VisionModel
    run: ModelRun
    settings: RunSettings
    tick: Callable[[], None]

    def measure(self, photos: Sequence[Photo]) -> None:
        """The model as it is."""
        few = min(self.settings.statistics, len(photos))
        whole = [photo if number < few else None for number, photo in enumerate(photos)]
        rest = [None if number < few else photo for number, photo in enumerate(photos)]
        for chosen, statistics in ((whole, True), (rest, False)):
            if any(chosen):
                gauge = self._gauge(statistics=statistics)  # a model without attention says so once, not once a photo
                key = (statistics, self.settings.faithful)
                self._all(chosen, lambda g=gauge: g, key, self.run.measurements, MEASURING)  # type: ignore[misc]

    def _gauge(self, *, statistics: bool) -> Gauge:
        return Gauge(self.vision, self.settings.views, statistics=statistics, faithful=self.settings.faithful)

    def measure_twin(self, photos: Sequence[Photo]) -> None:
        """The same with random weights, which are made only if some photo was not measured before."""
        own = self.run.measurements
        chosen = [
            photo if photo.mask is not None and number in own and own[number].maps else None
            for number, photo in enumerate(photos)
        ]
        self._all(chosen, cache(self._twin), (_RANDOM, self.settings.seed), self.run.twins, _RANDOM)

    def _twin(self) -> Gauge:
        model = self.vision.model if self.subject.owned else copy.deepcopy(self.vision.model)
        twin = self.vision.with_model(randomise(model, seed=self.settings.seed))
        return Gauge(twin, self.settings.views, statistics=False)

    def _all(
        self,
        photos: "Sequence[Photo | None]",
        gauge: Callable[[], Gauge],
        key: tuple[object, ...],
        found: dict[int, Measurement],
        what: str,
    ) -> None:
        for index, photo in enumerate(photos):
            if photo is not None:
                measurement = self._one(photo, gauge, key, what)
                if measurement is not None:
                    found[index] = measurement
                self.tick()

    def _class(self, photo: Photo) -> object:
        """The label, and what a name stands for."""
        return (photo.label, self.vision.labels) if isinstance(photo.label, str) else photo.label

    def _one(self, photo: Photo, gauge: Callable[[], Gauge], key: tuple[object, ...], what: str) -> Measurement | None:
        entry, kept = self.run.entry, self.settings.cache
        content = None if entry is None else entry.fingerprint
        path = kept.path(content, photo, self.settings.views, (*key, self._class(photo), _place(self.vision)))
        measurement = kept.get(path)
        if measurement is not None:
            return measurement
        made = gauge()
        try:
            measurement = made.measure(photo.read(), photo.label)
        except Exception as error:
            self.run.failures.append(Failure(self.subject.name, photo.name, what, _words(error)))
            return None
        try:
            kept.keep(path, measurement)
        except (OSError, SafetensorError) as error:  # a full disk costs the next run time, and this one nothing
            if not any(failure.what == "caching" for failure in self.run.failures):
                self.run.failures.append(Failure(self.subject.name, None, "caching", _words(error)))
        return measurement


def _place(vision: VisionModel) -> str:
    parameter = next(vision.model.parameters(), None)
    return "" if parameter is None else f"{parameter.device.type} {parameter.dtype}"


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
