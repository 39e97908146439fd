"""How a model's score changes as the highest patches of its map are removed, or shown first, compared with random maps.

Deletion and insertion of Petsiuk et al. 2018 (arXiv 1806.07421) on softmax probabilities of one class. They measure how a model reacts to images
unlike those it was trained on, so only the difference from the random map means something.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.attribution.perturbation import deletion, insertion
from attnhook.attribution.scores import random_map
from attnhook.comparison.tables import Estimate, estimate
from attnhook.imaging.model_inputs import ModelInputs, with_pixels
from attnhook.imaging.patch_maps import PatchMap
from attnhook.running.targets import TargetOption, class_index, class_scores
from attnhook.running.vision_forward import run_vision
from attnhook.zoo.vision_models import VisionModel

CURVES = ("deletion", "random_deletion", "insertion", "random_insertion")


@dataclass(frozen=True)
class Faithfulness:
    """One model, by index, over all photos."""

    model: int
    areas: dict[str, Estimate]  # under each of `CURVES`
    gains: dict[str, Estimate]  # of "deletion" and "insertion" over the random map, per photo; positive is better


def perturb(
    vision: VisionModel,
    inputs: ModelInputs,
    patch_map: PatchMap,
    target: TargetOption,
    *,
    steps: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Areas under the `CURVES` of one photo. Removed pixels become 0, which is mid-grey for most models."""

    def scores(given: ModelInputs) -> Tensor:
        with torch.no_grad():
            return class_scores(vision.model, run_vision(vision.model, given))

    whole = scores(inputs)
    index = int(whole[0].argmax()) if target is None else class_index(target, vision.labels, whole.shape[1])
    pixels = inputs.pixels
    height, width = patch_map.area or pixels.shape[-2:]
    covered = pixels[..., :height, :width]
    rows, columns = covered.shape[-2:]
    # Where the patch embedding pads, the last patches reach beyond the pixels.
    covered = torch.nn.functional.pad(covered, (0, width - columns, 0, height - rows))

    def score(changed: Tensor) -> Tensor:
        perturbed = pixels.clone()
        perturbed[..., :rows, :columns] = changed[..., :rows, :columns]
        return scores(with_pixels(inputs, perturbed)).float().softmax(dim=-1)[:, index].cpu()

    grid = patch_map.grid
    count = min(steps, grid[0] * grid[1])
    areas = {}
    for prefix, values in {"": patch_map.values[None], "random_": random_map(grid, seed=seed)[None]}.items():
        areas[f"{prefix}deletion"] = float(deletion(score, covered, values, steps=count).area)
        areas[f"{prefix}insertion"] = float(insertion(score, covered, values, steps=count).area)
    return areas


def mean_faithfulness(model: int, photos: Sequence[dict[str, float]]) -> Faithfulness:
    """Average over photos."""
    areas = {name: estimate([one[name] for one in photos]) for name in CURVES}
    gains = {
        "deletion": estimate([one["random_deletion"] - one["deletion"] for one in photos], interval=True),
        "insertion": estimate([one["insertion"] - one["random_insertion"] for one in photos], interval=True),
    }
    return Faithfulness(model, areas, gains)
