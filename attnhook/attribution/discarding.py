"""The lowest entries of a matrix that is never stored: the rank of an entry is found by counting, in two passes over chunks.

Non-negative float32 numbers sort like their bits. So the upper half of the bits of the wanted entry comes from one histogram, and the lower half
from a second one, over the entries that share the upper half.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor

_HALF = 16


def discard_below(threshold: Tensor, rows: Tensor, queries: slice, token: int | None) -> None:
    """Set entries below the threshold to 0 in place, except the attention of `token` to itself.

    Args:
        rows: `(rows, keys)`, those of `queries`.
    """
    discarded = rows.float() < threshold  # ranked in float32
    if token is not None and queries.start <= token < queries.stop:
        discarded[token - queries.start, token] = False
    rows.masked_fill_(discarded, 0.0)


def ranked_entry(chunks: Callable[[], Iterator[Tensor]], rank: int) -> Tensor:
    """The entry that has `rank` entries before it in ascending order.

    Example:
        >>> ranked_entry(lambda: iter([torch.tensor([0.5, 0.1]), torch.tensor([0.3])]), 1)
        tensor(0.3000)
    """
    upper, before = _bucket(((_bits(chunk) >> _HALF).flatten() for chunk in chunks()), rank)
    lower, _ = _bucket((_lower_half(_bits(chunk), upper) for chunk in chunks()), rank - before)
    return torch.tensor((upper << _HALF) | lower, dtype=torch.int32, device="cpu").view(torch.float32)


def _bits(chunk: Tensor) -> Tensor:
    return chunk.float().view(torch.int32)


def _lower_half(bits: Tensor, upper: int) -> Tensor:
    return bits.masked_select(bits >> _HALF == upper).bitwise_and_(2**_HALF - 1)


def _bucket(numbers: Iterator[Tensor], rank: int) -> tuple[int, int]:
    """The bucket, out of 2 ** 16, of the entry of this rank, and the number of entries in the buckets before it."""
    counts: Tensor = reduce(torch.add, (torch.bincount(part, minlength=2**_HALF) for part in numbers))
    up_to = counts.cumsum(0)
    bucket = int(torch.searchsorted(up_to, rank, right=True))
    return bucket, int(up_to[bucket] - counts[bucket])
