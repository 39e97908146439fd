"""How alike the maps of several models are, beside maps with their points shuffled and maps of another photo."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnhook.attribution.scores import ranks
from attnhook.comparison.estimates import Estimate, estimate
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.sampling_grids import Lattice, between_centres, common_box
from attnhook.errors import ScoreError
from attnhook.imaging.patch_maps import PatchMap

METRICS = ("spearman", "jensen_shannon", "cosine")
_BOX_POINTS = (48, 48)


@dataclass(frozen=True, eq=False)
class PhotoAgreement:
    """One photo, all models.

    Attributes:
        models: Indices of the models that have a map of it.
        values: By metric: `(models, models)` float64, of the maps.
        shuffled: The same, of each map and the others with their points in a random order.
        without: Indices of the models whose map has nothing in it where all models looked: they are left out.
        content: What the photo is, so that a copy of it is no other photo.
        standardised: By metric: what another photo's maps are compared with, `(models, points of the shared box)`.
    """

    models: tuple[int, ...]
    values: dict[str, Tensor]
    shuffled: dict[str, Tensor]
    standardised: dict[str, Tensor]
    without: tuple[int, ...] = ()
    content: str = ""


@dataclass(frozen=True)
class PairAgreement:
    """Two models over all photos.

    Attributes:
        first: Index of a model.
        second: Index of another.
        values: By metric, with bootstrap intervals over photos.
        shuffled: By metric: with the second map's points shuffled.
        other_photo: By metric: with the second model's map of another photo, over the shared part of each.
    """

    first: int
    second: int
    values: dict[str, Estimate]
    shuffled: dict[str, Estimate]
    other_photo: dict[str, Estimate] = field(default_factory=dict)


def photo_agreement(
    lattice: Lattice,
    seen: Tensor,
    measurements: dict[int, Measurement],
    maps: dict[int, PatchMap],
    *,
    shuffles: int = 3,
    seed: int = 0,
) -> PhotoAgreement | None:
    """Compare all models' maps of one photo.

    Args:
        seen: Those that all models saw, `(rows, columns)` bool.
    """
    drawn = {m: lattice.sample(measurements[m], values)[seen].double() for m, values in maps.items()}
    without = tuple(m for m, values in drawn.items() if len(values) and not values.nansum())
    models = tuple(m for m in maps if m not in without)
    points = torch.stack([drawn[m] for m in models]) if models else torch.empty(0, 0)
    points = points[:, ~points.isnan().any(dim=0)]
    if not points.numel() and not without:
        return None
    if not points.numel():
        nothing = {name: torch.empty(0, 0, dtype=torch.float64) for name in METRICS}
        return PhotoAgreement((), nothing, nothing, nothing, without)
    first = _standardised(points)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(points.shape[1], generator=generator) for _ in range(shuffles)]
    shuffled = [_compared(first, {name: rows[:, order] for name, rows in first.items()}) for order in orders]
    box = Lattice(_BOX_POINTS, between_centres(common_box(seen, lattice), lattice))
    boxed = torch.stack([box.sample(measurements[m], maps[m]).flatten() for m in models]).double()
    return PhotoAgreement(
        models,
        _compared(first, first),
        {name: torch.stack([one[name] for one in shuffled]).mean(dim=0) for name in METRICS},
        _standardised(torch.nan_to_num(boxed)),
        without,
    )


def pair_agreements(photos: "Sequence[PhotoAgreement | None]", models: int) -> tuple[PairAgreement, ...]:
    """Average over photos."""
    known = [photo for photo in photos if photo is not None]
    others = [_other(photo, other) for n, photo in enumerate(known) if (other := _next(known, n)) is not None]
    found = []
    for first in range(models):
        for second in range(first + 1, models):
            places = [
                (p.models.index(first), p.models.index(second), p) for p in known if {first, second} <= set(p.models)
            ]
            if not places:
                continue
            crossed = [one[first, second] for one in others if (first, second) in one]
            found.append(
                PairAgreement(
                    first,
                    second,
                    {m: estimate([float(p.values[m][a, b]) for a, b, p in places], interval=True) for m in METRICS},
                    {
                        m: estimate([float((p.shuffled[m][a, b] + p.shuffled[m][b, a]) / 2) for a, b, p in places])
                        for m in METRICS
                    },
                    {m: estimate([one[m] for one in crossed]) for m in METRICS} if crossed else {},
                )
            )
    return tuple(found)


def _next(known: list[PhotoAgreement], number: int) -> PhotoAgreement | None:
    """The next photo that is no copy of this one."""
    others = [*known[number + 1 :], *known[:number]]
    return next((one for one in others if not one.content or one.content != known[number].content), None)


def _other(photo: PhotoAgreement, next_one: PhotoAgreement) -> dict[tuple[int, int], dict[str, float]]:
    """Each model's map of this photo with each model's map of another one."""
    compared = _compared(photo.standardised, next_one.standardised)
    return {
        (first, second): {name: float(compared[name][a, b]) for name in METRICS}
        for a, first in enumerate(photo.models)
        for b, second in enumerate(next_one.models)
    }


def _standardised(points: Tensor) -> dict[str, Tensor]:
    """What each metric is a product (or a divergence) of, `(models, points)` float64 each."""
    mass = points.sum(dim=1, keepdim=True)
    if points.min() < 0 or (mass <= 0).any():
        raise ScoreError(
            f"cannot compare maps: expected values of at least 0 with some mass where all models looked, got {float(points.min()):.3g} to "
            f"{float(points.max()):.3g}."
        )
    ranked = torch.stack([ranks(row) for row in points])
    ranked = ranked - ranked.mean(dim=1, keepdim=True)
    return {
        "spearman": ranked / ranked.norm(dim=1, keepdim=True),  # 0 / 0 of a flat map is NaN, as its correlation is
        "jensen_shannon": points / mass,
        "cosine": points / points.norm(dim=1, keepdim=True),
    }


def _compared(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    products = {name: first[name] @ second[name].mT for name in ("spearman", "cosine")}
    return products | {"jensen_shannon": _divergence(first["jensen_shannon"], second["jensen_shannon"])}


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of every row with every row, in nats."""
    entropies = [torch.special.entr(rows).sum(dim=1) for rows in (first, second)]
    middle = torch.stack([torch.special.entr((row + second) / 2).sum(dim=1) for row in first])
    apart: Tensor = middle - (entropies[0][:, None] + entropies[1]) / 2
    return apart.clamp_min_(0.0)
