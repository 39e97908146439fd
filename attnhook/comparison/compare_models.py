"""`compare`: which model looks where, over models of several libraries."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnhook.comparison.agreements import PairAgreement, PhotoAgreement, pair_agreements, photo_agreement
from attnhook.comparison.caches import MeasurementCache
from attnhook.comparison.checks import make_notes
from attnhook.comparison.comparisons import Comparison, SharedArea
from attnhook.comparison.faithfulness import Faithfulness, mean_faithfulness
from attnhook.comparison.map_kinds import View, make_views
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.model_runs import ModelRun, RunSettings, run_model
from attnhook.comparison.object_masks import MaskSource, ObjectMask
from attnhook.comparison.objects import ObjectScores, object_scores, score_photo
from attnhook.comparison.photographs import Failure, Photo, read_photos
from attnhook.comparison.sampling_grids import Lattice, common_box
from attnhook.comparison.subjects import ModelSource, Subject, as_subjects
from attnhook.errors import AttnhookError, ComparisonError, ScoreError
from attnhook.files import cache_dir
from attnhook.imaging.images import ImageSource
from attnhook.running.progress import progress_bar

AUTO = "auto"
_STATISTICS_PHOTOS = 32


def compare(
    models: "Mapping[str, ModelSource] | Sequence[ModelSource] | ModelSource",
    images: "ImageSource | Iterable[ImageSource]",
    *,
    methods: "str | Sequence[str]" = "raw_attention",
    method: str | None = None,
    masks: "Sequence[MaskSource | None] | None" = None,
    labels: "Sequence[str | int | None] | None" = None,
    statistics: bool | int = True,
    faithfulness: bool = False,
    depths: "float | Sequence[float]" = 1.0,
    controls: bool = True,
    resolution: int | None = 128,
    cache: "str | Path | None" = AUTO,
    device: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Compare where models look: the same photos, one pixel grid, numbers with controls.

    Models are loaded one at a time, measured on every photo, and let go. Every map is brought to the photo's own pixels through the model's own
    preprocessing, and numbers are taken over the area that all models saw.

    Args:
        models: Specs as `load` takes them, `VisionModel` objects, timm models (whose own `pretrained_cfg` then prepares the photos), or
            functions that return one of these; a sequence, or a mapping from names.
        images: Photos: paths, PIL images, arrays, tensors.
        methods: One of `METHODS`, or several.
        method: One method: the same as `methods`.
        masks: One a photo, of the photo's size, where the object is: files, images or arrays of 0 and 1, or of 0, 128 (ignored) and 255; or
            boxes `(left, top, right, bottom)` in pixels; None for a photo without.
        labels: What each photo shows, a class by name or index. Shown beside the photo; gradient methods and faithfulness follow it, instead of
            each model's own highest score.
        statistics: Whether to measure entropy, distance, sinks and patch mass of every block and head, over all rows. True measures the
            first 32 photos, because it takes a small model's forward about a seventh longer; a number says on how many.
        faithfulness: Whether to take patches away and watch the model's own score: about 84 more forwards a photo, model and map.
        depths: Relative depths, above 0 and at most 1, at which methods of one block are taken: the same place in models of different depth.
        controls: Whether, with masks, each architecture is also measured with random weights.
        resolution: The most points along a photo's longer edge at which maps are compared and scored; None for every pixel.
        cache: The folder where measurements are kept by content; `"auto"` is one in the user's cache folder, None keeps nothing.
        device: Where models run that are loaded by name.
        seed: Of random weights, random maps, shuffles and intervals; torch's own generators are not touched.
        progress: Whether to show a progress bar on stderr; None shows it on terminals.

    Returns:
        The comparison. Models and photos that failed are among its `failures`; the others are done.

    Raises:
        ComparisonError: If no model could be measured, or no photo read.
        TypeError: If a model is none of these.
        ValueError: If an option is none of its choices, a module does not bring its preprocessing, or masks or labels do not go with the photos.

    Example:
        >>> from attnhook import compare
        >>> found = compare(["demo", "demo:timm"], ["cat.jpg"])  # doctest: +SKIP
        >>> found.agreement()  # doctest: +SKIP
        >>> found.save("report")  # doctest: +SKIP
    """
    if method is not None and methods != "raw_attention":
        raise ValueError(f"expected methods or method, got both, {methods!r} and {method!r}. Leave one out.")
    if int(statistics) < 0 or (resolution is not None and resolution < 1):
        raise ValueError(
            f"expected statistics of at least 0 photos and a resolution of at least 1 point, got {statistics} and {resolution}."
        )
    views = make_views(methods if method is None else method, depths)
    chosen = as_subjects(models)
    photos, unread = read_photos(images, masks, labels)
    if not photos:
        raise ComparisonError(f"nothing to compare on: no photo could be read. {unread[0].photo}: {unread[0].error}")
    folder = cache_dir() / "comparisons" if cache == AUTO else None if cache is None else Path(cache)
    twins = controls and any(photo.mask is not None for photo in photos)
    few = _STATISTICS_PHOTOS if statistics is True else int(statistics)
    settings = RunSettings(views, few, faithfulness, twins, seed, device, MeasurementCache(folder))
    runs = _run_all(chosen, photos, settings, progress)
    asked = {
        "resolution": resolution,
        "seed": seed,
        "statistics": min(few, len(photos)),
        "faithfulness": faithfulness,
        "controls": twins,
    }
    return _Assembly(runs, photos, views, resolution, seed).comparison(unread, asked)


