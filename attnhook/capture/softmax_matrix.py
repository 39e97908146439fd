"""The attention matrix softmax(Q K^T * scale + bias) as an object that is never stored whole unless you ask.

Pure torch: knows nothing of models or hooks. Nothing is differentiable.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.capture import chunked_softmax
from attnhook.capture.chunked_softmax import ComputedRows, DenseRows, ImageRows, Part
from attnhook.capture.operands import Operands, as_index, exact_arithmetic, softmax_rows, versions
from attnhook.errors import RowsNotKeptError
from attnhook.options import HeadFusion, choose

BUDGET_BYTES = 9 * 2**19
"""Largest size of a chunk on a CPU, or of both buffers where two are needed: 4.5 MiB, one head of 1,025 tokens, which stays in a cache."""

ACCELERATOR_BUDGET_BYTES = 2**27
"""The same on other devices, where every chunk costs kernel launches: 128 MiB."""


@dataclass(frozen=True)
class RowChunk:
    """Which part of a matrix a chunk of rows is: an index in the batch, and which rows, `start` and `stop` set."""

    image: int
    queries: slice


class SoftmaxMatrix:
    """An attention matrix `(batch, heads, queries, keys)`, computed on demand.

    Args:
        source: `Operands`, or a dense matrix of softmax rows `(batch, heads, queries, keys)` that the model computed itself. Kept by reference:
            once they are overwritten, reading and copying raise `RowsNotKeptError`. (Tensors made in inference mode do not count writes, so
            overwriting those goes unnoticed.)

    Example:
        >>> import torch
        >>> q, k = torch.randn(2, 1, 2, 5, 4).unbind(0)
        >>> matrix = SoftmaxMatrix(Operands(q, k))
        >>> matrix.shape, matrix.rows([0]).shape
        ((1, 2, 5, 5), torch.Size([1, 2, 1, 5]))
    """

    def __init__(self, source: Operands | Tensor) -> None:
        self.__setstate__(source)

    def __getstate__(self) -> Operands | Tensor:
        return self._unchanged()

    def __setstate__(self, source: Operands | Tensor) -> None:
        self._source, self._versions = source, _versions(source)  # a copy's tensors count anew

    def _unchanged(self) -> Operands | Tensor:
        """The source; raises if it was overwritten."""
        if _versions(self._source) != self._versions:
            raise RowsNotKeptError(
                "the attention matrix is lost: expected queries, keys and mask as they were in the call, but the model has overwritten them "
                "since. Capture the rows that you need instead of rows='all'."
            )
        return self._source

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(batch, heads, queries, keys)`."""
        batch, heads, queries, keys = self._source.shape
        return batch, heads, queries, keys

    @property
    def device(self) -> torch.device:
        """Where the operands are."""
        return self._source.query.device if isinstance(self._source, Operands) else self._source.device

    @property
    def normalised(self) -> bool:
        """Whether every row certainly sums to 1: no key is hidden, and no model computed it."""
        return isinstance(self._source, Operands) and not self._source.masked

    def __repr__(self) -> str:
        kind = "from queries and keys" if isinstance(self._source, Operands) else "dense"
        return f"SoftmaxMatrix(shape={self.shape}, {kind})"

    def rows(self, index: slice | Tensor | list[int]) -> Tensor:
        """Chosen rows, `(batch, heads, rows, keys)` float32, owning their memory; `index` says which queries."""
        source, chosen = self._unchanged(), as_index(index, self.device)
        with exact_arithmetic(self.device.type):
            if isinstance(source, Operands):
                return softmax_rows(source.logits(chosen), masked=source.masked)
            return source[:, :, chosen].to(dtype=torch.float32, copy=True)

    def dense(self) -> Tensor:
        """The whole matrix: `(batch, heads, queries, keys)` float32. Its size grows with the square of the tokens."""
        return self.rows(slice(None))

    def left_multiply(self, r: Tensor) -> Tensor:
        """The product r A, `(batch, heads, rows, keys)` of r's dtype, a chunk of A at a time, added in float64.

        `r` is `(batch, heads or 1, rows, queries)` float32 or float64; with 1 the same for all heads.
        """
        batch, heads, queries, keys = self.shape
        self._check(r, "r", (batch, heads, None, queries), "(batch, heads or 1, rows, queries)")
        with exact_arithmetic(self.device.type):
            factors = r.expand(-1, heads, -1, -1)
            total = torch.zeros(batch, heads, r.shape[2], keys, dtype=torch.float64, device=self.device)
            for image, part, rows, sums in self._chunks(slice(0, queries)):
                own = factors[image, part.heads, :, part.queries].to(rows.dtype)
                total[image, part.heads] += torch.matmul(own if sums is None else own / sums[:, None], rows)
            return total.to(r.dtype)

    def fused_left_multiply(self, r: Tensor, fusion: str = "mean") -> Tensor:
        """The product of r, `(batch, rows, queries)` float32 or float64, with the `"mean"`, `"max"` or `"min"` over heads.

        It is `(batch, rows, keys)` of r's dtype. `"mean"` forms no fused row: r, over each head's row sums, meets all heads' rows in one sum.
        """
        batch, heads, queries, keys = self.shape
        self._check(r, "r", (batch, None, queries), "(batch, rows, queries)")
        with exact_arithmetic(self.device.type):
            total = torch.zeros(batch, r.shape[1], keys, dtype=torch.float64, device=self.device)
            if choose(HeadFusion, fusion, "fusion") is HeadFusion.MEAN:
                for image in range(batch):
                    total[image] = chunked_softmax.sum_of_products(self._image_rows(image), r[image], self._budget)
                return total.div_(heads).to(r.dtype)
            for chunk, fused in self.fused_chunks(fusion):
                total[chunk.image] += torch.mm(r[chunk.image, :, chunk.queries].to(fused.dtype), fused)
            return total.to(r.dtype)

    def right_multiply(self, x: Tensor) -> Tensor:
        """The product A x, `(batch, heads, queries, columns)` of x's dtype; x is `(batch, heads or 1, keys, columns)`, float32 or 64."""
        batch, heads, queries, keys = self.shape
        self._check(x, "x", (batch, heads, keys, None), "(batch, heads or 1, keys, columns)")
        with exact_arithmetic(self.device.type):
            factors = x.expand(-1, heads, -1, -1)
            result = torch.zeros(batch, heads, queries, x.shape[3], dtype=x.dtype, device=self.device)
            for image, part, rows, sums in self._chunks(slice(0, queries)):
                product = torch.matmul(rows, factors[image, part.heads].to(rows.dtype))
                result[image, part.heads, part.queries] = product if sums is None else product / sums[..., None]
            return result

    def fused_chunks(self, fusion: str = "mean") -> Iterator[tuple[RowChunk, Tensor]]:
        """The rows of the `"mean"`, `"max"` or `"min"` over heads, a chunk at a time: which, and `(rows, keys)` valid until the next."""
        kind = choose(HeadFusion, fusion, "fusion")
        for image in range(self.shape[0]):
            found = chunked_softmax.fused_chunks(self._image_rows(image), kind, self._budget)
            while True:
                with exact_arithmetic(self.device.type):  # while they are computed, not while the caller has them
                    chunk = next(found, None)
                if chunk is None:
                    break
                yield RowChunk(image, chunk[0]), chunk[1]

    def rowwise(self, measure: Callable[[Tensor, RowChunk], Tensor]) -> Tensor:
        """Reduce every row to something small, in chunks of at most `BUDGET_BYTES`: `(batch, heads or 1, queries, ...)`.

        `measure` takes rows `(1, heads, rows, keys)` float32 and which they are, and returns `(1, heads or 1, rows, ...)`.
        """
        batch, heads, queries, keys = self.shape
        if not (batch and queries and keys):
            return measure(self.dense(), RowChunk(0, slice(0, queries)))
        cut = chunked_softmax.row_parts(slice(0, queries), 4 * heads * keys, BUDGET_BYTES)
        images = []
        for image in range(batch):
            matrix = self.image(image)
            images.append(torch.cat([measure(matrix.rows(chunk), RowChunk(image, chunk)) for chunk in cut], dim=2))
        return torch.cat(images)

    def entropy(self) -> Tensor:
        """Entropy of every row in nats, without a logarithm of the matrix: `(batch, heads, queries)` float64."""
        result = torch.zeros(self.shape[:3], dtype=torch.float64, device=self.device)
        with exact_arithmetic(self.device.type):
            for image, part, entropy, *_ in self.entropy_chunks():
                result[image, part.heads, part.queries] = entropy
        return result

    def entropy_chunks(self) -> Iterator[tuple[int, Part, Tensor, Tensor, Tensor | None, Tensor]]:
        """All rows with their entropies, a chunk at a time: for several statistics in one pass. Use it in `exact_arithmetic`.

        Yields the image, which of its rows, their entropies, the rows up to a factor each, their sums or None, and a scratch buffer.
        """
        for index in range(self.shape[0]):
            for chunk in chunked_softmax.entropy_chunks(self._image_rows(index), self._budget):
                yield index, *chunk

    def column_sums(self) -> Tensor:
        """Sum of every column: `(batch, heads, keys)` float64."""
        batch, _, queries, _ = self.shape
        ones = torch.ones((), dtype=torch.float64, device=self.device).expand(batch, 1, 1, queries)
        return self.left_multiply(ones)[:, :, 0]

    def image(self, index: int) -> "SoftmaxMatrix":
        """The matrix of one image: the same with a batch of one, by reference."""
        source = self._unchanged()
        return SoftmaxMatrix(source.image(index) if isinstance(source, Operands) else source[index : index + 1])

    def head(self, index: int) -> "SoftmaxMatrix":
        """The matrix of one head, negative from the end: `(batch, 1, queries, keys)`, by reference."""
        count = self.shape[1]
        if not -count <= index < count:
            raise IndexError(f"head {index} does not exist: expected -{count} to {count - 1}.")
        source, head = self._unchanged(), index % count
        return SoftmaxMatrix(source.head(head) if isinstance(source, Operands) else source[:, head : head + 1])

    def mean_rows(self, queries: slice) -> Tensor:
        """The mean over consecutive rows, `(batch, heads, 1, keys)` float32: what a mean readout attends to."""
        batch, heads, total, keys = self.shape
        start, stop, step = queries.indices(total)
        if step != 1 or not start < stop:
            raise ValueError(
                f"cannot average rows: expected a slice of at least one of {total} rows and no step, got {queries}."
            )
        with exact_arithmetic(self.device.type):
            mean = torch.zeros(batch, heads, keys, dtype=torch.float64, device=self.device)
            for image, part, rows, sums in self._chunks(slice(start, stop)):
                ones = rows.new_ones(part.shape) if sums is None else sums.reciprocal()
                mean[image, part.heads] += torch.matmul(ones[:, None], rows)[:, 0]
            return (mean / (stop - start)).float()[:, :, None]

    def to(self, device: torch.device | str) -> "SoftmaxMatrix":
        """The same matrix with its operands on another device."""
        return SoftmaxMatrix(self._unchanged().to(device))

    @property
    def _budget(self) -> int:
        return BUDGET_BYTES if self.device.type == "cpu" else ACCELERATOR_BUDGET_BYTES

    def _image_rows(self, index: int) -> ImageRows:
        source = self._unchanged()
        return ComputedRows(source.image(index)) if isinstance(source, Operands) else DenseRows(source[index])

    def _chunks(self, queries: slice) -> Iterator[tuple[int, Part, Tensor, Tensor | None]]:
        """All parts of some rows, image by image, as `chunked_softmax.chunks` yields them."""
        for index in range(self.shape[0]):
            for chunk in chunked_softmax.chunks(self._image_rows(index), queries, self._budget):
                yield index, *chunk

    def _check(self, given: Tensor, name: str, wanted: tuple[int | None, ...], words: str) -> None:
        """Check a factor's shape; None is any length, and the heads may be 1."""
        shape = tuple(given.shape)
        fits = len(shape) == len(wanted) and all(
            need is None or got == need or (axis == 1 and len(wanted) == 4 and got == 1)
            for axis, (got, need) in enumerate(zip(shape, wanted, strict=True))
        )
        if not fits or not given.is_floating_point():
            lengths = ", ".join("any" if length is None else str(length) for length in wanted)
            raise ValueError(
                f"cannot multiply {self!r}: expected a floating {name} of shape {words} = ({lengths}), got {shape} {given.dtype}. "
                "Reshape or convert it."
            )


def _versions(source: Operands | Tensor) -> tuple[int, ...]:
    return versions(source.query, source.key, source.mask) if isinstance(source, Operands) else versions(source)
