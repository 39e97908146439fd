"""Parts of a softmax matrix before they are divided by their row sums, in chunks that stay in a CPU's cache.

`2 ** (logits / log 2)` replaces `exp(logits)`: the factor goes into the scale of Q K^T, and on CPUs `exp2` takes a third of the time of
`exp`. The softmax's three passes over a chunk become one in place; whoever uses a chunk divides something small by the sums. Every chunk of
one image is written into the same memory: it holds until the next one is asked for. Gradients are not followed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attnhook.capture.operands import Operands

LINE_BYTES = 64
"""Size of a line of a CPU's cache."""

LOG2_E = math.log2(math.e)
# Between them, sums of a million such rows, and small numbers over a row's sum, are still normal float32 numbers.
_LEAST_SUM, _LARGEST_SUM = 2.0**-60, 2.0**80
_HIDDEN = -8192.0  # 2 to the power of this is 0, and 0 times this is 0, which 0 times minus infinity is not


@dataclass(frozen=True)
class Part:
    """Which part of one image's matrix a chunk is.

    Attributes:
        heads: Which heads, `start` and `stop` set.
        queries: Which rows, `start` and `stop` set.
    """

    heads: slice
    queries: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Number of heads and of rows."""
        return self.heads.stop - self.heads.start, self.queries.stop - self.queries.start


def parts(heads: int, queries: slice, row_bytes: int, budget: int) -> list[Part]:
    """Cut a matrix into parts of some rows of one head, or of all rows of several heads; one row is the least.

    Args:
        heads: Number of heads.
        queries: Which rows, `start` and `stop` set.
        row_bytes: Size of one row of one head.
        budget: Largest size of a part in bytes.

    Returns:
        The parts, heads outermost.
    """
    rows = queries.stop - queries.start
    together = max(1, min(heads, budget // (row_bytes * rows)))
    return [
        Part(slice(head, min(head + together, heads)), part)
        for head in range(0, heads, together)
        for part in row_parts(queries, row_bytes, budget)
    ]


def row_parts(queries: slice, row_bytes: int, budget: int) -> list[slice]:
    """Cut rows into runs of nearly equal length whose size is at most the budget; one row is the least.

    Args:
        queries: Which rows, `start` and `stop` set.
        row_bytes: Size of one row.
        budget: Largest size of a run in bytes.

    Returns:
        The runs in order.
    """
    rows = queries.stop - queries.start
    most = max(1, min(rows, budget // row_bytes))
    step = -(-rows // -(-rows // most))
    return [slice(first, min(first + step, queries.stop)) for first in range(queries.start, queries.stop, step)]


class ComputedRows:
    """The matrix of one image, from its queries and keys.

    Args:
        call: Operands with a batch of one.
    """

    def __init__(self, call: Operands) -> None:
        _, self.heads, self.queries, self.keys = call.shape
        self.dtype = torch.float64 if call.query.dtype is torch.float64 else torch.float32
        self.device = call.query.device
        self._call = call
        scale: float = call.query.shape[-1] ** -0.5 if call.scale is None else call.scale
        self._scale = scale * LOG2_E
        # Whether a row is shifted by its largest logit first. Most need not be, which their sums show; asking them waits for other devices.
        self._shifted = self.device.type != "cpu" or call.masked
        self._key_of: tuple[slice, Tensor] | None = None

    def exponentials(self, part: Part, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows up to a factor each.

        Args:
            part: Which.
            rows: `(heads, rows, keys)`, written.

        Returns:
            The rows, and their sums `(heads, rows)` to divide by, 1 where all keys are hidden.
        """
        if not self._shifted:
            torch.exp2_(self._logits(part, rows, shifted=False))
            sums = rows.sum(dim=-1)
            least, largest = torch.aminmax(sums)
            if least.item() > _LEAST_SUM and largest.item() < _LARGEST_SUM:
                return rows, sums
            self._shifted = True  # nor are those of this image that are still to come
        torch.exp2_(self._logits(part, rows, shifted=True))
        return rows, self._nonzero(rows.sum(dim=-1))

    def spread(self, part: Part, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Entropy of rows in nats, from logits and row sums: no logarithm of the matrix. The rows come with it.

        With l the logits less their row's largest, e = exp(l), Z their sum: `H = log Z - sum_j e_j l_j / Z`, both terms small where H is.

        Args:
            part: Which.
            logits: `(heads, rows, keys)`, written.
            rows: Likewise.

        Returns:
            Entropy `(heads, rows)` float64, and rows and sums as `exponentials` gives them.
        """
        self._logits(part, logits, shifted=True)
        if self._call.masked:
            logits.clamp_min_(_HIDDEN)
        torch.exp2(logits, out=rows)
        divisors = self._nonzero(rows.sum(dim=-1))
        sums = divisors.double()
        mean = logits.mul_(rows).sum(dim=-1).double() / sums
        return (sums.log2() - mean) / LOG2_E, rows, divisors

    def _logits(self, part: Part, logits: Tensor, *, shifted: bool) -> Tensor:
        mask = self._mask(part)
        if mask is not None:
            if mask.dtype is torch.bool:
                logits.zero_().masked_fill_(~mask, -math.inf)
            else:  # the least number times log2 e would be minus infinity, which hides
                logits.copy_(mask).clamp_(min=torch.finfo(self.dtype).min / 2)
                logits.masked_fill_(mask == -math.inf, -math.inf)
        beta = 0.0 if mask is None else LOG2_E  # with 0 the buffer's old contents do not count
        if logits.shape[0] == 1:
            logits[0].addmm_(*self._of_head(part), beta=beta, alpha=self._scale)
        else:
            query = self._call.query[0, part.heads, part.queries].to(self.dtype)
            logits.baddbmm_(query, self._key(part.heads).mT, beta=beta, alpha=self._scale)
        if self._call.causal:
            asking = torch.arange(part.queries.start, part.queries.stop, device=self.device)
            logits.masked_fill_(torch.arange(self.keys, device=self.device) > asking[:, None], -math.inf)
        if shifted:
            peaks = logits.amax(dim=-1, keepdim=True)
            logits.sub_(peaks.clamp_min_(torch.finfo(self.dtype).min) if self._call.masked else peaks)
        return logits

    @cached_property
    def _each(self) -> list[tuple[Tensor, Tensor]]:
        """Queries and transposed keys of each head, where they need no conversion; views made once are fewer operations a chunk."""
        query, key = self._call.query[0], self._call.key[0]
        if query.shape[0] != key.shape[0] or not key.is_contiguous():
            return []
        if query.dtype is not self.dtype or key.dtype is not self.dtype:
            return []
        return list(zip(query.unbind(0), key.mT.unbind(0), strict=True))

    def _of_head(self, part: Part) -> tuple[Tensor, Tensor]:
        """A part's queries, and its only head's keys transposed."""
        if not self._each:
            return self._call.query[0, part.heads.start, part.queries].to(self.dtype), self._key(part.heads)[0].mT
        query, key = self._each[part.heads.start]
        return (query if part.shape[1] == self.queries else query[part.queries]), key

    def _key(self, heads: slice) -> Tensor:
        """Keys of these heads, `(heads, keys, head_dim)`, copied once for all their rows if they are strided or shared."""
        if self._key_of is None or self._key_of[0] != heads:
            call = self._call
            shared = self.heads // call.key.shape[1]
            index = heads if shared == 1 else torch.arange(heads.start, heads.stop, device=self.device) // shared
            self._key_of = heads, call.key[0, index].to(self.dtype).contiguous()
        return self._key_of[1]

    def _mask(self, part: Part) -> Tensor | None:
        mask = self._call.mask
        return None if mask is None else mask.expand(self._call.shape)[0, part.heads, part.queries]

    def _nonzero(self, sums: Tensor) -> Tensor:
        return sums.masked_fill_(sums == 0, 1.0) if self._call.masked else sums


class DenseRows:
    """The matrix of one image, as the model had computed it.

    Args:
        matrix: Softmax rows, `(heads, queries, keys)`.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.heads, self.queries, self.keys = matrix.shape
        self.dtype = torch.float64 if matrix.dtype is torch.float64 else torch.float32
        self.device = matrix.device
        self._matrix = matrix

    def exponentials(self, part: Part, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows, `(heads, rows, keys)`, and None: they need no division."""
        return rows.copy_(self._matrix[part.heads, part.queries]), None

    def spread(self, part: Part, entropy: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Entropy of rows in nats, `(heads, rows)` float64, the rows, and None for their sums; both tensors are written."""
        self.exponentials(part, rows)
        torch.special.entr(rows, out=entropy)
        return entropy.sum(dim=-1, dtype=torch.float64), rows, None


ImageRows = ComputedRows | DenseRows


def chunks(image: ImageRows, queries: slice, budget: int) -> Iterator[tuple[Part, Tensor, Tensor | None]]:
    """All parts of some rows of one image, each valid until the next.

    Args:
        image: The image.
        queries: Which rows, `start` and `stop` set.
        budget: Largest size of a part in bytes.

    Yields:
        Which part, its rows up to a factor each, and their sums or None, as `exponentials` gives them.
    """
    cut = parts(image.heads, queries, _row_bytes(image), budget)
    buffer = _Buffer(image, cut[0])
    for part in cut:
        yield part, *image.exponentials(part, buffer.shaped(part))


def sum_of_products(image: ImageRows, r: Tensor, budget: int) -> Tensor:
    """What r times each head's matrix adds up to.

    Args:
        image: The image.
        r: `(rows, queries)`, the same for all heads.
        budget: Largest size in bytes of what is computed of the matrix at once.

    Returns:
        `(rows, keys)` float64; parts are multiplied in the image's dtype.
    """
    total = torch.zeros(len(r), image.keys, dtype=torch.float64, device=image.device)
    factors = r.to(image.dtype)
    for part, rows, sums in chunks(image, slice(0, image.queries), budget):
        heads, queries = part.shape
        own = factors if queries == image.queries else factors[:, part.queries]
        if heads == 1:  # few operations: at a thousand tokens, they are what can be saved
            total.add_(torch.mm(own if sums is None else own / sums, rows[0]))
        else:
            each = own.expand(heads, -1, -1) if sums is None else own / sums[:, None]
            total.add_(torch.bmm(each, rows).sum(dim=0, dtype=torch.float64))
    return total


def entropies(image: ImageRows, budget: int) -> Tensor:
    """Entropy of every row of one image in nats.

    Args:
        image: The image.
        budget: Largest size in bytes of what is computed at once.

    Returns:
        `(heads, queries)` float64.
    """
    result = torch.empty(image.heads, image.queries, dtype=torch.float64, device=image.device)
    for part, entropy, *_ in spread_chunks(image, budget):
        result[part.heads, part.queries] = entropy
    return result


def spread_chunks(image: ImageRows, budget: int) -> Iterator[tuple[Part, Tensor, Tensor, Tensor | None, Tensor]]:
    """All parts of one image with the entropies of their rows, each valid until the next.

    Args:
        image: The image.
        budget: Largest size in bytes of what is computed at once.

    Yields:
        Which part, the entropies of its rows, the rows up to a factor each, their sums or None, as `spread` gives them, and memory of the rows'
        shape to write in.
    """
    cut = parts(image.heads, slice(0, image.queries), _row_bytes(image), budget // 2)
    first, second = _Buffer(image, cut[0]), _Buffer(image, cut[0])
    for part in cut:
        memory = first.shaped(part)
        yield part, *image.spread(part, memory, second.shaped(part)), memory


def fused_chunks(image: ImageRows, fusion: str, budget: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the matrix that is one image's heads made one, each chunk valid until the next.

    Args:
        image: The image.
        fusion: `"mean"`, `"max"` or `"min"` over heads.
        budget: Largest size in bytes of what is computed at once.

    Yields:
        Which rows, and `(rows, keys)`; the caller may overwrite them.
    """
    cut = row_parts(slice(0, image.queries), _row_bytes(image), budget // 2)
    buffer, fused = (_Buffer(image, Part(slice(0, 1), cut[0])) for _ in range(2))
    join = _JOINS[fusion]
    for queries in cut:
        total = fused.shaped(Part(slice(0, 1), queries))[0]
        for head in range(image.heads):
            part = Part(slice(head, head + 1), queries)
            rows, sums = image.exponentials(part, buffer.shaped(part))
            if sums is not None:
                rows.mul_(sums.reciprocal_()[..., None])
            if head == 0:
                total.copy_(rows[0])
            else:
                join(total, rows[0])
        yield queries, total.div_(image.heads) if fusion == "mean" else total


_JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda total, rows: total.add_(rows),
    "max": lambda total, rows: torch.maximum(total, rows, out=total),
    "min": lambda total, rows: torch.minimum(total, rows, out=total),
}


class _Buffer:
    """Memory for one part of an image and any smaller one."""

    def __init__(self, image: ImageRows, part: Part) -> None:
        heads, rows = part.shape
        self._keys, self._width = image.keys, _padded(image.keys, image.dtype)
        self._memory = torch.empty(heads * rows * self._width, dtype=image.dtype, device=image.device)
        self._shape, self._shaped = part.shape, self._of(part.shape)

    def shaped(self, part: Part) -> Tensor:
        """Its front in the shape of a part, `(heads, rows, keys)`."""
        if part.shape != self._shape:
            self._shape, self._shaped = part.shape, self._of(part.shape)
        return self._shaped

    def _of(self, shape: tuple[int, int]) -> Tensor:
        heads, rows = shape
        return self._memory[: heads * rows * self._width].view(heads, rows, self._width)[..., : self._keys]


def _row_bytes(image: ImageRows) -> int:
    return _padded(image.keys, image.dtype) * image.dtype.itemsize


def _padded(keys: int, dtype: torch.dtype) -> int:
    """Distance of rows in memory: each begins a cache line, or products are a tenth slower (numbers of tokens are odd)."""
    line = LINE_BYTES // dtype.itemsize
    return -(-keys // line) * line
