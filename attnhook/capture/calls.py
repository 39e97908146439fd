"""One captured attention call, and the fast path for the commonest calls: few rows of float32 operands, no mask, no autograd.

It takes as few operations as can be. The logits of a forward's blocks share one piece of memory (pieces between the model's own large tensors
would break up the heap), and one softmax finishes them all, into memory that is the user's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.operands import softmax_rows
from attnhook.capture.output_gradients import CapturedGradients
from attnhook.capture.sites import SiteTokens
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.torch_internals import current_transform
from attnhook.errors import RowsNotKeptError

# Looked up once.
_bmm, _is_grad_enabled, _is_inference_mode_enabled = torch.bmm, torch.is_grad_enabled, torch.is_inference_mode_enabled
_split_copy: Any = torch.split_copy  # torch's stubs say that it returns nothing


@dataclass(slots=True, eq=False)
class CapturedCall:
    """One attention call: its finished rows, its implicit matrix, logits without their softmax, or a measurement."""

    site: str
    kernel: str
    captured: Tensor | SoftmaxMatrix | None = None
    logits: Tensor | None = None  # of the wanted rows
    images: slice | None = None  # which images of the logits belong to this call; None: all
    scale: float = 1.0  # factor still to be applied to the logits
    masked: bool = False  # whether some keys may be hidden
    tokens: SiteTokens | None = None  # what its tokens are, where the site itself says
    gradients: CapturedGradients | None = None
    measured: Any = None

    def finished(self) -> Tensor | SoftmaxMatrix:
        """The softmax rows, `(batch, heads, queries, keys)` float32, or the matrix."""
        if self.logits is not None:
            logits = self.logits if self.images is None else self.logits[self.images]
            return softmax_rows(logits if self.scale == 1 else logits * self.scale, masked=self.masked)
        if self.captured is None:
            raise RowsNotKeptError("only measurements were stored: expected rows. Use AttentionCapture for maps.")
        rows = self.captured
        return rows.clone() if isinstance(rows, Tensor) and rows.is_inference() else rows

    def to(self, device: torch.device) -> "CapturedCall":
        """The same on another device; values and gradients stay where they are."""
        captured = None if self.captured is None else self.captured.to(device)
        return replace(self, captured=captured, logits=None if self.logits is None else self.logits.to(device))


def finish_together(calls: Sequence[CapturedCall]) -> list[Tensor | SoftmaxMatrix]:
    """`finished` of each of a forward's calls; by one softmax if they share one piece of memory and fill it. Rows own their bytes."""
    first = calls[0] if calls else None
    if first is not None and first.logits is not None and first.images is not None:
        batch, logits, scale = first.images.stop, first.logits, first.scale
        together = all(call.logits is logits and call.scale == scale for call in calls)
        if together and len(calls) * batch == len(logits):
            return list(_split_copy(torch.softmax(logits * scale, dim=-1), batch))
    return [call.finished() for call in calls]


class FastLogits:
    """The logits of one forward's calls of one `kind` (see `kind_of`): room for `calls` calls as large as the first."""

    __slots__ = ("_images", "_logits", "_next", "_rows", "_scale", "full", "kind")

    def __init__(self, kind: tuple[Any, ...], query: Tensor, key: Tensor, rows: Any, calls: int) -> None:
        self.kind = kind
        batch, heads, queries, head_dim = query.shape
        count = len(range(*rows.indices(queries)))
        self._logits = query.new_empty(max(calls, 1) * batch, heads, count, key.shape[2])
        self._images = self._logits.unbind(0)
        self._rows, self._scale, self._next, self.full = rows, head_dim**-0.5, 0, False

    def add(self, site: str, query: Tensor, key: Tensor, scale: float | Tensor | None) -> CapturedCall:
        """Compute the wanted rows of a call; queries and keys are `(batch, heads, tokens, head_dim)`."""
        images, rows = slice(self._next, self._next + len(query)), self._rows
        self._next = images.stop
        self.full = images.stop == len(self._images)
        # One product per image: a batched one would first copy all keys, whose (batch, head) strides do not merge.
        for image, out in enumerate(self._images[images]):
            _bmm(query[image, :, rows], key[image].mT, out=out)
        factor = self._scale if scale is None else float(scale)  # a tensor may change before the maps are read
        return CapturedCall(site, "scaled_dot_product_attention", logits=self._logits, images=images, scale=factor)


def kind_of(query: Tensor, key: Tensor, *wanted: Any) -> tuple[Any, ...]:
    """What calls must have in common, so that what holds for one of them holds for all."""
    modes = _is_grad_enabled(), _is_inference_mode_enabled(), current_transform()
    return type(query), type(key), query.shape, key.shape, query.dtype, key.dtype, query.device, modes, wanted


def is_plain(query: Tensor, key: Tensor, *, of_sequence: bool) -> bool:
    """Whether a call without mask may be stored as logits alone; `of_sequence`: only with one query for every key."""
    if _is_grad_enabled() or current_transform() is not None:
        return False
    # Subclasses may be laid out differently than they say. Autocast may be on: products into given memory stay in float32.
    if any(type(each) is not Tensor or each.dtype is not torch.float32 for each in (query, key)):
        return False
    shape, keys = query.shape, key.shape
    if len(shape) != 4 or not shape[0]:
        return False
    return shape == keys or not (of_sequence or len(keys) != 4 or shape[:2] != keys[:2])
