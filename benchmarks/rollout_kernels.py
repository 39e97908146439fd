"""Ways to multiply a row with one block's softmax matrix, r A summed over heads: what was tried before attnhook's own was chosen.

Each is timed against the block's fused attention. Operands are random; results are checked against float64 before anything is timed.
"""

import math
import time
from collections.abc import Callable

import torch
from overhead_cases import CheckError
from timing import Summary, interleave, ratios, summarise
from torch import Tensor
from torch.nn import functional

from attnhook.capture.operands import Operands
from attnhook.capture.softmax_matrix import SoftmaxMatrix

HEADS, WIDTH = 6, 64
TOLERANCE = 1e-5
"""Of the largest entry."""


class KernelCase:
    """Random operands of one ViT-S block, as a fused projection gives them.

    Args:
        tokens: Number of tokens.
    """

    def __init__(self, tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        projected = torch.randn(1, tokens, 3, HEADS, WIDTH, generator=generator)
        self.query, self.key, self.value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        self.row = torch.rand(tokens, generator=generator)
        self.tokens, self.scale = tokens, WIDTH**-0.5
        self.matrix = SoftmaxMatrix(Operands(self.query, self.key).detached())
        large = Operands(self.query * 8, self.key).detached()
        self.large = SoftmaxMatrix(large)

    def candidates(self) -> dict[str, Callable[[], Tensor]]:
        """By name; the first is what all are divided by, the second a part of the work that none can leave out."""
        return {
            "the block's fused attention": self.fused,
            "Q K^T alone, 128 rows": lambda: self._chunked(128, self._nothing),
            "all heads, 512 rows, softmax": self.all_heads,
            "a head, 32 rows, softmax into a second buffer": lambda: self._chunked(32, self._softmax),
            "a head, 128 rows, softmax into a second buffer": lambda: self._chunked(128, self._softmax),
            "a head, 128 rows, exp in place": lambda: self._chunked(128, lambda a, out: (a.exp_(), a.sum(-1))),
            "a head, 128 rows, exp2 in place": lambda: self._chunked(128, self._exp2, math.log2(math.e)),
            "a head, 512 rows, exp2 in place": lambda: self._chunked(512, self._exp2, math.log2(math.e)),
            "two fused passes, roles swapped, by log-sum-exp": self.swapped,
            "attnhook (exp2 in place, rows that begin cache lines)": lambda: self._own(self.matrix),
            "attnhook, largest logits too large to skip their maximum": lambda: self._own(self.large),
            "attnhook, entropy of every row": self.matrix.entropy,
        }

    def expected(self) -> Tensor:
        """The product, in float64."""
        total = torch.zeros(self.tokens, dtype=torch.float64)
        for head in range(HEADS):
            logits = self.query[0, head].double() @ self.key[0, head].double().T * self.scale
            total += self.row.double() @ logits.softmax(dim=-1)
        return total

    def fused(self) -> Tensor:
        """What the model itself runs."""
        return functional.scaled_dot_product_attention(self.query, self.key, self.value)

    def all_heads(self) -> Tensor:
        """The plain way: a chunk of every head at once, each step into new memory."""
        total = torch.zeros(self.tokens)
        for first in range(0, self.tokens, 512):
            rows = slice(first, first + 512)
            weights = (self.query[:, :, rows] @ self.key.mT * self.scale).softmax(dim=-1)
            total += (self.row[rows] @ weights)[0].sum(0)
        return total

    def swapped(self) -> Tensor:
        """A^T r as attention of keys to queries: its values are r over each row's sum, and its own row sums are multiplied back in."""
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        _, sums = kernel(self.query, self.key, self.key)
        values = (self.row * torch.exp(-sums))[..., None].expand(self.query.shape).contiguous()
        product, back = kernel(self.key, self.query, values)
        return (product[0, :, :, 0] * torch.exp(back[0])).sum(0)

    def _own(self, matrix: SoftmaxMatrix) -> Tensor:
        return matrix.fused_left_multiply(self.row[None, None])[0, 0] * HEADS

    def _chunked(self, step: int, weigh: Callable[..., tuple[Tensor, Tensor]], factor: float = 1.0) -> Tensor:
        total = torch.zeros(self.tokens)
        buffers = torch.empty(2, step, self.tokens)
        for head in range(HEADS):
            query, key = self.query[0, head] * (self.scale * factor), self.key[0, head].contiguous()
            for first in range(0, self.tokens, step):
                rows = slice(first, min(first + step, self.tokens))
                logits, second = buffers[:, : rows.stop - first]
                torch.mm(query[rows], key.T, out=logits)
                weights, sums = weigh(logits, second)
                if len(sums):
                    total.addmv_(weights.T, self.row[rows] / sums)
        return total

    @staticmethod
    def _nothing(logits: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return logits, logits[:0]

    @staticmethod
    def _softmax(logits: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(logits, dim=-1, out=second), second.new_ones(len(second))

    @staticmethod
    def _exp2(logits: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return logits.exp2_(), logits.sum(-1)


_NOT_PRODUCTS = ("the block's fused", "Q K^T", "attnhook, entropy", "attnhook, largest")


def measure_kernels(tokens: int, repeats: int, clock: Callable[[], float] = time.process_time) -> dict[str, Summary]:
    """Check and time every way.

    Args:
        tokens: Number of tokens.
        repeats: Rounds that count.
        clock: Seconds.

    Returns:
        Time by name, in units of the block's fused attention of the same round.

    Raises:
        CheckError: If one gives a wrong product.
    """
    case = KernelCase(tokens)
    candidates, expected = case.candidates(), case.expected()
    for name, run in candidates.items():
        if not name.startswith(_NOT_PRODUCTS):
            error = float((run() - expected).abs().max() / expected.max())
            if not error <= TOLERANCE:
                raise CheckError(f"{name}: off by {error:.1e}, expected at most {TOLERANCE:.0e}")
    seconds = interleave(candidates, repeats, warmup=1, clock=clock)
    base = next(iter(candidates))
    return {name: summarise(values) for name, values in ratios(seconds, dict.fromkeys(candidates, base)).items()}
