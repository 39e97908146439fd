"""How maps score against masks of the object, each score beside what a centre prior, a random map and a model with random weights score."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.attribution.scores import auroc, centre_prior, energy_in_mask, iou_at_mass, pointing_game, random_map
from attnhook.errors import ScoreError
from attnhook.workflows.comparison.estimates import Estimate, estimate
from attnhook.workflows.comparison.lattices import Lattice
from attnhook.workflows.comparison.masks import ObjectMask
from attnhook.workflows.comparison.measurements import Measurement

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pointing": pointing_game,
    "energy": energy_in_mask,
    "auroc": auroc,
    "iou": iou_at_mass,
}
CONTROLS = ("model", "random_weights", "centre_prior", "random_map")


@dataclass(frozen=True)
class ObjectScores:
    """One model over all photos that have a mask.

    Attributes:
        model: Index of the model.
        estimates: By score and by one of `CONTROLS`, with standard errors.
    """

    model: int
    estimates: dict[str, dict[str, Estimate]]


def score_photo(
    lattice: Lattice,
    seen: Tensor,
    mask: ObjectMask,
    measurement: Measurement,
    maps: dict[str, Tensor | None],
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Score a model's map of one photo, and the controls, over the points that all models saw.

    Args:
        lattice: Points of the photo.
        seen: Those that all models saw, `(rows, columns)` bool.
        mask: The object.
        measurement: The model's.
        maps: The map `(h, w)` of `"model"`, and of `"random_weights"` where there is one.
        seed: Of the random map, which is of the model's own grid.

    Returns:
        By score and by one of `CONTROLS`; NaN where nothing of the object, or nothing else, was seen.
    """
    inside = lattice.nearest(mask.inside)
    counted = seen & ~lattice.nearest(mask.ignored)
    grids = [patch_map for patch_map in maps.values() if patch_map is not None]
    drawn = {
        name: None if patch_map is None else lattice.sample(measurement, patch_map) for name, patch_map in maps.items()
    }
    drawn["centre_prior"] = centre_prior(lattice.size)
    if grids:
        drawn["random_map"] = lattice.sample(
            measurement, random_map((grids[0].shape[-2], grids[0].shape[-1]), seed=seed)
        )
    scores: dict[str, dict[str, float]] = {name: dict.fromkeys(CONTROLS, math.nan) for name in SCORES}
    for control, values in drawn.items():
        if values is None:
            continue
        known = values.masked_fill(~counted, math.nan)
        for name, score in SCORES.items():
            try:
                scores[name][control] = float(score(known, inside))
            except ScoreError:  # nothing of the object, or no background, where all looked; a map without mass
                continue
    return scores


def object_scores(model: int, photos: "Sequence[dict[str, dict[str, float]]]") -> ObjectScores:
    """Average a model's scores over photos.

    Args:
        model: Its index.
        photos: What `score_photo` gave.

    Returns:
        The means.
    """
    table = {
        name: {control: estimate(torch.tensor([one[name][control] for one in photos])) for control in CONTROLS}
        for name in SCORES
    }
    return ObjectScores(model, table)
