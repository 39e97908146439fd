"""The attention matrix softmax(Q K^T * scale + bias) as an object that is never stored whole unless asked.

Pure torch: knows nothing of models or hooks. All arithmetic is float32 (float64 where the operands are), with autocast and autograd off, so
that it is the same whatever the surrounding code runs under. No dropout: a softmax row sums to 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

BUDGET_BYTES = 2**22
"""Size that chunks of the matrix are cut to: 4 MiB of float32, small enough for a CPU's second-level cache share and a GPU's L2."""


class quiet_arithmetic:
    """Context in which attention is computed: no autograd, no autocast. Written out, because it is entered once a block."""

    __slots__ = ("_autocast", "_device_type", "_grad")

    def __init__(self, device_type: str) -> None:
        self._device_type = "cpu" if device_type == "meta" else device_type  # meta has no autocast to ask for
        self._grad = False
        self._autocast: torch.autocast | None = None

    def __enter__(self) -> None:
        if torch.is_autocast_enabled(self._device_type):  # may raise: before anything is switched
            self._autocast = torch.autocast(self._device_type, enabled=False)
            self._autocast.__enter__()  # type: ignore[no-untyped-call]
        self._grad = torch.is_grad_enabled()
        if self._grad:
            torch._C._set_grad_enabled(False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._autocast is not None:
            self._autocast.__exit__(kind, error, trace)
            self._autocast = None
        if self._grad:
            torch._C._set_grad_enabled(True)


@dataclass(slots=True, eq=False)
class Operands:
    """What one attention call was given, by reference.

    Attributes:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, key heads, keys, head_dim)`; with fewer key heads than heads, consecutive heads share one (GQA).
        scale: Factor on Q K^T; None is `head_dim ** -0.5`.
        mask: Additive (floating) or boolean (True: attend), broadcastable to `(batch, heads, queries, keys)`, or None.
        causal: Whether query i sees the keys 0..i only.
    """

    query: Tensor
    key: Tensor
    scale: float | None = None
    mask: Tensor | None = None
    causal: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(batch, heads, queries, keys)`."""
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[-2]

    def detached(self) -> "Operands":
        """The same operands without their autograd history: what may be kept."""
        mask = None if self.mask is None else self.mask.detach()
        return Operands(self.query.detach(), self.key.detach(), self.scale, mask, self.causal)

    @property
    def masked(self) -> bool:
        """Whether some keys may be hidden from some queries."""
        return self.causal or self.mask is not None

    def logits(self, index: slice | Tensor) -> Tensor:
        """Rows of Q K^T * scale + bias, in float32 or float64; call it under `quiet_arithmetic`.

        Args:
            index: Which queries: a slice, or int64 indices `(rows,)`.

        Returns:
            `(batch, heads, rows, keys)`.
        """
        query, key = self.query[:, :, index], self.key
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        if query.dtype is not torch.float32 and query.dtype is not torch.float64:
            query, key = query.float(), key.float()
        logits = scaled_product(query, key, scale)
        if self.masked:
            logits = self._add_bias(logits, index)
        return logits

    def _add_bias(self, logits: Tensor, index: slice | Tensor) -> Tensor:
        batch, heads, queries, keys = self.shape
        if self.mask is not None:
            mask = self.mask.expand(batch, heads, queries, keys)[:, :, index]
            hidden = mask.dtype is torch.bool
            logits = logits.masked_fill_(~mask, float("-inf")) if hidden else logits.add_(mask)
        if self.causal:
            positions = torch.arange(queries, device=logits.device)[index]
            later = torch.arange(keys, device=logits.device) > positions[:, None]
            logits = logits.masked_fill_(later, float("-inf"))
        return logits


def scaled_product(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """`query @ key^T * scale`, without copying keys that are strided views of a fused projection.

    Args:
        query: `(batch, heads, rows, head_dim)`.
        key: `(batch, key heads, keys, head_dim)`, key heads dividing heads.
        scale: Factor.

    Returns:
        `(batch, heads, rows, keys)`, the query's dtype.
    """
    batch, heads, rows, dim = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    if key_heads != heads:
        query = query.reshape(batch, key_heads, heads // key_heads * rows, dim)
    if batch == 1:
        product = torch.bmm(query.squeeze(0), key.squeeze(0).transpose(1, 2))
    else:
        # One product an image: a batched one would first copy all keys, whose (batch, head) strides do not merge.
        product = query.new_empty(batch, key_heads, query.shape[2], keys)
        key = key.transpose(2, 3)
        for image in range(batch):
            torch.bmm(query[image], key[image], out=product[image])
    product *= scale
    return product.view(batch, heads, rows, keys)


def softmax_rows(logits: Tensor, *, masked: bool) -> Tensor:
    """Softmax over the keys.

    Args:
        logits: `(..., keys)`, float32 or float64.
        masked: Whether keys may be masked: a row whose keys all are is then zero, as in the fused kernels.

    Returns:
        `(..., keys)` float32, owning its memory.
    """
    weights = torch.softmax(logits, dim=-1)
    if masked:
        weights = weights.masked_fill_((logits == float("-inf")).all(dim=-1, keepdim=True), 0.0)
    return weights.float()


@dataclass(frozen=True)
class RowChunk:
    """Which part of a matrix a chunk of rows is.

    Attributes:
        image: Index in the batch.
        queries: Which rows, `start` and `stop` set.
    """

    image: int
    queries: slice


class SoftmaxMatrix:
    """An attention matrix `(batch, heads, queries, keys)`, computed when and as far as it is asked for.

    Built from the operands of an attention call, or around a matrix that the model had computed itself.

    Args:
        source: `Operands`, or a dense matrix of softmax rows `(batch, heads, queries, keys)`.

    Example:
        >>> import torch
        >>> q, k = torch.randn(2, 1, 2, 5, 4).unbind(0)
        >>> matrix = SoftmaxMatrix(Operands(q, k))
        >>> matrix.shape, matrix.rows([0]).shape
        ((1, 2, 5, 5), torch.Size([1, 2, 1, 5]))
    """

    def __init__(self, source: "Operands | Tensor") -> None:
        self._source = source

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(batch, heads, queries, keys)`."""
        if isinstance(self._source, Operands):
            return self._source.shape
        batch, heads, queries, keys = self._source.shape
        return batch, heads, queries, keys

    @property
    def device(self) -> torch.device:
        """Where the operands live."""
        return self._source.query.device if isinstance(self._source, Operands) else self._source.device

    def __repr__(self) -> str:
        kind = "from queries and keys" if isinstance(self._source, Operands) else "dense"
        return f"SoftmaxMatrix(shape={self.shape}, {kind})"

    def rows(self, index: slice | Tensor | list[int]) -> Tensor:
        """Chosen rows of the matrix.

        Args:
            index: Which queries: a slice, a list, or int64 indices `(rows,)`.

        Returns:
            `(batch, heads, rows, keys)` float32, owning its memory.
        """
        chosen = torch.tensor(index, device=self.device, dtype=torch.int64) if isinstance(index, list) else index
        with quiet_arithmetic(self.device.type):
            if isinstance(self._source, Operands):
                return softmax_rows(self._source.logits(chosen), masked=self._source.masked)
            return self._source[:, :, chosen].to(dtype=torch.float32, copy=True)

    def dense(self) -> Tensor:
        """The whole matrix: `(batch, heads, queries, keys)` float32. Its size grows with the square of the tokens."""
        return self.rows(slice(None))

    def rowwise(self, measure: Callable[[Tensor, RowChunk], Tensor]) -> Tensor:
        """Reduce every row to something small, in chunks of at most `BUDGET_BYTES`.

        Args:
            measure: Takes rows `(1, heads, rows, keys)` float32 and which they are, gives `(1, heads or 1, rows, ...)`.

        Returns:
            What `measure` gave, joined: `(batch, heads or 1, queries, ...)`.
        """
        batch, heads, queries, keys = self.shape
        step = max(1, BUDGET_BYTES // (4 * heads * keys))
        images = []
        for image in range(batch):
            matrix = self.image(image)
            parts = []
            for first in range(0, queries, step):
                chunk = slice(first, min(first + step, queries))
                parts.append(measure(matrix.rows(chunk), RowChunk(image, chunk)))
            images.append(torch.cat(parts, dim=2))
        return torch.cat(images)

    def entropy(self) -> Tensor:
        """Entropy of every row in nats: `(batch, heads, queries)` float64."""
        return self.rowwise(lambda rows, _: torch.special.entr(rows).sum(-1, dtype=torch.float64))

    def column_sums(self) -> Tensor:
        """Sum of every column: `(batch, heads, keys)` float64."""
        queries = self.shape[2]
        return self.mean_rows(slice(0, queries))[:, :, 0].double() * queries

    def image(self, index: int) -> "SoftmaxMatrix":
        """The matrix of one image: the same with a batch of one, by reference."""
        if not isinstance(self._source, Operands):
            return SoftmaxMatrix(self._source[index : index + 1])
        call = self._source
        mask = call.mask
        if mask is not None and mask.dim() == 4 and mask.shape[0] > 1:
            mask = mask[index : index + 1]
        one = slice(index, index + 1)
        return SoftmaxMatrix(Operands(call.query[one], call.key[one], call.scale, mask, call.causal))

    def mean_rows(self, queries: slice) -> Tensor:
        """Mean over some rows, computed in chunks of at most `BUDGET_BYTES`: what a mean readout attends to.

        Args:
            queries: Which rows the mean is over.

        Returns:
            `(batch, heads, 1, keys)` float32.
        """
        batch, heads, total, keys = self.shape
        start, stop, _ = queries.indices(total)
        step = max(1, BUDGET_BYTES // (4 * batch * heads * keys))
        mean = torch.zeros(batch, heads, 1, keys, dtype=torch.float64, device=self.device)
        for first in range(start, stop, step):
            mean += self.rows(slice(first, min(first + step, stop))).sum(dim=2, keepdim=True, dtype=torch.float64)
        return (mean / (stop - start)).float()

    def to(self, device: torch.device | str) -> "SoftmaxMatrix":
        """The same matrix with its operands on another device."""
        if not isinstance(self._source, Operands):
            return SoftmaxMatrix(self._source.to(device))
        call = self._source
        mask = None if call.mask is None else call.mask.to(device)
        return SoftmaxMatrix(Operands(call.query.to(device), call.key.to(device), call.scale, mask, call.causal))
