"""Means over photos with how far they can be trusted."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_DRAWS = 2000
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A mean over photos.

    Attributes:
        value: The mean; None where there is nothing to average.
        n: How many photos.
        error: Standard error of the mean; None below two photos.
        low: Lower end of the 95 % bootstrap interval over photos; None where it was not asked for, or below two photos.
        high: Its upper end.
    """

    value: float | None
    n: int
    error: float | None = None
    low: float | None = None
    high: float | None = None

    def plain(self) -> dict[str, Any]:
        """As numbers by name, those that are known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def estimate(values: "Tensor | list[float]", *, interval: bool = False, seed: int = 0) -> Estimate:
    """Average over photos.

    Example:
        >>> estimate([1.0, 3.0])
        Estimate(value=2.0, n=2, error=1.0, low=None, high=None)
    """
    known = torch.as_tensor(values, dtype=torch.float64)
    known = known[~known.isnan()]
    count = len(known)
    if not count:
        return Estimate(None, 0)
    mean = float(known.mean())
    if count < 2:
        return Estimate(mean, count)
    error = float(known.std() / math.sqrt(count))
    if not interval:
        return Estimate(mean, count, error)
    drawn = torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(seed))
    low, high = torch.quantile(known[drawn].mean(dim=1), torch.tensor(_INTERVAL, dtype=torch.float64)).tolist()
    return Estimate(mean, count, error, low, high)
