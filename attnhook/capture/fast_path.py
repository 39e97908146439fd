"""The commonest calls: a few rows of float32 operands, without mask and autograd, kept by one product an image.

On a small model a row costs what it takes to run a few more operations between the model's own, so there are as few as can be. The logits of a
forward's blocks lie in one piece of memory: a piece for each, taken between the model's own large tensors, would break up the heap. One
softmax finishes them all, into memory that is the user's; the piece is then dropped.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.calls import CapturedCall
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.torch_internals import current_transform

# Looked up once.
_bmm, _is_grad_enabled, _is_inference_mode_enabled = torch.bmm, torch.is_grad_enabled, torch.is_inference_mode_enabled
_split_copy: Any = torch.split_copy  # torch's stubs say that it returns nothing


class FastLogits:
    """The logits of one forward's calls of one `kind`, as `kind_of` gives it: room for so many calls as large as the first."""

    __slots__ = ("_images", "_logits", "_next", "_rows", "_scale", "full", "kind")

    def __init__(self, kind: tuple[Any, ...], query: Tensor, key: Tensor, rows: slice, calls: int) -> None:
        self.kind = kind
        batch, heads, queries, head_dim = query.shape
        count = len(range(*rows.indices(queries)))
        self._logits = query.new_empty(max(calls, 1) * batch, heads, count, key.shape[2])
        self._images = self._logits.unbind(0)
        self._rows, self._scale, self._next, self.full = rows, head_dim**-0.5, 0, False

    def keep(self, site: str, query: Tensor, key: Tensor, scale: float | Tensor | None) -> CapturedCall:
        """Keep the wanted rows of a call: queries `(batch, heads, queries, head_dim)`, keys likewise."""
        first, rows = self._next, self._rows
        self._next = last = first + len(query)
        self.full = last == len(self._images)
        # One product an image: a batched one would first copy all keys, whose (batch, head) strides do not merge.
        for image, out in enumerate(self._images[first:last]):
            _bmm(query[image, :, rows], key[image].mT, out=out)
        factor = self._scale if scale is None else float(scale)  # a tensor may change before the maps are read
        return CapturedCall(
            site, "scaled_dot_product_attention", logits=self._logits, images=slice(first, last), scale=factor
        )


def kind_of(query: Tensor, key: Tensor, *asked: Any) -> tuple[Any, ...]:
    """What calls must have in common, so that what holds for one of them holds for all."""
    modes = _is_grad_enabled(), _is_inference_mode_enabled(), current_transform()
    return type(query), type(key), query.shape, key.shape, query.dtype, key.dtype, query.device, modes, asked


def is_plain(query: Tensor, key: Tensor, *, of_sequence: bool) -> bool:
    """Whether a call without mask may be kept as logits alone; `of_sequence`: only with one query for every key.

    Autocast may be on: products into given memory stay in float32.
    """
    if _is_grad_enabled() or current_transform() is not None:
        return False
    if type(query) is not Tensor or type(key) is not Tensor:  # what others hold may lie otherwise than they say
        return False
    if query.dtype is not torch.float32 or key.dtype is not torch.float32:
        return False
    shape, keys = query.shape, key.shape
    if len(shape) != 4 or not shape[0]:
        return False
    return shape == keys or not (of_sequence or len(keys) != 4 or shape[:2] != keys[:2])


def finish_together(calls: Sequence[CapturedCall]) -> list[Tensor | SoftmaxMatrix]:
    """What `finished` gives of each of a forward's calls; by one softmax, if all lie in one piece and fill it. Rows own their bytes."""
    first = calls[0] if calls else None
    if first is None or first.logits is None or first.images is None:
        return [call.finished() for call in calls]
    batch = first.images.stop
    if len(calls) * batch != len(first.logits) or any(
        call.logits is not first.logits or call.scale != first.scale for call in calls
    ):
        return [call.finished() for call in calls]
    return list(_split_copy(torch.softmax(first.logits * first.scale, dim=-1), batch))
