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
        scores: Those of all calls that share its memory, `(calls * batch, heads, rows, keys)`.
        images: The parts for this call's images, `(heads, rows, keys)` each.
        first: Where in `scores` they stand.
        head_dim: Width of a head.

    Attributes:
        scale: Factor on the scores; None is `head_dim ** -0.5`.
    """

    __slots__ = ("first", "head_dim", "images", "scale", "scores")

    kernel = "scaled_dot_product_attention"
    tokens = None
    beside = None

    def __init__(self, scores: Tensor, images: Sequence[Tensor], first: int, head_dim: int) -> None:
        self.scores = scores
        self.images = images
        self.first = first
        self.head_dim = head_dim
        self.scale: float | None = None

    def finished(self) -> Tensor:
        """The softmax rows, `(batch, heads, queries, keys)` float32."""
        scores = self.scores[self.first : self.first + len(self.images)]
        return torch.softmax(scores * self.factor, dim=-1)

    @property
    def factor(self) -> float:
        """The scale as a number."""
        return self.head_dim**-0.5 if self.scale is None else self.scale


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
        kind: As given.
        on_cpu: Whether it is the CPU's.
        waiting: The calls that have not come yet, the next one last.
        place: Where operands lie in their memory for which `views` hold: strides and offset of the queries, then of the keys.
        views: For each image the arguments of `as_strided` which give its wanted queries, and its keys as `(heads, head_dim, keys)`.
    """

    __slots__ = ("_calls", "_keys", "_rows", "_shape", "kind", "on_cpu", "place", "views", "waiting")

    def __init__(self, kind: tuple[Any, ...], query: Tensor, key: Tensor, rows: slice, calls: int) -> None:
        self.kind = kind
        self.on_cpu = query.is_cpu
        self._shape = batch, heads, queries, head_dim = query.shape
        self._keys, self._rows = key.shape[2], range(*rows.indices(queries))
        scores = query.new_empty(max(calls, 1) * batch, heads, len(self._rows), self._keys)
        images = scores.unbind(0)
        # They hold no reference to this object: what is no longer needed is freed at once, not by a collection some time later.
        self._calls = [
            PlainCall(scores, images[first : first + batch], first, head_dim)
            for first in reversed(range(0, len(images), batch))
        ]
        self.place: tuple[Any, ...] = ()
        self.views: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []
        self.empty()

    def empty(self) -> None:
        """Take back what was given away: no call that was kept here is needed any more."""
        self.waiting = self._calls[:]

    def find_views(self, place: tuple[tuple[int, ...], int, tuple[int, ...], int]) -> None:
        """Work out the views of operands that lie in their memory like these.

        Args:
            place: Strides and offset of the queries, then of the keys.
        """
        (image, head, token, channel), first, (key_image, key_head, key_token, key_channel), first_key = place
        batch, heads, _, head_dim = self._shape
        wanted = (heads, len(self._rows), head_dim), (head, token * self._rows.step, channel)
        transposed = (heads, head_dim, self._keys), (key_head, key_channel, key_token)
        first += token * self._rows.start
        self.views = [((*wanted, first + n * image), (*transposed, first_key + n * key_image)) for n in range(batch)]
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
    scores, scale, batch = first.scores, first.scale, len(first.images)
    if len(calls) * batch != len(scores):
        return None
    for call in calls:
        if not isinstance(call, PlainCall) or call.scores is not scores or call.scale != scale:
            return None
    weights = torch.softmax(scores * first.factor, dim=-1)
    return list(cast("Sequence[Tensor]", _split_copy(weights, batch)))
