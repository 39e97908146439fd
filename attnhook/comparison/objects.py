"""How maps score against masks of the object, compared with a centre prior, a random map and the same model with shuffled weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from attnhook.attribution.scores import auroc, centre_prior, energy_in_mask, iou_at_mass, pointing_game, random_map
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.object_masks import ObjectMask
from attnhook.comparison.sampling_grids import SamplingGrid, at_patches
from attnhook.comparison.tables import Estimate, estimate
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
    sampling: SamplingGrid,
    seen: Tensor,
    mask: ObjectMask,
    measurement: Measurement,
    maps: dict[str, PatchMap | None],
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Score a model's map of one photo, and the controls, at the points that all models saw, `seen` `(rows, columns)` bool."""
    inside = sampling.nearest(mask.inside)
    counted = seen & ~sampling.nearest(mask.ignored)
    patches = {control: patch_map for control, patch_map in maps.items() if patch_map is not None}
    if patches:
        own = next(iter(patches.values()))
        patches["random_map"] = own.like(random_map(own.grid, seed=seed))
    sampled = {control: sampling.sample(measurement, patch_map) for control, patch_map in patches.items()}
    sampled["centre_prior"] = centre_prior(sampling.size)
    scores: dict[str, dict[str, float]] = {name: dict.fromkeys(CONTROLS, math.nan) for name in SCORES}
    for control, values in sampled.items():
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
    """Whether the centre of the highest patch, before interpolation, is on the object; ties share."""
    known = at_patches(measurement, patch_map, counted) & ~at_patches(measurement, patch_map, mask.ignored)
    values = patch_map.values.masked_fill(~known, -math.inf).nan_to_num(-math.inf)
    highest = values == values.max()
    return float(at_patches(measurement, patch_map, mask.inside)[highest].double().mean()) if known.any() else math.nan


def mean_scores(model: int, photos: "Sequence[dict[str, dict[str, float]]]") -> ObjectScores:
    """Average a model's scores over photos."""
    table = {
        name: {control: estimate([one[name][control] for one in photos]) for control in CONTROLS} for name in SCORES
    }
    return ObjectScores(model, table)
