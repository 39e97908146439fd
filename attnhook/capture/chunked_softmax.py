"""Parts of a softmax matrix before they are divided by their row sums, in chunks that stay in a CPU's cache, without autograd.

`2 ** (logits / log 2)` replaces `exp(logits)`, which takes three times as long on CPUs; the factor goes into the scale of Q K^T. The caller
divides something small by the sums. All chunks of one image are written into the same memory.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.capture.operands import Operands

_CACHE_LINE_BYTES = 64
_LOG2_E = math.log2(math.e)
# Between them, sums of a million such rows, and small numbers over a row's sum, are still normal float32 numbers.
_LEAST_SUM, _LARGEST_SUM = 2.0**-60, 2.0**80
_HIDDEN = -8192.0  # 2 to the power of this is 0, and 0 times this is 0, which 0 times minus infinity is not


@dataclass(frozen=True)
class Part:
    """A part of one image's matrix: some heads and some queries, both slices with `start` and `stop` set."""

    heads: slice
    queries: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Number of heads and of rows."""
        return self.heads.stop - self.heads.start, self.queries.stop - self.queries.start


def parts(heads: int, queries: slice, row_bytes: int, budget: int) -> list[Part]:
    """Cut a matrix into parts of some rows of one head, or of all rows of several heads, heads outermost; one row is the least."""
    rows = queries.stop - queries.start
    together = max(1, min(heads, budget // (row_bytes * rows)))
    return [
        Part(slice(head, min(head + together, heads)), part)
        for head in range(0, heads, together)
        for part in row_parts(queries, row_bytes, budget)
    ]


def row_parts(queries: slice, row_bytes: int, budget: int) -> list[slice]:
    """Cut rows into runs of nearly equal length whose size is at most the budget; one row is the least."""
    rows = queries.stop - queries.start
    most = max(1, min(rows, budget // row_bytes))
    step = -(-rows // -(-rows // most))
    return [slice(first, min(first + step, queries.stop)) for first in range(queries.start, queries.stop, step)]


class ComputedRows:
    """The matrix of one image, from its queries and keys: operands with a batch of one."""

    def __init__(self, call: Operands) -> None:
        _, self.heads, self.queries, self.keys = call.shape
        self.dtype = torch.float64 if call.query.dtype is torch.float64 else torch.float32
        self.device = call.query.device
        self._call = call
        scale: float = call.query.shape[-1] ** -0.5 if call.scale is None else call.scale
        self._scale = scale * _LOG2_E
        # Whether a row is shifted by its largest logit first. Most need not be, as their sums show; reading these would stall other devices.
        self._shifted = self.device.type != "cpu" or call.masked
        self._key_of: tuple[slice, Tensor] | None = None

    def exponentials(self, part: Part, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows up to a factor each, written to `rows`, and their sums `(heads, rows)` to divide by: 1 where all keys are hidden."""
        if not self._shifted:
            torch.exp2_(self._logits(part, rows, shifted=False))
            sums = rows.sum(dim=-1)
            least, largest = torch.aminmax(sums)
            if least.item() > _LEAST_SUM and largest.item() < _LARGEST_SUM:
                return rows, sums
            self._shifted = True  # likewise the rest of this image
        torch.exp2_(self._logits(part, rows, shifted=True))
        return rows, self._nonzero(rows.sum(dim=-1))

    def entropy(self, part: Part, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Entropy of rows in nats, `(heads, rows)` float64, and what `exponentials` gives; `logits` and `rows` are written.

        With l the logits minus their row's largest, e = exp(l), Z their sum: `H = log Z - sum_j e_j l_j / Z`, both terms small where H is.
        """
        self._logits(part, logits, shifted=True)
        if self._call.masked:
            logits.clamp_min_(_HIDDEN)
        torch.exp2(logits, out=rows)
        divisors = self._nonzero(rows.sum(dim=-1))
        sums = divisors.double()
        mean = logits.mul_(rows).sum(dim=-1).double() / sums
        return (sums.log2() - mean) / _LOG2_E, rows, divisors

    def _logits(self, part: Part, logits: Tensor, *, shifted: bool) -> Tensor:
        call = self._call
        if call.mask is not None:
            mask = call.mask.expand(call.shape)[0, part.heads, part.queries]
            if mask.dtype is torch.bool:
                logits.zero_().masked_fill_(~mask, -math.inf)
            else:  # the least number times log2 e would be minus infinity, which hides
                logits.copy_(mask).clamp_(min=torch.finfo(self.dtype).min / 2)
                logits.masked_fill_(mask == -math.inf, -math.inf)
        beta = 0.0 if call.mask is None else _LOG2_E  # with 0 the buffer's old contents are ignored
        query, key = call.query[0, part.heads, part.queries].to(self.dtype), self._key(part.heads)
        if len(query) == 1:
            logits[0].addmm_(query[0], key[0].mT, beta=beta, alpha=self._scale)
        else:
            logits.baddbmm_(query, key.mT, beta=beta, alpha=self._scale)
        if call.causal:
            positions = torch.arange(part.queries.start, part.queries.stop, device=self.device)
            logits.masked_fill_(torch.arange(self.keys, device=self.device) > positions[:, None], -math.inf)
        if shifted:
            peaks = logits.amax(dim=-1, keepdim=True)
            logits.sub_(peaks.clamp_min_(torch.finfo(self.dtype).min) if call.masked else peaks)
        return logits

    def _key(self, heads: slice) -> Tensor:
        """Keys of these heads, `(heads, keys, head_dim)`, copied once for all their rows if they are strided or shared."""
        if self._key_of is None or self._key_of[0] != heads:
            call = self._call
            shared = self.heads // call.key.shape[1]
            index = heads if shared == 1 else torch.arange(heads.start, heads.stop, device=self.device) // shared
            self._key_of = heads, call.key[0, index].to(self.dtype).contiguous()
        return self._key_of[1]

    def _nonzero(self, sums: Tensor) -> Tensor:
        return sums.masked_fill_(sums == 0, 1.0) if self._call.masked else sums


class DenseRows:
    """The matrix of one image, as the model computed it: softmax rows `(heads, queries, keys)`."""

    def __init__(self, matrix: Tensor) -> None:
        self.heads, self.queries, self.keys = matrix.shape
        self.dtype = torch.float64 if matrix.dtype is torch.float64 else torch.float32
        self.device = matrix.device
        self._matrix = matrix

    def exponentials(self, part: Part, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows, `(heads, rows, keys)`, and None: they need no division."""
        return rows.copy_(self._matrix[part.heads, part.queries]), None

    def entropy(self, part: Part, entropy: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Entropy of rows in nats, `(heads, rows)` float64, the rows, and None for their sums; both tensors are written."""
        self.exponentials(part, rows)
        torch.special.entr(rows, out=entropy)
        return entropy.sum(dim=-1, dtype=torch.float64), rows, None


ImageRows = ComputedRows | DenseRows


def chunks(image: ImageRows, queries: slice, budget: int) -> Iterator[tuple[Part, Tensor, Tensor | None]]:
    """All parts of some rows, each of at most `budget` bytes and valid until the next, with their `exponentials`."""
    if _is_empty(image, queries):
        return
    cut = parts(image.heads, queries, _row_bytes(image), budget)
    memory = _memory(image, *cut[0].shape)
    for part in cut:
        yield part, *image.exponentials(part, _front(memory, part))


def sum_of_products(image: ImageRows, r: Tensor, budget: int) -> Tensor:
    """The sum over heads of `r`, `(rows, queries)`, times each matrix: `(rows, keys)` float64; parts are multiplied in the image's dtype."""
    total = torch.zeros(len(r), image.keys, dtype=torch.float64, device=image.device)
    factors = r.to(image.dtype)
    for part, rows, sums in chunks(image, slice(0, image.queries), budget):
        own = factors[:, part.queries]
        if len(rows) == 1:  # fewer operations, which is what can be saved at a thousand tokens
            total.add_(torch.mm(own if sums is None else own / sums, rows[0]))
        else:
            each = own.expand(len(rows), -1, -1) if sums is None else own / sums[:, None]
            total.add_(torch.bmm(each, rows).sum(dim=0, dtype=torch.float64))
    return total


def entropy_chunks(image: ImageRows, budget: int) -> Iterator[tuple[Part, Tensor, Tensor, Tensor | None, Tensor]]:
    """All parts, each valid until the next, with their `entropy` and a scratch buffer of the rows' shape."""
    if _is_empty(image, slice(0, image.queries)):
        return
    cut = parts(image.heads, slice(0, image.queries), _row_bytes(image), budget // 2)
    first, second = _memory(image, *cut[0].shape), _memory(image, *cut[0].shape)
    for part in cut:
        spare = _front(first, part)
        yield part, *image.entropy(part, spare, _front(second, part)), spare


def fused_chunks(image: ImageRows, fusion: str, budget: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the `"mean"`, `"max"` or `"min"` over heads, `(rows, keys)`, each valid until the next; may be overwritten."""
    if _is_empty(image, slice(0, image.queries)):
        return
    cut = row_parts(slice(0, image.queries), _row_bytes(image), budget // 2)
    memory, fused = (_memory(image, 1, cut[0].stop - cut[0].start) for _ in range(2))
    for queries in cut:
        total = fused[0, : queries.stop - queries.start]
        for head in range(image.heads):
            part = Part(slice(head, head + 1), queries)
            rows, sums = image.exponentials(part, _front(memory, part))
            if sums is not None:
                rows.mul_(sums.reciprocal_()[..., None])
            if head == 0:
                total.copy_(rows[0])
            else:
                _JOINS[fusion](total, rows[0], out=total)
        yield queries, total.div_(image.heads) if fusion == "mean" else total


_JOINS: dict[str, Callable[..., Tensor]] = {"mean": torch.add, "max": torch.maximum, "min": torch.minimum}


def _is_empty(image: ImageRows, queries: slice) -> bool:
    """Whether there is nothing to compute: no rows, no keys, or no heads."""
    return not (image.heads and queries.stop > queries.start and image.keys)


def _memory(image: ImageRows, heads: int, rows: int) -> Tensor:
    """A buffer `(heads, rows, keys)` for one part of an image and any smaller one."""
    width = _row_bytes(image) // image.dtype.itemsize
    return torch.empty(heads, rows, width, dtype=image.dtype, device=image.device)[..., : image.keys]


def _front(memory: Tensor, part: Part) -> Tensor:
    heads, rows = part.shape
    return memory[:heads, :rows]


def _row_bytes(image: ImageRows) -> int:
    """Distance of rows in memory: each begins a cache line, or products are a tenth slower (numbers of tokens are odd)."""
    return -(-image.keys * image.dtype.itemsize // _CACHE_LINE_BYTES) * _CACHE_LINE_BYTES
