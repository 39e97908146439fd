"""How maps score against masks of the object, each score beside what a centre prior, a random map and a model with random weights score."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.attribution.scores import auroc, centre_prior, energy_in_mask, iou_at_mass, pointing_game, random_map
from attnhook.comparison.estimates import Estimate, estimate
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.object_masks import ObjectMask
from attnhook.comparison.sampling_grids import Lattice, at_patches
from attnhook.errors import ScoreError
from attnhook.imaging.patch_maps import PatchMap

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
    maps: dict[str, PatchMap | None],
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Score a model's map of one photo, and the controls, over the points that all models saw.

    Args:
        seen: Those that all models saw, `(rows, columns)` bool.
    """
    inside = lattice.nearest(mask.inside)
    counted = seen & ~lattice.nearest(mask.ignored)
    patches = {control: patch_map for control, patch_map in maps.items() if patch_map is not None}
    if patches:
        own = next(iter(patches.values()))
        patches["random_map"] = own.like(random_map(own.grid, seed=seed))
    drawn = {control: lattice.sample(measurement, patch_map) for control, patch_map in patches.items()}
    drawn["centre_prior"] = centre_prior(lattice.size)
    scores: dict[str, dict[str, float]] = {name: dict.fromkeys(CONTROLS, math.nan) for name in SCORES}
    for control, values in drawn.items():
        known = values.masked_fill(~counted, math.nan)
        for name, score in SCORES.items():
            if name == "pointing" and control in patches:
                continue  # scored at the patches, below
            try:
                scores[name][control] = float(score(known, inside))
            except ScoreError:  # nothing of the object, or no background, where all looked; a map without mass
                continue
        if control in patches and (inside & counted).any():
            scores["pointing"][control] = _pointing(measurement, patches[control], counted, mask)
    return scores


def _pointing(measurement: Measurement, patch_map: PatchMap, counted: Tensor, mask: ObjectMask) -> float:
    """Whether the centre of the highest patch lies on the object: interpolation has no say in which patch that is. Ties share."""
    known = at_patches(measurement, patch_map, counted) & ~at_patches(measurement, patch_map, mask.ignored)
    values = patch_map.values.masked_fill(~known, -math.inf).nan_to_num(-math.inf)
    highest = values == values.max()
    return float(at_patches(measurement, patch_map, mask.inside)[highest].double().mean()) if known.any() else math.nan


def object_scores(model: int, photos: "Sequence[dict[str, dict[str, float]]]") -> ObjectScores:
    """Average a model's scores over photos."""
    table = {
        name: {control: estimate(torch.tensor([one[name][control] for one in photos])) for control in CONTROLS}
        for name in SCORES
    }
    return ObjectScores(model, table)
