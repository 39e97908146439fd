"""Memory for copied queries and keys that outlives the forward it was taken for.

Taken afresh, it can cost a forward more in page faults than the copying does: whoever reads the maps drops them, the heap may go back to the
operating system, and the next forward then has it zeroed once more.
"""

from sys import getrefcount

import torch
from torch import Tensor

_use_count = torch._C._storage_Use_Count
_modes = torch._C._len_torch_dispatch_stack


class CopyMemory:
    """Memory for the copies of one module's queries and keys, used again as soon as nobody holds anything that lies in it.

    Only the CPU's: elsewhere the allocator of torch keeps memory itself, and another stream may still read it.
    """

    __slots__ = ("_alone", "_both")

    def __init__(self) -> None:
        self._both: Tensor | None = None
        self._alone = 0, 0  # how often it is held while nobody else does

    def stacked(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of both, side by side: a heap of many small pieces is larger than their sum.

        Args:
            query: `(batch, heads, tokens, head_dim)`.
            key: Likewise.

        Returns:
            The copies, contiguous, of the same shapes; their memory is theirs until the last view of it is dropped.
        """
        if not _is_plain(query, key):
            self.forget()
            one, other = torch.stack((query, key)).unbind(0)
            return one, other
        both = self._both
        if both is None or not self._fits(both, query) or _holders(both) != self._alone:
            self.forget()
            both = self._both = query.new_empty((2, *query.shape))
            self._alone = _holders(both)
        torch.stack((query, key), out=both)
        one, other = both.detach().unbind(0)  # whose base is another tensor, so that holding that is told, too
        return one, other

    def forget(self) -> None:
        """Give the memory back: it is freed with the last copy in it."""
        self._both = None

    @staticmethod
    def _fits(both: Tensor, query: Tensor) -> bool:
        kind = query.shape, query.dtype, torch.is_inference_mode_enabled()
        return (both.shape[1:], both.dtype, both.is_inference()) == kind


def _is_plain(query: Tensor, key: Tensor) -> bool:
    """Whether they are what they seem, and nobody watches what is done with them."""
    plain = type(query) is Tensor and type(key) is Tensor and query.is_cpu
    return plain and not _modes()


def _holders(tensor: Tensor) -> tuple[int, int]:
    """How often its storage is held: by tensors, views, arrays and graphs; and by those who hold the storage itself."""
    storage = tensor.untyped_storage()
    return _use_count(storage._cdata), getrefcount(storage)
