"""One model of a comparison from loading to letting go: measured on every photo, its random twin after it."""

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from safetensors import SafetensorError

from attnhook.workflows.comparison.caches import MeasurementCache
from attnhook.workflows.comparison.entries import ModelEntry, model_entry
from attnhook.workflows.comparison.measurements import Measurement
from attnhook.workflows.comparison.measuring import Gauge
from attnhook.workflows.comparison.photographs import Failure, Photo
from attnhook.workflows.comparison.subjects import Subject
from attnhook.workflows.comparison.twins import randomise
from attnhook.workflows.comparison.views import View
from attnhook.zoo.loading import VisionModel


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

    Args:
        subject: The model.
        photos: The photos.
        settings: What is measured.
        tick: Called after each photo.

    Returns:
        What became of it.
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
        runner.measure(photos)
        if settings.twins:
            runner.measure_twin(photos)
    except Exception as error:
        run.failures.append(Failure(subject.name, None, "measuring", _words(error)))
    finally:
        for module, training in modes:
            module.training = training
    run.failures = _together(run)
    del vision, runner
    gc.collect()
    return run


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
                self._all(chosen, lambda g=gauge: g, (statistics, self.settings.faithful), self.run.measurements)  # type: ignore[misc]

    def _gauge(self, *, statistics: bool) -> Gauge:
        return Gauge(self.vision, self.settings.views, statistics=statistics, faithful=self.settings.faithful)

    def measure_twin(self, photos: Sequence[Photo]) -> None:
        """The same with random weights, which are made only if some photo was not measured before."""
        chosen = [photo if photo.mask is not None else None for photo in photos]
        self._all(chosen, cache(self._twin), ("random weights", self.settings.seed), self.run.twins)

    def _twin(self) -> Gauge:
        model = self.vision.model if self.subject.owned else copy.deepcopy(self.vision.model)
        twin = replace(self.vision, model=randomise(model, seed=self.settings.seed))
        return Gauge(twin, self.settings.views, statistics=False)

    def _all(
        self,
        photos: "Sequence[Photo | None]",
        gauge: Callable[[], Gauge],
        key: tuple[object, ...],
        found: dict[int, Measurement],
    ) -> None:
        for index, photo in enumerate(photos):
            if photo is not None:
                measurement = self._one(photo, gauge, key)
                if measurement is not None:
                    found[index] = measurement
                self.tick()

    def _one(self, photo: Photo, gauge: Callable[[], Gauge], key: tuple[object, ...]) -> Measurement | None:
        entry, kept = self.run.entry, self.settings.cache
        content = None if entry is None else entry.fingerprint
        path = kept.path(content, photo, self.settings.views, (*key, photo.label, _place(self.vision)))
        measurement = kept.get(path)
        if measurement is not None:
            return measurement
        try:
            measurement = gauge().measure(photo.read(), photo.label)
        except Exception as error:
            self.run.failures.append(Failure(self.subject.name, photo.name, "measuring", _words(error)))
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
