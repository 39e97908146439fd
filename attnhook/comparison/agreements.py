"""How similar the maps of several models are, against two baselines: shuffled maps, and maps of another photo."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from attnhook.attribution.scores import ranks
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.sampling_grids import SamplingGrid, between_centres, common_box
from attnhook.comparison.tables import Estimate, estimate
from attnhook.errors import ScoreError
from attnhook.imaging.patch_maps import PatchMap

METRICS = ("spearman", "jensen_shannon", "cosine")
_BOX_POINTS = (48, 48)

Scores = dict[tuple[int, int], dict[str, float]]
"""By the indices of two models, then by metric."""


@dataclass(frozen=True, eq=False)
class PhotoAgreement:
    """One photo, all models that have a map of it."""

    models: tuple[int, ...]
    values: Scores
    shuffled: Scores  # with the points of one of the two maps in a random order
    standardised: dict[str, Tensor]  # to compare with other photos, by metric: (models, points of the shared box)
    without: tuple[int, ...] = ()  # models that are left out: their map has nothing in it where all models looked
    content: str = ""  # a digest of the photo: a copy of it does not count as another photo


@dataclass(frozen=True)
class PairAgreement:
    """Two models, by index, over all photos. Estimates are by metric."""

    first: int
    second: int
    values: dict[str, Estimate]  # with bootstrap intervals over photos
    shuffled: dict[str, Estimate]  # with the points of one map shuffled
    other_photo: dict[str, Estimate] = field(default_factory=dict)  # with the second model's map of another photo


def photo_agreement(
    sampling: SamplingGrid,
    seen: Tensor,
    measurements: dict[int, Measurement],
    maps: dict[int, PatchMap],
    *,
    content: str = "",
    shuffles: int = 3,
    seed: int = 0,
) -> PhotoAgreement | None:
    """Compare all models' maps of one photo at the points that all models saw, `seen` `(rows, columns)` bool."""
    drawn = {m: sampling.sample(measurements[m], values)[seen].double() for m, values in maps.items()}
    without = tuple(m for m, values in drawn.items() if len(values) and not values.nansum())
    models = tuple(m for m in maps if m not in without)
    points = torch.stack([drawn[m] for m in models]) if models else torch.empty(0, 0, device="cpu")
    points = points[:, ~points.isnan().any(dim=0)]
    if not points.numel():
        return PhotoAgreement((), {}, {}, {}, without) if without else None
    maps_here = _standardised(points)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(points.shape[1], generator=generator, device="cpu") for _ in range(shuffles)]
    shuffled = [_compared(maps_here, {name: rows[:, order] for name, rows in maps_here.items()}) for order in orders]
    mean = {name: torch.stack([one[name] for one in shuffled]).mean(dim=0) for name in METRICS}
    box = SamplingGrid(_BOX_POINTS, between_centres(common_box(seen, sampling), sampling))
    boxed = torch.stack([box.sample(measurements[m], maps[m]).flatten() for m in models]).double()
    return PhotoAgreement(
        models,
        _by_pair(_compared(maps_here, maps_here), models, models),
        _by_pair({name: (table + table.mT) / 2 for name, table in mean.items()}, models, models),
        _standardised(torch.nan_to_num(boxed)),
        without,
        content,
    )


def pair_agreements(photos: "Sequence[PhotoAgreement | None]", models: int) -> tuple[PairAgreement, ...]:
    """Average over photos."""
    known = [photo for photo in photos if photo is not None and photo.models]
    values, shuffled = [photo.values for photo in known], [photo.shuffled for photo in known]
    crossed = [
        _by_pair(_compared(photo.standardised, other.standardised), photo.models, other.models)
        for number, photo in enumerate(known)
        if (other := _next(known, number)) is not None
    ]
    return tuple(
        PairAgreement(*pair, _means(values, pair, interval=True), _means(shuffled, pair), _means(crossed, pair))
        for pair in combinations(range(models), 2)
        if any(pair in one for one in values)
    )


def _means(photos: Sequence[Scores], pair: tuple[int, int], *, interval: bool = False) -> dict[str, Estimate]:
    known = [one[pair] for one in photos if pair in one]
    return {name: estimate([one[name] for one in known], interval=interval) for name in METRICS} if known else {}


def _next(known: list[PhotoAgreement], number: int) -> PhotoAgreement | None:
    """The next photo that is not a copy of this one."""
    others = [*known[number + 1 :], *known[:number]]
    return next((one for one in others if not one.content or one.content != known[number].content), None)


def _by_pair(compared: dict[str, Tensor], first: Sequence[int], second: Sequence[int]) -> Scores:
    plain = {name: table.tolist() for name, table in compared.items()}
    return {
        (one, other): {name: table[a][b] for name, table in plain.items()}
        for a, one in enumerate(first)
        for b, other in enumerate(second)
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
    """Every row with every row, `(rows, rows)` by metric; the Jensen-Shannon divergence is in nats."""
    a, b = first["jensen_shannon"], second["jensen_shannon"]
    entropies = [torch.special.entr(rows).sum(dim=1) for rows in (a, b)]
    middle = torch.stack([torch.special.entr((row + b) / 2).sum(dim=1) for row in a])
    divergence = (middle - (entropies[0][:, None] + entropies[1]) / 2).clamp_min_(0.0)
    products = {name: first[name] @ second[name].mT for name in ("spearman", "cosine")}
    return products | {"jensen_shannon": divergence}
