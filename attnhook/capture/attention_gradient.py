"""The gradient of a score with respect to an attention matrix, as an object that is never stored whole unless asked.

With O = A V the output of an attention call and dO the gradient of the score with respect to it, the gradient with respect to A is dA = dO V^T,
exactly: no softmax has to be spelt out for it. Pure torch: knows nothing of models, hooks or autograd.
"""

import torch
from torch import Tensor

from attnhook.capture.operands import quiet_arithmetic


class AttentionGradient:
    """dA, `(batch, heads, queries, keys)`, computed when and as far as it is asked for.

    Args:
        source: The gradient of the output `(batch, heads, queries, value_dim)` and the values `(batch, key heads, keys, value_dim)`; with fewer
            key heads than heads, consecutive heads share one. Or dA itself, of a model that spells its softmax out.

    Example:
        >>> import torch
        >>> output_gradient, values = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
        >>> gradient = AttentionGradient((output_gradient, values))
        >>> gradient.shape, gradient.rows([0]).shape
        ((1, 4, 5, 5), torch.Size([1, 4, 1, 5]))
    """

    def __init__(self, source: tuple[Tensor, Tensor] | Tensor) -> None:
        self._source = source

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(batch, heads, queries, keys)`."""
        if isinstance(self._source, Tensor):
            batch, heads, queries, keys = self._source.shape
            return batch, heads, queries, keys
        output_gradient, values = self._source
        batch, heads, queries, _ = output_gradient.shape
        return batch, heads, queries, values.shape[2]

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self._source.device if isinstance(self._source, Tensor) else self._source[0].device

    @property
    def dtype(self) -> torch.dtype:
        """What it is computed in: float32, or float64 where the model ran in it."""
        given = self._source if isinstance(self._source, Tensor) else self._source[0]
        return torch.float64 if given.dtype is torch.float64 else torch.float32

    def __repr__(self) -> str:
        kind = "dense" if isinstance(self._source, Tensor) else "from the output's gradient and the values"
        return f"AttentionGradient(shape={self.shape}, {kind})"

    def rows(self, index: slice | Tensor | list[int]) -> Tensor:
        """Chosen rows of the gradient.

        Args:
            index: Which queries: a slice, a list, or int64 indices `(rows,)`.

        Returns:
            `(batch, heads, rows, keys)` float32, owning its memory.
        """
        chosen = torch.tensor(index, device=self.device, dtype=torch.int64) if isinstance(index, list) else index
        with quiet_arithmetic(self.device.type):
            if isinstance(self._source, Tensor):
                return self._source[:, :, chosen].to(dtype=torch.float32, copy=True)
            output_gradient, values = (tensor.to(self.dtype) for tensor in self._source)
            wanted = output_gradient[:, :, chosen]
            batch, heads, rows, width = wanted.shape
            _, groups, keys, _ = values.shape
            shared = wanted.reshape(
                batch, groups, heads // groups * rows, width
            )  # heads that share values, one behind the other
            return (shared @ values.transpose(2, 3)).view(batch, heads, rows, keys).float()

    def dense(self) -> Tensor:
        """The whole gradient: `(batch, heads, queries, keys)` float32. Its size grows with the square of the tokens."""
        return self.rows(slice(None))

    def head_rows(self, image: int, head: int, queries: slice, buffer: Tensor | None = None) -> Tensor:
        """Rows of one head of one image, for those who go through it a chunk at a time.

        Args:
            image: Index in the batch.
            head: Which head.
            queries: Which rows, `start` and `stop` set.
            buffer: Memory of at least rows times keys numbers of this `dtype`, or None; it is written over.

        Returns:
            `(rows, keys)` of this `dtype`; may be written over.
        """
        rows, keys = queries.stop - queries.start, self.shape[3]
        out = None if buffer is None else buffer[: rows * keys].view(rows, keys)
        with quiet_arithmetic(self.device.type):
            if isinstance(self._source, Tensor):
                dense = self._source[image, head, queries]
                return dense.to(self.dtype, copy=True) if out is None else out.copy_(dense)
            output_gradient, values = self._source
            shared = output_gradient.shape[1] // values.shape[1]
            left = output_gradient[image, head, queries].to(self.dtype)
            return torch.mm(left, values[image, head // shared].to(self.dtype).T, out=out)
