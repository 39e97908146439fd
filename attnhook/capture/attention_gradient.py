"""The gradient of a score with respect to an attention matrix, as an object that is never stored whole unless you ask.

Pure torch: knows nothing of models, hooks or autograd.
"""

import torch
from torch import Tensor

from attnhook.capture.operands import as_index, exact_arithmetic


class AttentionGradient:
    """dA, `(batch, heads, queries, keys)`, computed on demand: exactly dO V^T for the output O = A V, without a softmax.

    `source` is dO `(batch, heads, queries, value_dim)` and V `(batch, key heads, keys, value_dim)`, where consecutive heads may share one. Or it
    is dA itself, of a model with an explicit softmax.
    """

    def __init__(self, source: tuple[Tensor, Tensor] | Tensor) -> None:
        self._given: Tensor = source if isinstance(source, Tensor) else source[0]
        self._values: Tensor | None = None if isinstance(source, Tensor) else source[1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(batch, heads, queries, keys)`."""
        batch, heads, queries, width = self._given.shape
        return batch, heads, queries, width if self._values is None else self._values.shape[2]

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self._given.device

    @property
    def dtype(self) -> torch.dtype:
        """What it is computed in: float32, or float64 where the model ran in it."""
        return torch.float64 if self._given.dtype is torch.float64 else torch.float32

    def __repr__(self) -> str:
        kind = "dense" if self._values is None else "from the output's gradient and the values"
        return f"AttentionGradient(shape={self.shape}, {kind})"

    def rows(self, index: slice | Tensor | list[int]) -> Tensor:
        """Chosen rows, `(batch, heads, rows, keys)` float32, owning their memory; `index` says which queries."""
        with exact_arithmetic(self.device.type):
            wanted = self._given[:, :, as_index(index, self.device)]
            if self._values is None:
                return wanted.to(dtype=torch.float32, copy=True)
            values = self._values.to(self.dtype)
            batch, heads, rows, width = wanted.shape
            groups, keys = values.shape[1:3]
            # Heads that share values, one after the other.
            shared = wanted.to(self.dtype).reshape(batch, groups, heads // groups * rows, width)
            return (shared @ values.transpose(2, 3)).view(batch, heads, rows, keys).float()

    def dense(self) -> Tensor:
        """The whole gradient: `(batch, heads, queries, keys)` float32. Its size grows with the square of the tokens."""
        return self.rows(slice(None))

    def head_rows(self, image: int, head: int, queries: slice, buffer: Tensor) -> Tensor:
        """Rows of one head of one image, `(rows, keys)` of this `dtype`, for going through it in chunks.

        `queries` has `start` and `stop` set; `buffer` has room for at least rows times keys numbers of this `dtype`, and is overwritten.
        """
        rows, (_, heads, _, keys) = queries.stop - queries.start, self.shape
        out = buffer[: rows * keys].view(rows, keys)
        with exact_arithmetic(self.device.type):
            given = self._given[image, head, queries]
            if self._values is None:
                return out.copy_(given)
            values = self._values[image, head * self._values.shape[1] // heads]
            return torch.mm(given.to(self.dtype), values.to(self.dtype).T, out=out)
