"""Which entries of a matrix are its lowest, without the matrix: the rank of an entry is found by counting, in two passes over chunks.

Non-negative float32 numbers are in the order of their bits, so the upper half of the bits of the wanted entry comes from one histogram, the
lower half from a second one over the entries that share the upper half.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.capture.softmax_matrix import SoftmaxMatrix

_HALF = 16


@dataclass(frozen=True, eq=False)
class Discard:
    """vit-explain's convention: the lowest fraction of a flattened fused matrix becomes 0, the class token's attention to itself never.

    Attributes:
        fraction: Which fraction, 0 to below 1.
        layout: What the tokens are.
    """

    fraction: float
    layout: TokenLayout

    def threshold(self, matrix: SoftmaxMatrix, fusion: str) -> Tensor | None:
        """The lowest entry that stays, a scalar; None if all stay."""
        _, _, queries, keys = matrix.shape
        count = int(self.fraction * queries * keys)
        if not count:
            return None
        return ranked_entry(lambda: (fused for _, fused in matrix.fused_chunks(fusion)), count)

    def apply(self, fused: Tensor, queries: slice, threshold: Tensor) -> None:
        """Discard in place.

        Args:
            fused: Rows `(rows, keys)`.
        """
        token = None if self.layout.cls is None else self.layout.class_token()
        own = None
        if token is not None and queries.start <= token < queries.stop:
            own = fused[token - queries.start, token].clone()
        fused.masked_fill_(fused.float() < threshold, 0.0)  # ranked in float32
        if own is not None and token is not None:
            fused[token - queries.start, token] = own


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
    """In which of 2 ** 16 buckets the entry of this rank is, and how many entries are in those before."""
    counts: Tensor | None = None
    for part in numbers:
        counted = torch.bincount(part, minlength=2**_HALF)
        counts = counted if counts is None else counts.add_(counted)
    if counts is None:
        raise ValueError("no entry has a rank: expected at least one chunk, got none.")
    upto = counts.cumsum(0)
    bucket = int(torch.searchsorted(upto, rank, right=True))
    return bucket, int(upto[bucket] - counts[bucket])
