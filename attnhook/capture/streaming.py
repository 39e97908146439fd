"""Measures attention while the model runs and stores no operands: for forwards whose memory is needed, as in training."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from attnhook.capture.anatomy import Readout
from attnhook.capture.forward_records import measured
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import BlockAttention
from attnhook.capture.session import AttentionCapture
from attnhook.options import BlocksOption


class MeasuringCapture(AttentionCapture):
    """A capture that stores the result of `measure` for every block, and none of its rows.

    `measure` runs during a block's call, without autograd and autocast; its result must not refer to the block. `on_output` gets the block's
    name, values `(batch, key heads, keys, value_dim)` and output `(batch, heads, queries, value_dim)` of each fused call.
    """

    def __init__(
        self,
        model: nn.Module,
        measure: Callable[[BlockAttention, Readout], Any],
        *,
        on_output: Callable[[str, Tensor, Tensor], None] | None = None,
        blocks: BlocksOption = None,
        layout: TokenLayout | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(model, blocks=blocks, rows="all", layout=layout, strict=strict)
        for recorder in self._recorders:
            recorder.measure, recorder.on_output = measure, on_output

    @property
    def measured(self) -> list[tuple[str, Any]]:
        """Each block's name and measurement, of the last forward; errors as those of `maps`."""
        return measured(self._last_record(), self._plan)
