"""Products of attention and its gradient, a chunk of the matrices at a time: no array of queries by keys is ever whole.

Of each block the positive part of A * dA (elementwise; A is not negative, so it is A times the positive part of dA) and of dA itself.
"""

import torch
from torch import Tensor

from attnhook.capture.attention_gradient import AttentionGradient
from attnhook.capture.operands import exact_arithmetic
from attnhook.capture.records import BlockAttention
from attnhook.capture.softmax_matrix import BUDGET_BYTES
from attnhook.errors import GradientsNotKeptError


def relevant_rows(block: BlockAttention, queries: slice) -> Tensor:
    """A few rows of the positive part of A * dA.

    Returns:
        `(batch, heads, rows, keys)` float64.
    """
    return block.matrix.rows(queries).double() * _gradient(block).rows(queries).double().clamp_min_(0)


def through_relevance(block: BlockAttention, row: Tensor) -> Tensor:
    """A row times the mean over heads of the positive part of A * dA.

    Args:
        row: `(batch, queries)` float64.

    Returns:
        `(batch, keys)` float64.
    """
    matrix, gradient = block.matrix, _gradient(block)
    batch, heads, _, keys = matrix.shape
    total = torch.zeros(batch, keys, dtype=torch.float64, device=row.device)
    memory = _Memory()
    with exact_arithmetic(matrix.device.type):
        for head in range(heads):
            for chunk, attention in matrix.head(
                head
            ).fused_chunks():  # of one head: its rows, in chunks that stay in a cache
                buffer = memory.of(attention.numel(), gradient)
                slopes = gradient.head_rows(chunk.image, head, chunk.queries, buffer).clamp_min_(0)
                relevance = attention.mul_(slopes)
                weights = row[chunk.image, chunk.queries].to(relevance.dtype)
                total[chunk.image] += torch.mv(relevance.T, weights)
    return total / heads


def positive_gradient(block: BlockAttention) -> Tensor:
    """Mean over heads and queries of the positive part of dA.

    Returns:
        `(batch, keys)` float64.
    """
    gradient = _gradient(block)
    batch, heads, queries, keys = gradient.shape
    total = torch.zeros(batch, keys, dtype=torch.float64, device=gradient.device)
    step = max(1, BUDGET_BYTES // (2 * gradient.dtype.itemsize * keys))
    memory = _Memory()
    with exact_arithmetic(gradient.device.type):
        for image in range(batch):
            for head in range(heads):
                for first in range(0, queries, step):
                    chunk = slice(first, min(first + step, queries))
                    buffer = memory.of((chunk.stop - chunk.start) * keys, gradient)
                    slopes = gradient.head_rows(image, head, chunk, buffer)
                    total[image] += slopes.clamp_min_(0).sum(dim=0, dtype=torch.float64)
    return total / (heads * queries)


class _Memory:
    """One piece of memory for all chunks of a gradient: the first chunk is the largest."""

    def __init__(self) -> None:
        self._piece: Tensor | None = None

    def of(self, numel: int, gradient: AttentionGradient) -> Tensor:
        if self._piece is None or self._piece.numel() < numel:
            self._piece = torch.empty(numel, dtype=gradient.dtype, device=gradient.device)
        return self._piece


def _gradient(block: BlockAttention) -> AttentionGradient:
    gradient = block.gradient
    if gradient.shape != block.shape:
        raise GradientsNotKeptError(
            f"the gradient of block {block.name!r} does not fit its matrix: expected shape {block.shape}, got {gradient.shape}. Capture the "
            "block in one forward of its own."
        )
    return gradient
