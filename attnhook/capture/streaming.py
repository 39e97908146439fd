"""Measures attention while the model runs and keeps no operand: for forwards whose memory is spoken for, as in training.

`AttentionCapture(rows="all")` keeps queries and keys of all blocks until it is cleared. Here each block is handed to a function while its call
runs, without autograd and autocast, and only what that function gives is kept.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from attnhook.capture.anatomy import Readout
from attnhook.capture.forward_records import measured
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import BlockAttention
from attnhook.capture.session import AttentionCapture
from attnhook.errors import NothingCapturedError
from attnhook.options import BlocksOption


class MeasuringCapture(AttentionCapture):
    """A capture that keeps what `measure` gives for every block, and none of its rows.

    `measure` takes a block with its implicit matrix (of a model with an explicit softmax, the matrix that it computed) and what the model's head
    reads; what it gives must hold no part of the block. `saw_outcome` is told of each fused call: the block's name, its values
    `(batch, key heads, keys, value_dim)` and its output `(batch, heads, queries, value_dim)`.
    """

    def __init__(
        self,
        model: nn.Module,
        measure: Callable[[BlockAttention, Readout], Any],
        *,
        saw_outcome: Callable[[str, Tensor, Tensor], None] | None = None,
        blocks: BlocksOption = None,
        layout: TokenLayout | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(model, blocks=blocks, rows="all", layout=layout, strict=strict)
        for recorder in self._recorders:
            recorder.measure, recorder.saw_outcome = measure, saw_outcome

    @property
    def measured(self) -> list[tuple[str, Any]]:
        """Each block's name and measurement, of the last forward; errors as those of `maps`."""
        forwards = self._log.seen()
        if not forwards or forwards[-1].is_empty():
            raise NothingCapturedError(self._why_nothing())
        return measured(forwards[-1], self._plan)
