"""What `compare` found, as data: models, photos, maps, scores, and the look-ups among them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from attnhook.comparison.agreements import PairAgreement
from attnhook.comparison.checks import Note
from attnhook.comparison.measurements import MapKind, Measurement
from attnhook.comparison.measuring import Faithfulness
from attnhook.comparison.model_runs import ModelEntry
from attnhook.comparison.objects import ObjectScores
from attnhook.comparison.photographs import MEASURING, Failure, Photo
from attnhook.imaging.geometry import Box, ImageGeometry
from attnhook.imaging.patch_maps import PatchMap

FIGURE_PHOTOS = 8
"""How many photos a figure shows by default."""


@dataclass(frozen=True)
class SharedArea:
    """The part of a photo that every model saw."""

    part: float  # share of the photo's area
    box: Box  # around it: top, left, bottom, right, in photo pixels


@dataclass(frozen=True, eq=False)
class Findings:
    """The data of a comparison. `Comparison` describes the attributes."""

    models: tuple[ModelEntry, ...]
    photos: tuple[Photo, ...]
    views: tuple[MapKind, ...]
    measurements: dict[tuple[int, int], Measurement]
    areas: tuple[SharedArea | None, ...]
    agreements: dict[str, tuple[PairAgreement, ...]]
    objects: dict[str, tuple[ObjectScores, ...]]
    faithful: dict[str, tuple[Faithfulness, ...]]
    failures: tuple[Failure, ...]
    notes: tuple[Note, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    centre_prior: ObjectScores | None = None

    def heatmap(self, model: "int | str", photo: "int | str" = 0, view: "int | str" = 0) -> Tensor:
        """Return one map at the photo's own pixels.

        Args:
            model: Its index or name.
            photo: Its index or name.
            view: Its index or name, such as `"rollout"` or `"raw_attention@0.5"`.

        Returns:
            `(height, width)` float32, NaN where the model did not look.

        Raises:
            KeyError: If there is no such model, photo, view or map; the message says why.
        """
        where = m, p, chosen = self.model_index(model), self.photo_index(photo), self.view(view)
        found = map_of(self, *where)
        if found is None:
            raise KeyError(
                f"{self.models[m].name} has no {chosen.label} of {self.photos[p].name}: {self.reason(*where)}"
            )
        return found[0].heatmap(found[1])

    def model_index(self, model: "int | str") -> int:
        """Return the index of a model from its name or index, which may be negative; raise `KeyError` if there is none."""
        return _index(model, [entry.name for entry in self.models], "model")

    def photo_index(self, photo: "int | str") -> int:
        """Return the index of a photo from its name or index, which may be negative; raise `KeyError` if there is none."""
        return _index(photo, [one.name for one in self.photos], "photo")

    def view(self, view: "int | str") -> MapKind:
        """Return a view from its name or index, which may be negative; raise `KeyError` if there is none."""
        return self.views[_index(view, [one.id for one in self.views], "view")]

    def reason(self, model: int, photo: int, view: MapKind) -> str:
        """Say in a sentence why a map is missing; model and photo by index."""
        measurement = self.measurements.get((model, photo))
        if measurement is not None:
            return measurement.problems.get(view.id, "it was not requested.")
        failed = [f for f in self.failures if (f.model, f.what) == (self.models[model].name, MEASURING)]
        reasons = [f.error for name in (self.photos[photo].name, None) for f in failed if f.photo == name]
        return reasons[0] if reasons else "the model was not measured."


def map_of(findings: Findings, model: int, photo: int, view: MapKind) -> tuple[PatchMap, ImageGeometry] | None:
    """One map and where it is in the photo; None if it is missing."""
    measurement = findings.measurements.get((model, photo))
    if measurement is None or view.id not in measurement.maps:
        return None
    return measurement.maps[view.id], measurement.geometry


def measurements_of(findings: Findings, model: int) -> list[Measurement]:
    """The measurements of one model, in the order of the photos."""
    return [one for (index, _), one in sorted(findings.measurements.items()) if index == model]


def _index(key: "int | str", names: Sequence[str], what: str) -> int:
    if isinstance(key, str) and key in names:
        return names.index(key)
    if isinstance(key, int | np.integer) and -len(names) <= key < len(names):
        return int(key) % len(names)
    raise KeyError(f"no {what} {key!r}: expected an index below {len(names)} or one of {', '.join(map(repr, names))}.")
