"""Memory for copied queries and keys that outlives the forward it was taken for.

Taken afresh, it can cost a forward more in page faults than the copying does: whoever reads the maps drops them, the heap may go back to the
operating system, and the next forward then has it zeroed once more.
"""

from sys import getrefcount

import torch
from torch import Tensor

LINE_BYTES = 64
"""Size of a line of a CPU's cache."""

_use_count = torch._C._storage_Use_Count
_modes = torch._C._len_torch_dispatch_stack


class CopyMemory:
    """Memory for the copies of one forward's queries and keys, used again as soon as nobody holds anything that lies in it.

    One piece for all blocks: a piece for each, taken between the model's own large tensors, breaks up the heap and raises its peak. Who still
    holds maps when the next context opens may want to keep some blocks of each forward, which must not keep those of all others: their captures
    get a piece a call from then on.

    Only the CPU's: elsewhere the allocator of torch keeps memory itself, and another stream may still read it.

    Args:
        calls: How many calls of one size to expect in a forward; what is not written to is not there, so that too many cost nothing.
    """

    __slots__ = ("_alone", "_apart", "_calls", "_end", "_piece")

    def __init__(self, calls: int = 1) -> None:
        self._calls = calls
        self._piece: Tensor | None = None
        self._alone = 0, 0  # how often it is held while nobody else does
        self._end = 0  # of what is given away
        self._apart = False

    def stacked(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of both, side by side.

        Args:
            query: `(batch, heads, tokens, head_dim)`.
            key: Likewise.

        Returns:
            The copies, contiguous, of the same shapes; their memory is theirs until the last view of it is dropped.
        """
        if self._apart or not _is_plain(query, key):
            self.forget()
            one, other = torch.stack((query, key)).unbind(0)
            return one, other
        wanted = 2 * query.nbytes
        both = self._room(query, wanted)[:wanted].view(query.dtype).view(2, *query.shape)
        torch.stack((query, key), out=both)
        one, other = both.unbind(0)
        return one, other

    def _room(self, query: Tensor, wanted: int) -> Tensor:
        """Memory that nobody holds, as bytes: as many as wanted or more."""
        piece = self._piece
        if piece is not None and _holders(piece) == self._alone:
            self._end = 0
        inference = torch.is_inference_mode_enabled()
        step = -(-wanted // LINE_BYTES) * LINE_BYTES
        if piece is None or piece.is_inference() != inference or self._end + wanted > piece.nbytes:
            piece = self._piece = query.new_empty(step * (self._calls - 1) + wanted, dtype=torch.uint8)
            self._alone, self._end = _holders(piece), 0
        first, self._end = self._end, self._end + step
        # Another tensor, so that whoever holds its base is told of, with a version of its own, which later calls' copies leave alone.
        return piece.data[first:]

    def begin(self) -> None:
        """Tell that a context opens: what the last one captured is forgotten."""
        if self._piece is not None and _holders(self._piece) != self._alone:
            self._apart = True
            self.forget()

    def forget(self) -> None:
        """Give the memory back: it is freed with the last copy in it."""
        self._piece, self._end = None, 0


def _is_plain(query: Tensor, key: Tensor) -> bool:
    """Whether they are what they seem, and nobody watches what is done with them."""
    plain = type(query) is Tensor and type(key) is Tensor and query.is_cpu
    return plain and not _modes()


def _holders(tensor: Tensor) -> tuple[int, int]:
    """How often its storage is held: by tensors, views, arrays and graphs; and by those who hold the storage itself."""
    storage = tensor.untyped_storage()
    return _use_count(storage._cdata), getrefcount(storage)
