"""Scores of maps: against a mask of what is there, and against each other.

Maps and masks are `(..., h, w)`, on the patch grid or in pixels; leading dimensions broadcast. NaN (pixels that the model did not see, patches
that it dropped) is left out of everything. All results are float64. A score by itself says little: a centre prior and random maps score
well on photos with the object in the middle, so put `centre_prior` and `random_map` beside every number.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution.row_measures import row_divergence
from attnhook.errors import ScoreError
from attnhook.imaging.styles import mass_mask
from attnhook.options import Size

# --- a map against a mask -----------------------------------------------------------------------------------------------------------------


def pointing_game(patch_map: Tensor, mask: Any, *, tolerance: float = 0.0) -> Tensor:
    """Whether the map's highest value lies on the object (Zhang et al. 2016, arXiv 1608.00507).

    Where several pixels share the highest value: the part of them that hits, so a flat map scores the object's area.

    Args:
        patch_map: `(..., h, w)`.
        mask: Boolean (or 0 and 1), True on the object, `(..., h, w)`.

    Example:
        >>> pointing_game(torch.tensor([[0.1, 0.7], [0.1, 0.1]]), torch.tensor([[False, True], [False, False]]))
        tensor(1., dtype=torch.float64)
    """
    values, truth = _pair(patch_map, mask)
    if tolerance > 0:
        truth = _dilated(truth, tolerance)
    return _each(values, truth, lambda v, m: m[v == v.max()].double().mean())


def energy_in_mask(patch_map: Tensor, mask: Any) -> Tensor:
    """Part of the map's mass on the object (the energy-based pointing game of Wang et al. 2020, arXiv 1910.01279).

    Args:
        patch_map: `(..., h, w)`, not negative.
        mask: Boolean, True on the object, `(..., h, w)`.
    """
    values, truth = _pair(patch_map, mask)
    return _each(values, truth, lambda v, m: _distribution(v)[m].sum())


def auroc(patch_map: Tensor, mask: Any) -> Tensor:
    """Area under the ROC curve of the map as a detector of the object's pixels; ties count half.

    Args:
        patch_map: `(..., h, w)`, any real numbers.
        mask: Boolean, True on the object, `(..., h, w)`.
    """

    def of_one(values: Tensor, truth: Tensor) -> Tensor:
        inside = int(truth.sum())
        outside = len(truth) - inside
        if not outside:
            raise ScoreError("AUROC: expected some background in the mask, got object everywhere.")
        return (ranks(values)[truth].sum() - inside * (inside + 1) / 2) / (inside * outside)

    return _each(*_pair(patch_map, mask), of_one)


def iou_at_mass(patch_map: Tensor, mask: Any, *, keep: float = 0.6) -> Tensor:
    """Intersection over union of the object and the smallest region that holds `keep` of the map's mass.

    Args:
        patch_map: `(..., h, w)`, not negative.
        mask: Boolean, True on the object, `(..., h, w)`.
    """

    def of_one(values: Tensor, truth: Tensor) -> Tensor:
        region = smallest_region(values, keep)
        return (region & truth).sum().double() / (region | truth).sum()

    return _each(*_pair(patch_map, mask), of_one)


def smallest_region(values: Tensor, keep: float) -> Tensor:
    """The fewest entries that hold `keep` of the mass, as `mass_mask` chooses them."""
    if not 0 < keep <= 1:
        raise ScoreError(f"region by mass: expected keep in (0, 1], got {keep}.")
    return mass_mask(_distribution(values), keep).to(values.device)


# --- two maps -----------------------------------------------------------------------------------------------------------------------------


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Rank correlation of two maps, ties at their mean rank.

    Args:
        first: `(..., h, w)`.
        second: `(..., h, w)`.
    """

    def of_one(a: Tensor, b: Tensor) -> Tensor:
        a, b = ranks(a), ranks(b)
        return _cosine(a - a.mean(), b - b.mean())

    return _each(*_two_maps(first, second), of_one)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two maps as distributions, in nats: 0 where equal, log 2 where they nowhere overlap.

    Args:
        first: `(..., h, w)`, not negative.
        second: `(..., h, w)`, not negative.
    """

    def of_one(a: Tensor, b: Tensor) -> Tensor:
        return row_divergence(_distribution(a), _distribution(b))

    return _each(*_two_maps(first, second), of_one)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of two maps as vectors.

    Args:
        first: `(..., h, w)`.
        second: `(..., h, w)`.
    """
    return _each(*_two_maps(first, second), _cosine)


@dataclass(frozen=True, eq=False)
class Agreement:
    """How alike two maps are, and how alike the first is to the second with its cells shuffled; `(...)` float64 each.

    Attributes:
        spearman: Rank correlation.
        jensen_shannon: Divergence in nats; smaller is more alike.
        cosine: Cosine.
        shuffled_spearman: Mean over shuffles.
        shuffled_jensen_shannon: Mean over shuffles.
        shuffled_cosine: Mean over shuffles: maps without negative values are alike in cosine however they are shuffled.
    """

    spearman: Tensor
    jensen_shannon: Tensor
    cosine: Tensor
    shuffled_spearman: Tensor
    shuffled_jensen_shannon: Tensor
    shuffled_cosine: Tensor


