"""`compare`: which model looks where, over models of several libraries."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnhook.comparison.agreements import PairAgreement, PhotoAgreement, pair_agreements, photo_agreement
from attnhook.comparison.checks import make_notes
from attnhook.comparison.comparisons import Comparison
from attnhook.comparison.findings import SharedArea
from attnhook.comparison.measurements import MapKind, Measurement, make_map_kinds
from attnhook.comparison.measuring import Faithfulness, mean_faithfulness
from attnhook.comparison.model_runs import ModelRun, ModelSource, RunSettings, as_subjects
from attnhook.comparison.objects import (
    MaskSource,
    ObjectMask,
    ObjectScores,
    PhotoScores,
    mean_scores,
    object_area,
    random_maps,
    score_photo,
    score_prior,
)
from attnhook.comparison.photographs import Failure, Photo, read_photos
from attnhook.comparison.sampling_grids import SamplingGrid, common_box
from attnhook.comparison.tables import require_pandas
from attnhook.errors import AttnhookError, ComparisonError, ScoreError
from attnhook.files import cache_dir, user_path
from attnhook.imaging.images import ImageSource
from attnhook.imaging.patch_maps import PatchMap
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
    heads: "str | int | Sequence[str | int]" = "mean",
    controls: bool = True,
    resolution: int | None = 128,
    cache: "str | Path | None" = AUTO,
    device: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Comparison:
    """Compare where models look, on the same photos and one pixel grid, with controls.

    Models are loaded one at a time, measured on every photo, and released. Every map is brought to the photo's own pixels through the model's
    own preprocessing, and numbers are taken over the area that all models saw.

    Args:
        models: Specs as `load` takes them, `VisionModel` objects, timm models (whose own `pretrained_cfg` then prepares the photos), or
            functions that return one of these; a sequence, or a mapping from names.
        images: Photos: paths, folders, globs, PIL images, arrays, tensors.
        methods: One of `METHODS`, or several.
        method: One method: the same as `methods`.
        masks: For each photo, where the object is: a mask of the photo's size (file, image or array) of 0 and 1, or of 0, 128 (ignored) and
            255; or boxes `(left, top, right, bottom)` in pixels; or None.
        labels: For each photo, the class that it shows, by name or index. It is printed with the photo, and gradient methods and faithfulness
            follow it instead of each model's highest score.
        statistics: Whether to measure entropy, distance, sinks and patch mass of every block and head, over all rows. True measures them on the
            first 32 photos, because a small model's forward takes about a seventh longer; pass a number for more or fewer.
        faithfulness: Whether to measure how the model's score changes as patches are removed: about 84 more forwards per photo, model and map.
        depths: Relative depths, above 0 and at most 1, of the block for methods that read a single block: the same place in models of different
            depth.
        heads: How heads become one map: `"mean"`, `"max"` or `"min"` over heads, or one head's index (negative from the end), as for
            `raw_attention`. A list, such as `[0, 1, "mean"]`, gives one map for each entry. Gradient methods accept only the mean.
        controls: Whether, with masks, each model is also measured with its weights shuffled.
        resolution: The most points along a photo's longer edge at which maps are compared and scored; None for every pixel.
        cache: The folder where measurements are cached by content; `"auto"` is one in the user's cache folder, None disables the cache.
        device: The device of models that are loaded by name.
        seed: For shuffled weights, random maps, shuffles and intervals; torch's own generators are not touched.
        progress: Whether to show a progress bar on stderr; None shows it on terminals.

    Returns:
        The comparison. Models and photos that failed are listed in its `failures`; the others are complete.

    Raises:
        ComparisonError: If no model could be measured, or no photo read.
        MissingPackageError: If pandas is not installed.
        TypeError: If a model is none of these.
        ValueError: If an option is invalid, a module comes without its preprocessing, or masks or labels do not match the photos.

    Example:
        >>> from attnhook import compare
        >>> found = compare(["demo", "demo:timm"], ["cat.jpg"])  # doctest: +SKIP
        >>> found.agreement()  # doctest: +SKIP
        >>> found.save("report")  # doctest: +SKIP
    """
    require_pandas()
    if method is not None and methods != "raw_attention":
        raise ValueError(f"expected methods or method, got both, {methods!r} and {method!r}. Leave one out.")
    if int(statistics) < 0 or (resolution is not None and resolution < 1):
        raise ValueError(
            f"expected statistics of at least 0 photos and a resolution of at least 1 point, got {statistics} and {resolution}."
        )
    views = make_map_kinds(methods if method is None else method, depths, heads)
    chosen = as_subjects(models)
    photos, unread = read_photos(images, masks, labels)
    if not photos:
        raise ComparisonError(f"nothing to compare on: no photo could be read. {unread[0].photo}: {unread[0].error}")
    own = cache_dir() if cache == AUTO else None
    chosen_folder = None if cache is None or cache == AUTO else user_path(cache)
    folder = chosen_folder if own is None else own / "comparisons"
    controls = controls and any(photo.mask is not None for photo in photos)
    few = _STATISTICS_PHOTOS if statistics is True else int(statistics)
    plan = RunSettings(views, few, faithfulness, controls, seed, device, folder)
    each = len(photos) + sum(photo.mask is not None for photo in photos) * controls
    runs = []
    with progress_bar(len(chosen) * each, shown=progress) as bar:
        for number, subject in enumerate(chosen, 1):
            bar.set_description(subject.name)
            runs.append(ModelRun(subject, plan, bar.update))
            runs[-1].run(photos)
            bar.update(number * each - bar.n)
    settings: dict[str, Any] = {"resolution": resolution, "seed": seed, "statistics": min(few, len(photos))}
    settings |= {
        "faithfulness": faithfulness,
        "controls": controls,
        "heads": list(dict.fromkeys(v.heads for v in views)),
    }
    return _Assembly(runs, photos, resolution, seed).comparison(views, unread, settings)


class _Assembly:
    """Puts what the models measured side by side."""

    def __init__(self, runs: Sequence[ModelRun], photos: Sequence[Photo], resolution: int | None, seed: int) -> None:
        self.failures = [failure for run in runs for failure in run.failures]
        self.runs = [run for run in runs if run.measurements]
        if not self.runs:
            reasons = "; ".join(f"{failure.model}: {failure.error}" for failure in self.failures[:3])
            raise ComparisonError(f"none of {len(runs)} models could be measured. {reasons}")
        self.entries = [run.entry for run in self.runs if run.entry is not None]
        self.photos, self.seed = photos, seed
        self.sampling = [SamplingGrid.of_photo(photo.size, resolution) for photo in photos]
        self.seen = list(map(self._seen, range(len(photos))))
        self.masks = [self._mask(photo) for photo in photos]
        self.random: dict[Any, PhotoScores] = {}  # scores of random maps, by what they depend on
        # Photos, by the model, what failed, and why.
        self.problems: dict[tuple[int, str, str], list[int]] = defaultdict(list)
        for model, run in enumerate(self.runs):
            for number, measurement in run.measurements.items():
                for what, error in measurement.problems.items():
                    self.problems[model, what, error].append(number)

    def comparison(self, views: Sequence[MapKind], unread: Sequence[Failure], settings: dict[str, Any]) -> Comparison:
        """Everything together; agreements first, because they add failures and problems."""
        agreements = {view.id: self._agreements(view) for view in views}
        masked = any(photo.mask is not None for photo in self.photos)
        return Comparison(
            models=tuple(self.entries),
            photos=tuple(self.photos),
            views=tuple(views),
            measurements={(m, p): one for m, run in enumerate(self.runs) for p, one in run.measurements.items()},
            areas=tuple(map(self._area, range(len(self.photos)))),
            agreements=agreements,
            objects={view.id: self._objects(view) for view in views if masked},
            centre_prior=self._prior() if masked else None,
            faithful={view.id: found for view in views if (found := self._faithfulness(view))},
            failures=(*unread, *self.failures, *self._problems()),
            notes=tuple(make_notes(self.entries, [run.measurements for run in self.runs], views[0].id)),
            settings=settings,
        )

    def _of(self, photo: int) -> dict[int, Measurement]:
        """The measurements of a photo, by model."""
        return {m: run.measurements[photo] for m, run in enumerate(self.runs) if photo in run.measurements}

    def _seen(self, photo: int) -> Tensor:
        sampling = self.sampling[photo]
        seen = [sampling.seen(measurement) for measurement in self._of(photo).values()]
        return torch.stack(seen).all(dim=0) if seen else torch.zeros(sampling.size, dtype=torch.bool, device="cpu")

    def _mask(self, photo: Photo) -> ObjectMask | None:
        try:
            return photo.object_mask()
        except (AttnhookError, OSError) as error:  # gone or changed since the comparison began
            self.failures.append(Failure(None, photo.name, "reading the mask", str(error)))
            return None

    def _area(self, photo: int) -> SharedArea | None:
        seen = self.seen[photo]
        part = float(seen.double().mean())
        return SharedArea(part, common_box(seen, self.sampling[photo])) if part else None

    def _agreements(self, view: MapKind) -> tuple[PairAgreement, ...]:
        photos = [self._photo_agreement(view, number) for number in range(len(self.photos))]
        error = "left out, because the map is zero or missing wherever all models looked."
        for number, photo in enumerate(photos):
            for model in photo.without if photo else ():
                self.problems[model, f"agreement of {view.label}", error].append(number)
        return pair_agreements(photos, len(self.runs))

    def _photo_agreement(self, view: MapKind, photo: int) -> PhotoAgreement | None:
        known = {m: one for m, one in self._of(photo).items() if view.id in one.maps}
        if len(known) < 2 or not self.seen[photo].any():
            return None
        maps = {m: one.maps[view.id] for m, one in known.items()}
        at, content, seed = (self.sampling[photo], self.seen[photo]), self.photos[photo].digest, self.seed + photo
        try:
            return photo_agreement(*at, known, maps, content=content, seed=seed)
        except ScoreError as error:
            self.failures.append(Failure(None, self.photos[photo].name, f"agreement of {view.label}", str(error)))
            return None

    def _objects(self, view: MapKind) -> tuple[ObjectScores, ...]:
        found = []
        for model, run in enumerate(self.runs):
            scores, areas = [], []
            for photo, measurement in run.measurements.items():
                mask = self.masks[photo]
                if mask is not None and view.id in measurement.maps:
                    own = {"model": measurement, "random_weights": run.controls.get(photo)}
                    maps = {name: one.maps[view.id] for name, one in own.items() if one and view.id in one.maps}
                    at = (self.sampling[photo], self.seen[photo], mask)
                    drawn = self._random(photo, mask, measurement, maps["model"])
                    scored = score_photo(*at, measurement, maps)
                    scores.append({name: scored[name] | drawn[name] for name in scored})
                    areas.append(object_area(*at))
            if scores:
                found.append(mean_scores(model, scores, areas))
        return tuple(found)

    def _random(self, photo: int, mask: ObjectMask, measurement: Measurement, own: PatchMap) -> PhotoScores:
        """Scores of random maps on a model's grid: the same for all views and models of one grid and crop."""
        key = (photo, own.grid, own.area, measurement.geometry, measurement.area)
        if key not in self.random:
            maps = {"random_map": random_maps(own, seed=self.seed + photo)}
            self.random[key] = score_photo(self.sampling[photo], self.seen[photo], mask, measurement, maps)
        return self.random[key]

    def _prior(self) -> ObjectScores:
        every = zip(self.sampling, self.seen, self.masks, strict=True)
        at = [(sampling, seen, mask) for sampling, seen, mask in every if mask is not None]
        return mean_scores(None, [score_prior(*one) for one in at], [object_area(*one) for one in at])

    def _faithfulness(self, view: MapKind) -> tuple[Faithfulness, ...]:
        areas = [[one.areas[view.id] for one in run.measurements.values() if view.id in one.areas] for run in self.runs]
        return tuple(mean_faithfulness(model, photos) for model, photos in enumerate(areas) if photos)

    def _problems(self) -> Iterator[Failure]:
        """What models could not do; listed once if it happened on every photo that the model was measured on."""
        for (model, what, error), photos in self.problems.items():
            everywhere = len(photos) == len(self.runs[model].measurements)
            for photo in [None] if everywhere else [self.photos[number].name for number in photos]:
                yield Failure(self.entries[model].name, photo, what, error)
