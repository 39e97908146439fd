"""Memory for the commonest calls: a few rows of plain float32 operands, written by one product an image, their softmax left for later.

On a small model a row costs what it takes to touch cold memory between the model's own products, so there is little to touch: operands are
viewed through strides that were worked out at the first call, and whatever can be made before a call is.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

_split_copy: Any = torch.split_copy  # torch's stubs say that it returns nothing


class PlainCall:
    """One attention call whose scores wait for their scale and softmax.

    Args:
        memory: Where they are.
        first: Where in it those of this call's first image stand.

    Attributes:
        images: The parts to write them to, one an image, `(heads, rows, keys)` each.
        scale: Factor on the scores; None is `head_dim ** -0.5`.
    """

    __slots__ = ("first", "images", "memory", "scale")

    kernel = "scaled_dot_product_attention"
    tokens = None
    beside = None

    def __init__(self, memory: "ScoreMemory", first: int) -> None:
        self.memory = memory
        self.first = first
        self.images: Sequence[Tensor] = memory.images[first : first + memory.batch]
        self.scale: float | None = None

    def finished(self) -> Tensor:
        """The softmax rows, `(batch, heads, queries, keys)` float32."""
        scores = self.memory.scores[self.first : self.first + self.memory.batch]
        return torch.softmax(scores * self.factor, dim=-1)

    @property
    def factor(self) -> float:
        """The scale as a number."""
        return self.memory.head_dim**-0.5 if self.scale is None else self.scale


class ScoreMemory:
    """Memory for the scores of one forward's plain calls of one kind: one piece for all blocks.

    A piece for each, taken between the model's own large ones, would break up the heap and raise its peak by many times their size.

    Args:
        kind: What calls must have in common to share it.
        query: `(batch, heads, queries, head_dim)` of the first of them.
        key: `(batch, heads, keys, head_dim)`.
        rows: The wanted queries.
        calls: How many calls to expect.

    Attributes:
        scores: `(calls * batch, heads, rows, keys)`, of the queries' dtype and device, with nothing in it at first.
        images: Its parts, `(heads, rows, keys)` each.
        waiting: The calls that have not come yet, the next one last.
        place: Where operands lie in their memory for which `views` hold: strides and offset of the queries, then of the keys.
        views: For each image the arguments of `as_strided` which give its wanted queries and its keys, `(heads, head_dim, keys)`.
        batch: Number of images.
        calls: How many calls there is room for.
        head_dim: Width of a head.
    """

    __slots__ = (
        "_all",
        "_keys",
        "_rows",
        "batch",
        "calls",
        "head_dim",
        "heads",
        "images",
        "kind",
        "place",
        "scores",
        "views",
        "waiting",
    )

    def __init__(self, kind: tuple[Any, ...], query: Tensor, key: Tensor, rows: slice, calls: int) -> None:
        self.kind = kind
        self.batch, self.heads, queries, self.head_dim = query.shape
        self.calls, self._keys = max(calls, 1), key.shape[2]
        self._rows = range(*rows.indices(queries))
        self.scores = query.new_empty(self.calls * self.batch, self.heads, len(self._rows), self._keys)
        self.images = self.scores.unbind(0)
        self._all = [PlainCall(self, n * self.batch) for n in reversed(range(self.calls))]
        self.empty()
        self.place: tuple[Any, ...] = ()
        self.views: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []

    def empty(self) -> None:
        """Take back what was given away: no call that was kept here is needed any more."""
        self.waiting = self._all[:]

    def find_views(self, place: tuple[tuple[int, ...], int, tuple[int, ...], int]) -> None:
        """Work out the views of operands that lie in their memory like these.

        Args:
            place: Strides and offset of the queries, then of the keys.
        """
        (image, head, token, channel), first, (key_image, key_head, key_token, key_channel), first_key = place
        wanted = (self.heads, len(self._rows), self.head_dim), (head, token * self._rows.step, channel)
        transposed = (self.heads, self.head_dim, self._keys), (key_head, key_channel, key_token)
        first += token * self._rows.start
        self.views = [
            ((*wanted, first + n * image), (*transposed, first_key + n * key_image)) for n in range(self.batch)
        ]
        self.place = place


def finish_together(calls: Sequence[Any]) -> list[Tensor] | None:
    """The softmax rows of calls that are all in one memory and fill it, by one softmax.

    Args:
        calls: Those of one forward, in the order in which they ran.

    Returns:
        Rows of each, `(batch, heads, rows, keys)` float32, each owning exactly its bytes; None if the calls are not of that kind.
    """
    first = calls[0]
    if not isinstance(first, PlainCall):
        return None
    memory, scale = first.memory, first.scale
    if len(calls) != memory.calls or memory.waiting:
        return None
    for call in calls:
        if not isinstance(call, PlainCall) or call.memory is not memory or call.scale != scale:
            return None
    weights = torch.softmax(memory.scores * first.factor, dim=-1)
    return list(cast("Sequence[Tensor]", _split_copy(weights, memory.batch)))
