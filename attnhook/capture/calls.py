"""What is kept of one attention call until the maps are read."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.operands import softmax_rows
from attnhook.capture.output_gradients import CapturedGradients
from attnhook.capture.sites import SiteTokens
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import RowsNotKeptError


@dataclass(slots=True, eq=False)
class CapturedCall:
    """What is kept of one attention call: finished rows, the implicit matrix, logits whose softmax waits, or what somebody measured."""

    site: str
    kernel: str
    kept: Tensor | SoftmaxMatrix | None = None
    logits: Tensor | None = None  # of the wanted rows
    images: slice | None = None  # which images of the logits are this call's; None where all are
    scale: float = 1.0  # factor that the logits lack
    masked: bool = False  # whether keys of them may be hidden
    tokens: SiteTokens | None = None  # what its tokens are, where the module itself tells
    gradients: CapturedGradients | None = None
    measured: Any = None

    def finished(self) -> Tensor | SoftmaxMatrix:
        """The softmax rows, `(batch, heads, queries, keys)` float32, or the matrix."""
        if self.logits is not None:
            logits = self.logits if self.images is None else self.logits[self.images]
            return softmax_rows(logits if self.scale == 1 else logits * self.scale, masked=self.masked)
        if self.kept is None:
            raise RowsNotKeptError(
                "only measurements were kept: expected rows. Capture with AttentionCapture for maps."
            )
        return self.kept.clone() if isinstance(self.kept, Tensor) and self.kept.is_inference() else self.kept

    def to(self, device: torch.device) -> "CapturedCall":
        """The same on another device; values and gradients stay where they are."""
        kept = None if self.kept is None else self.kept.to(device)
        return replace(self, kept=kept, logits=None if self.logits is None else self.logits.to(device))
