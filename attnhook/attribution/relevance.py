"""Products with a block's relevance, the positive part of A * dA (elementwise), a chunk at a time: no queries-by-keys array is ever stored.

A is not negative, so the relevance is A times the positive part of dA.
"""

import torch
from torch import Tensor

from attnhook.capture.attention_gradient import AttentionGradient
from attnhook.capture.operands import exact_arithmetic
from attnhook.capture.records import BlockAttention
from attnhook.capture.softmax_matrix import BUDGET_BYTES
from attnhook.errors import GradientsNotKeptError


def relevance_rows(block: BlockAttention, queries: slice) -> Tensor:
    """Rows of the relevance, `(batch, heads, rows, keys)` float64."""
    return block.matrix.rows(queries).double() * _gradient(block).rows(queries).double().clamp_min_(0)


def left_multiply_relevance(block: BlockAttention, row: Tensor) -> Tensor:
    """A row `(batch, queries)` times the mean of the relevance over heads: `(batch, keys)` float64."""
    matrix, gradient = block.matrix, _gradient(block)
    batch, heads, _, keys = matrix.shape
    total = torch.zeros(batch, keys, dtype=torch.float64, device=row.device)
    buffer = torch.empty(0, dtype=gradient.dtype, device=gradient.device)
    with exact_arithmetic(matrix.device.type):
        for head in range(heads):
            for chunk, attention in matrix.head(head).fused_chunks():  # chunks that stay in a cache
                if buffer.numel() < attention.numel():  # once: the first chunk is the largest
                    buffer = buffer.new_empty(attention.numel())
                slopes = gradient.head_rows(chunk.image, head, chunk.queries, buffer).clamp_min_(0)
                relevance = attention.mul_(slopes)
                weights = row[chunk.image, chunk.queries].to(relevance.dtype)
                total[chunk.image] += torch.mv(relevance.T, weights)
    return total / heads


def mean_positive_gradient(block: BlockAttention) -> Tensor:
    """Mean over heads and queries of the positive part of dA: `(batch, keys)` float64."""
    gradient = _gradient(block)
    batch, heads, queries, keys = gradient.shape
    total = torch.zeros(batch, keys, dtype=torch.float64, device=gradient.device)
    step = max(1, min(queries, BUDGET_BYTES // (2 * gradient.dtype.itemsize * keys)))
    buffer = torch.empty(step * keys, dtype=gradient.dtype, device=gradient.device)
    with exact_arithmetic(gradient.device.type):
        for image in range(batch):
            for head in range(heads):
                for first in range(0, queries, step):
                    chunk = slice(first, min(first + step, queries))
                    slopes = gradient.head_rows(image, head, chunk, buffer)
                    total[image] += slopes.clamp_min_(0).sum(dim=0, dtype=torch.float64)
    return total / (heads * queries)


def _gradient(block: BlockAttention) -> AttentionGradient:
    gradient = block.gradient
    if gradient.shape != block.shape:
        raise GradientsNotKeptError(
            f"the gradient of block {block.name!r} does not fit its matrix: expected shape {block.shape}, got {gradient.shape}. Capture the "
            "block in one forward of its own."
        )
    return gradient
