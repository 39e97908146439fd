"""Scores of a map against a mask of the object, maps to compare the scores with, and masks of the patches that hold most of a map's mass.

Maps and masks (True or 1 on the object) are `(h, w)`, on the patch grid or in pixels; NaN (not seen, dropped) is left out. Scores are float64.
Where the object is in the middle, a centre prior and random maps score well too: compare with `centre_prior` and `random_map`.
"""

from typing import Any

import torch
from torch import Tensor

from attnhook.errors import ScoreError
from attnhook.imaging.styles import mass_mask
from attnhook.options import Size


def pointing_game(patch_map: Tensor, mask: Any) -> Tensor:
    """Whether the map's highest value is on the object (Zhang et al. 2016, arXiv 1608.00507).

    If several pixels share the highest value, the share of them on the object; so a flat map scores the object's area.
    """
    values, truth = _known(patch_map, mask)
    return truth[values == values.max()].double().mean()


def energy_in_mask(patch_map: Tensor, mask: Any) -> Tensor:
    """Share of the mass of a map, not negative, on the object (the energy-based pointing game of Wang et al. 2020, arXiv 1910.01279)."""
    values, truth = _known(patch_map, mask)
    return _distribution(values)[truth].sum()


def auroc(patch_map: Tensor, mask: Any) -> Tensor:
    """Area under the ROC curve of the map, any real numbers, as a detector of the object's pixels; ties count half."""
    values, truth = _known(patch_map, mask)
    inside = int(truth.sum())
    outside = len(truth) - inside
    if not outside:
        raise ScoreError("AUROC: expected some background in the mask, got object everywhere.")
    return (ranks(values)[truth].sum() - inside * (inside + 1) / 2) / (inside * outside)


def iou_at_mass(patch_map: Tensor, mask: Any, *, keep: float = 0.6) -> Tensor:
    """Intersection over union of the object and the smallest region that holds the part `keep` of the mass of a map, not negative."""
    if not 0 < keep <= 1:
        raise ScoreError(f"region by mass: expected keep in (0, 1], got {keep}.")
    values, truth = _known(patch_map, mask)
    region = mass_mask(_distribution(values), keep).to(values.device)
    return (region & truth).sum().double() / (region | truth).sum()


def centre_prior(size: Size, *, sigma: float = 0.25) -> Tensor:
    """A Gaussian in the middle, `(h, w)` float32, summing to 1: the score of assuming that photographers centre objects."""
    axes = [
        torch.exp(-(((torch.arange(n, dtype=torch.float32, device="cpu") + 0.5) / n - 0.5) ** 2) / (2 * sigma**2))
        for n in size
    ]
    prior = axes[0][:, None] * axes[1]
    return prior / prior.sum()


def random_map(size: Size, *, seed: int = 0) -> Tensor:
    """Independent uniform numbers, `(h, w)` float32, summing to 1: the score without any knowledge of the photo."""
    values = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
    return values / values.sum()


def _known(patch_map: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
    """The known values of a map, `(n,)` float64, and whether each is on the object."""
    values = patch_map.detach().double()
    truth = torch.as_tensor(mask, device=values.device)
    if values.isinf().any():
        raise ScoreError("a map: expected finite values (or NaN where nothing is known), got infinity.")
    if truth.dtype is not torch.bool:
        if not ((truth == 0) | (truth == 1)).all():
            raise ScoreError(
                f"a mask: expected True and False (or 1 and 0), got other {truth.dtype} values. Threshold it."
            )
        truth = truth.bool()
    if values.dim() != 2 or values.shape != truth.shape:
        raise ScoreError(
            f"cannot score: expected a map and a mask of the same (h, w), got {tuple(values.shape)} and {tuple(truth.shape)}. "
            "Bring a map to its mask's pixels with heatmap(), or the mask to the patch grid."
        )
    known = ~values.isnan()
    if not known.any():
        raise ScoreError("cannot score: expected some known value in the map, got NaN everywhere.")
    if not truth[known].any():
        raise ScoreError("cannot score: expected an object in the part of the mask that the map covers, got none.")
    return values[known], truth[known]


def _distribution(values: Tensor) -> Tensor:
    total = values.sum()
    if values.min() < 0 or total <= 0:
        raise ScoreError(
            f"a map as a distribution: expected values of at least 0 with some mass, got {values.min():.3g} to {values.max():.3g}."
        )
    return values / total


def ranks(values: Tensor) -> Tensor:
    """Ranks of the values `(n,)`, from 1, as float64; ties share their mean rank."""
    _, index, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    found: Tensor = (last - (counts.double() - 1) / 2)[index]
    return found


def attention_mask(patch_map: Tensor, keep: float = 0.6) -> Tensor:
    """The fewest patches that hold a share of the mass, as in DINO's figures.

    Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, arXiv 2104.14294. Sorted by value, these are the first
    patches whose sum is at least `keep` of the total. Every map has its own mask; a map without mass has an empty one.

    Args:
        patch_map: A map `(h, w)` or several `(..., h, w)`, or one row over patches `(patches,)`; not negative, NaN counts as 0.
        keep: The share of the mass, above 0 and at most 1.

    Returns:
        Boolean, of the same shape.

    Raises:
        ValueError: If `keep` is out of range, a value is negative or infinite, or the map is a single number.

    Example:
        >>> attention_mask(torch.tensor([0.5, 0.1, 0.3, 0.1]), keep=0.7)
        tensor([ True, False,  True, False])
    """
    if patch_map.dim() == 0:
        raise ValueError(
            "cannot make a mask of a single number: expected a map (..., h, w) or a row (patches,), got a scalar. Pass the whole map."
        )
    singles = patch_map.reshape(-1, *patch_map.shape[-2:]) if patch_map.dim() > 2 else patch_map[None]
    masks = [mass_mask(one, keep) for one in singles]
    return torch.stack(masks).reshape(patch_map.shape).to(patch_map.device) if masks else patch_map.bool()