def agreement(first: Tensor, second: Tensor, *, shuffles: int = 20, seed: int = 0) -> Agreement:
    """Compare two maps of the same grid, beside a baseline that has the same values in no place.

    Args:
        first: `(..., h, w)`, not negative.
        second: `(..., h, w)`, not negative.

    Example:
        >>> found = agreement(random_map((14, 14), seed=1), random_map((14, 14), seed=2))
        >>> abs(float(found.spearman)) < 0.25
        True
    """
    if shuffles < 1:
        raise ScoreError(f"agreement: expected at least one shuffle, got {shuffles}.")
    a, b = _two_maps(first, second)
    generator = torch.Generator().manual_seed(seed)
    measures = (spearman, jensen_shannon, cosine)
    shuffled = [_shuffled(b, generator) for _ in range(shuffles)]
    baseline = [torch.stack([measure(a, c) for c in shuffled]).mean(dim=0) for measure in measures]
    return Agreement(*(measure(a, b) for measure in measures), *baseline)


# --- controls -----------------------------------------------------------------------------------------------------------------------------


def centre_prior(size: Size, *, sigma: float = 0.25) -> Tensor:
    """A Gaussian in the middle: what a photographer's habit alone scores.

    Returns:
        `(h, w)` float32, summing to 1.
    """
    axes = [torch.exp(-(((torch.arange(n, device="cpu") + 0.5) / n - 0.5) ** 2) / (2 * sigma**2)) for n in size]
    prior = axes[0][:, None] * axes[1]
    return prior / prior.sum()


def random_map(size: Size, *, seed: int = 0, batch: int | None = None) -> Tensor:
    """Independent uniform numbers: what no knowledge scores.

    Returns:
        `(h, w)` or `(batch, h, w)` float32, each summing to 1.
    """
    shape = size if batch is None else (batch, *size)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return values / values.sum(dim=(-2, -1), keepdim=True)


# --- inside -------------------------------------------------------------------------------------------------------------------------------


def _pair(patch_map: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
    values = _as_map(patch_map)
    truth = torch.as_tensor(mask, device=values.device)
    if truth.dtype is not torch.bool:
        if not ((truth == 0) | (truth == 1)).all():
            raise ScoreError(
                f"a mask: expected True and False (or 1 and 0), got other {truth.dtype} values. Threshold it."
            )
        truth = truth.bool()
    return _broadcast(values, truth)


def _two_maps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _broadcast(_as_map(first), _as_map(second))
    missing = a.isnan() | b.isnan()
    return a.masked_fill(missing, math.nan), b.masked_fill(missing, math.nan)


def _as_map(values: Any) -> Tensor:
    tensor = (values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")).detach().double()
    if tensor.isinf().any():
        raise ScoreError("a map: expected finite values (or NaN where nothing is known), got infinity.")
    return tensor


def _broadcast(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.dim() < 2 or first.shape[-2:] != second.shape[-2:]:
        raise ScoreError(
            f"cannot score: expected two of the same (..., h, w), got {tuple(first.shape)} and {tuple(second.shape)}. "
            "Bring a map to its mask's pixels with heatmap(), or the mask to the patch grid."
        )
    try:
        a, b = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ScoreError(
            f"cannot score: the leading dimensions of {tuple(first.shape)} and {tuple(second.shape)} do not go together."
        ) from None
    return a, b


def _each(first: Tensor, second: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply `measure` to the known cells of every pair."""
    shape = first.shape[:-2]
    scores = []
    for values, others in zip(
        first.reshape(-1, first.shape[-2:].numel()), second.reshape(-1, first.shape[-2:].numel()), strict=True
    ):
        known = ~values.isnan()
        if not known.any():
            raise ScoreError("cannot score: expected some known value in the map, got NaN everywhere.")
        a, b = values[known], others[known]
        if b.dtype is torch.bool and not b.any():
            raise ScoreError("cannot score: expected an object in the part of the mask that the map covers, got none.")
        scores.append(measure(a, b))
    return torch.stack(scores).reshape(shape)


def _distribution(values: Tensor) -> Tensor:
    values = values.double()
    total = values.sum()
    if values.min() < 0 or total <= 0:
        raise ScoreError(
            f"a map as a distribution: expected values of at least 0 with some mass, got {values.min():.3g} to {values.max():.3g}."
        )
    share: Tensor = values / total
    return share


def ranks(values: Tensor) -> Tensor:
    """Ranks of the values of one dimension, from 1, ties at their mean.

    Args:
        values: `(n,)`.

    Returns:
        `(n,)` float64.
    """
    _, index, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    found: Tensor = (last - (counts.double() - 1) / 2)[index]
    return found


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = a @ b
    return torch.div(product, a.norm() * b.norm())  # 0 / 0 is NaN


def _dilated(truth: Tensor, radius: float) -> Tensor:
    """Every cell within `radius` of the object's."""
    reach = int(radius)
    offsets = torch.arange(-reach, reach + 1, device=truth.device, dtype=torch.float64)
    disc = ((offsets[:, None] ** 2 + offsets**2) <= radius**2).float()
    flat = truth.reshape(-1, 1, *truth.shape[-2:]).float()
    return (torch.nn.functional.conv2d(flat, disc[None, None], padding=reach) > 0.5).reshape(truth.shape)


def _shuffled(maps: Tensor, generator: torch.Generator) -> Tensor:
    """The known cells of every map in a random order."""
    flat = maps.reshape(-1, maps.shape[-2:].numel()).clone()
    for row in flat:
        known = (~row.isnan()).nonzero()[:, 0]
        row[known] = row[known[torch.randperm(len(known), generator=generator, device=generator.device).to(row.device)]]
    return flat.reshape(maps.shape)
