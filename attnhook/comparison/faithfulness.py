"""What happens to a model's own score as the highest patches of its map are taken away or shown first, beside random maps.

Deletion and insertion of Petsiuk et al. 2018 (arXiv 1806.07421) on softmax probabilities of one class. They measure how a model reacts to images
that it never saw the like of; only the distance from the random map says something.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.attribution.perturbation import deletion, insertion
from attnhook.attribution.scores import random_map
from attnhook.comparison.estimates import Estimate, estimate
from attnhook.imaging.input_batches import with_pixels
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.imaging.patch_maps import PatchMap
from attnhook.running.targets import TargetOption, class_index, class_scores
from attnhook.running.vision_forward import run_vision
from attnhook.zoo.vision_models import VisionModel

CURVES = ("deletion", "random_deletion", "insertion", "random_insertion")


@dataclass(frozen=True)
class Faithfulness:
    """One model over all photos.

    Attributes:
        model: Index of the model.
        areas: By one of `CURVES`: the area under the curve, with its standard error.
        gains: Deletion's and insertion's distance from the random map's, photo by photo: positive is better than random.
    """

    model: int
    areas: dict[str, Estimate]
    gains: dict[str, Estimate]


def perturb(
    vision: VisionModel,
    inputs: ModelInputs,
    patch_map: PatchMap,
    target: TargetOption,
    *,
    steps: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Areas under the curves of one photo.

    Args:
        inputs: What the model is fed, pixels `(1, 3, height, width)`; what is taken away becomes 0, mid-grey for most models.
    """
    with torch.no_grad():
        scores = class_scores(vision.model, run_vision(vision.model, inputs))
    index = int(scores[0].argmax()) if target is None else class_index(target, vision.labels, scores.shape[1])

    pixels = inputs.pixels
    height, width = patch_map.area or pixels.shape[-2:]
    covered = pixels[..., :height, :width]
    rows, columns = covered.shape[-2:]
    # Where the patch embedding pads, the last patches reach beyond the pixels.
    covered = torch.nn.functional.pad(covered, (0, width - columns, 0, height - rows))

    def score(changed: Tensor) -> Tensor:
        whole = pixels.clone()
        whole[..., :rows, :columns] = changed[..., :rows, :columns]
        with torch.no_grad():
            scores = class_scores(vision.model, run_vision(vision.model, with_pixels(inputs, whole)))
        return scores.float().softmax(dim=-1)[:, index].cpu()

    grid = patch_map.grid
    count = min(steps, grid[0] * grid[1])
    maps = {"": patch_map.values[None], "random_": random_map(grid, seed=seed)[None]}
    areas = {}
    for prefix, drawn in maps.items():
        areas[f"{prefix}deletion"] = float(deletion(score, covered, drawn, steps=count).area)
        areas[f"{prefix}insertion"] = float(insertion(score, covered, drawn, steps=count).area)
    return areas


def mean_faithfulness(model: int, photos: list[dict[str, float]]) -> Faithfulness:
    """Average over photos."""
    areas = {name: estimate([one[name] for one in photos]) for name in CURVES}
    gains = {
        "deletion": estimate([one["random_deletion"] - one["deletion"] for one in photos], interval=True),
        "insertion": estimate([one["insertion"] - one["random_insertion"] for one in photos], interval=True),
    }
    return Faithfulness(model, areas, gains)