def _run_all(
    chosen: Sequence[Subject], photos: Sequence[Photo], settings: RunSettings, progress: bool | None
) -> list[ModelRun]:
    each = len(photos) + sum(photo.mask is not None for photo in photos) * settings.twins
    runs = []
    with progress_bar(len(chosen) * each, shown=progress) as bar:
        for number, subject in enumerate(chosen):
            bar.set_description(subject.name)
            runs.append(run_model(subject, photos, settings, bar.update))
            bar.update((number + 1) * each - bar.n)
    return runs


class _Assembly:
    """Puts what the models measured side by side."""

    def __init__(
        self,
        runs: Sequence[ModelRun],
        photos: Sequence[Photo],
        views: Sequence[View],
        resolution: int | None,
        seed: int,
    ) -> None:
        self.failures = [failure for run in runs for failure in run.failures]
        self.runs = [run for run in runs if run.entry is not None and run.measurements]
        if not self.runs:
            reasons = "; ".join(f"{failure.model}: {failure.error}" for failure in self.failures[:3])
            raise ComparisonError(f"none of {len(runs)} models could be measured. {reasons}")
        self.photos, self.views, self.seed = photos, views, seed
        self.lattices = [Lattice.of_photo(photo.size, resolution) for photo in photos]
        self.seen = [self._seen(number) for number in range(len(photos))]
        self.masks = [self._mask(photo) for photo in photos]

    def comparison(self, unread: Sequence[Failure], asked: dict[str, Any]) -> Comparison:
        """Everything together."""
        entries = [run.entry for run in self.runs if run.entry is not None]
        measurements = {(m, p): one for m, run in enumerate(self.runs) for p, one in run.measurements.items()}
        names, trained = [entry.name for entry in entries], [entry.trained_grid for entry in entries]
        contents = [entry.fingerprint for entry in entries]
        notes = make_notes(names, contents, measurements, trained, self.views[0].id)
        agreements = {view.id: self._agreements(view) for view in self.views}
        objects = {view.id: self._objects(view) for view in self.views if any(p.mask is not None for p in self.photos)}
        faithful = {view.id: found for view in self.views if (found := self._faithful(view))}
        return Comparison(
            models=tuple(entries),
            photos=tuple(self.photos),
            views=tuple(self.views),
            measurements=measurements,
            areas=tuple(map(self._area, range(len(self.photos)))),
            agreements=agreements,
            objects=objects,
            faithful=faithful,
            failures=(*unread, *self.failures, *self._problems()),
            notes=tuple(notes),
            settings=asked,
        )

    def _of(self, photo: int) -> dict[int, Measurement]:
        """The models that have a measurement of a photo."""
        return {m: run.measurements[photo] for m, run in enumerate(self.runs) if photo in run.measurements}

    def _seen(self, photo: int) -> Tensor:
        lattice = self.lattices[photo]
        seen = torch.ones(lattice.size, dtype=torch.bool)
        for measurement in self._of(photo).values():
            seen &= lattice.seen(measurement)
        return seen

    def _mask(self, photo: Photo) -> ObjectMask | None:
        try:
            return photo.object_mask()
        except (AttnhookError, OSError) as error:  # gone or changed since the comparison began
            self.failures.append(Failure(None, photo.name, "reading the mask", str(error)))
            return None

    def _area(self, photo: int) -> SharedArea | None:
        seen = self.seen[photo]
        if not (self._of(photo) and seen.any()):
            return None
        return SharedArea(float(seen.double().mean()), common_box(seen, self.lattices[photo]))

    def _agreements(self, view: View) -> tuple[PairAgreement, ...]:
        photos = [self._photo_agreement(view, p) for p in range(len(self.photos))]
        empty = [(m, p) for p, photo in enumerate(photos) if photo is not None for m in photo.without]
        error = "the map is zero or missing wherever all models looked, and left out."
        for model in sorted({m for m, _ in empty}):
            without = [p for m, p in empty if m == model]
            self.failures += self._failed(model, without, f"agreement of {view.label}", error)
        return pair_agreements(photos, len(self.runs))

    def _name(self, model: int) -> str | None:
        entry = self.runs[model].entry
        return None if entry is None else entry.name

    def _photo_agreement(self, view: View, photo: int) -> PhotoAgreement | None:
        known = {m: one for m, one in self._of(photo).items() if view.id in one.maps}
        if len(known) < 2 or not self.seen[photo].any():
            return None
        maps = {m: one.maps[view.id] for m, one in known.items()}
        try:
            found = photo_agreement(self.lattices[photo], self.seen[photo], known, maps, seed=self.seed + photo)
        except ScoreError as error:
            self.failures.append(Failure(None, self.photos[photo].name, f"agreement of {view.label}", str(error)))
            return None
        return None if found is None else replace(found, content=self.photos[photo].digest)

    def _objects(self, view: View) -> tuple[ObjectScores, ...]:
        found = []
        for model, run in enumerate(self.runs):
            scores = []
            for photo, measurement in run.measurements.items():
                mask = self.masks[photo]
                if mask is None or view.id not in measurement.maps:
                    continue
                twin = run.twins.get(photo)
                maps = {
                    "model": measurement.maps[view.id],
                    "random_weights": None if twin is None else twin.maps.get(view.id),
                }
                at = (self.lattices[photo], self.seen[photo], mask, measurement)
                scores.append(score_photo(*at, maps, seed=self.seed + photo))
            if scores:
                found.append(object_scores(model, scores))
        return tuple(found)

    def _faithful(self, view: View) -> tuple[Faithfulness, ...]:
        found = []
        for model, run in enumerate(self.runs):
            areas = [one.areas[view.id] for one in run.measurements.values() if view.id in one.areas]
            if areas:
                found.append(mean_faithfulness(model, areas))
        return tuple(found)

    def _problems(self) -> list[Failure]:
        """Maps that models do not have."""
        found: dict[tuple[int, str, str], list[int]] = {}
        for model, run in enumerate(self.runs):
            for photo, measurement in run.measurements.items():
                for what, error in measurement.problems.items():
                    found.setdefault((model, what, error), []).append(photo)
        return [one for (model, *said), photos in found.items() for one in self._failed(model, photos, *said)]

    def _failed(self, model: int, photos: Sequence[int], what: str, error: str) -> list[Failure]:
        """The same on several photos: once if that is all that the model was measured on."""
        everywhere = len(photos) == len(self.runs[model].measurements)
        names = [None] if everywhere else [self.photos[photo].name for photo in photos]
        return [Failure(self._name(model), name, what, error) for name in names]
