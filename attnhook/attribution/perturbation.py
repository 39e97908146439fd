"""Deletion and insertion: how a model's score falls as the highest patches are removed, and rises as they are inserted.

Petsiuk et al., RISE: Randomized Input Sampling for Explanation of Black-box Models, 2018, arXiv 1806.07421. Scores depend on the baseline that
replaces pixels, and images without patches are unusual: compare with `random_map` and `centre_prior` under the same baseline.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.errors import ScoreError

Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class PerturbationCurve:
    """A model's score against the fraction of patches that are removed (deletion) or shown (insertion)."""

    parts: Tensor  # the fractions, `(steps + 1,)` float64, from 0 to 1
    scores: Tensor  # `(batch, steps + 1)` float64

    @property
    def area(self) -> Tensor:
        """Area under the curve, `(batch,)` float64: low is good for deletion, high for insertion."""
        return torch.trapezoid(self.scores, self.parts)


def deletion(
    score: Score, pixels: Tensor, patch_map: Tensor, *, baseline: Tensor | float = 0.0, steps: int = 20
) -> PerturbationCurve:
    """Replace the patches by the baseline, highest first, in `steps` steps; those that are NaN in the map `(batch, h, w)` go last.

    `score` maps pixels `(batch, channels, height, width)` to one number per image `(batch,)`, such as the probability of a class.
    """
    return _curve(score, pixels, patch_map, baseline, steps, insert=False)


def insertion(
    score: Score, pixels: Tensor, patch_map: Tensor, *, baseline: Tensor | float = 0.0, steps: int = 20
) -> PerturbationCurve:
    """Start from the baseline and show the patches, highest first, in `steps` steps."""
    return _curve(score, pixels, patch_map, baseline, steps, insert=True)


def _curve(
    score: Score, pixels: Tensor, patch_map: Tensor, baseline: Tensor | float, steps: int, *, insert: bool
) -> PerturbationCurve:
    if pixels.dim() != 4 or patch_map.dim() != 3 or patch_map.shape[0] != pixels.shape[0]:
        raise ScoreError(
            "cannot perturb: expected pixels (batch, channels, height, width) and a map (batch, h, w) of the same batch, got "
            f"{tuple(pixels.shape)} and {tuple(patch_map.shape)}. Pass one map per image."
        )
    batch, height, width = patch_map.shape
    patches = height * width
    if not 1 <= steps <= patches:
        raise ScoreError(f"cannot perturb: expected 1 to {patches} steps, at most one per patch, got steps={steps}.")
    values = torch.nan_to_num(patch_map.detach().double(), nan=-math.inf).flatten(1)
    rank = values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    rank = rank[:, _patch_of_pixels(pixels, height, width)].unsqueeze(1).to(pixels.device)
    other = torch.as_tensor(baseline, dtype=pixels.dtype, device=pixels.device).expand_as(pixels)
    counts = [round(patches * step / steps) for step in range(steps + 1)]
    scores = []
    with torch.no_grad():
        for count in counts:
            shown = (rank < count) if insert else (rank >= count)
            value = score(torch.where(shown, pixels, other))
            if value.shape != (batch,):
                raise ScoreError(
                    f"bad score: expected one number per image, shape ({batch},), got {tuple(value.shape)}. Take one class's output."
                )
            scores.append(value.double())
    parts = torch.tensor(counts, dtype=torch.float64, device=pixels.device) / patches
    return PerturbationCurve(parts, torch.stack(scores, dim=1))


def _patch_of_pixels(pixels: Tensor, height: int, width: int) -> Tensor:
    """The patch that each pixel belongs to: `(height, width)` int64."""
    rows, columns = (
        torch.arange(size, device="cpu") * patches // size
        for size, patches in zip(pixels.shape[-2:], (height, width), strict=True)
    )
    return rows[:, None] * width + columns
