"""Stores the attention logits of the wanted queries while the layers of a language model run; its listeners of scopes."""

from typing import Any

import torch
from torch import Tensor

from attnhook.answers.answer_records import AnswerRecord, Logits, Step
from attnhook.capture.forward_records import ForwardRecord
from attnhook.capture.operands import Operands, as_index, exact_arithmetic, sdpa_operands
from attnhook.errors import AttnhookError, UnsupportedModelError

_STEPS = 16
"""Steps whose logits share a piece of memory."""


class CurrentAnswer:
    """The answer that is being made, and the forward that is running."""

    def __init__(self, names: tuple[str, ...], cross: bool) -> None:
        self.record = AnswerRecord()
        self.step: Step | None = None  # None: no row of this forward is wanted
        self._names, self._cross = names, cross
        self._blocks: dict[int, tuple[Tensor, int]] = {}  # by layer, and how many steps are in each

    def begin(self, record: AnswerRecord) -> None:
        """Go on with another answer."""
        self.record, self.step = record, None
        self._blocks.clear()

    def end(self) -> None:
        """Hold nothing but the record."""
        self.step = None
        self._blocks.clear()

    def refused(self, error: Exception, layer: int) -> None:
        """Store why a call could not be recorded, to be raised when the answer is read; the model's forward goes on."""
        if not isinstance(error, AttnhookError):
            unforeseen = UnsupportedModelError(
                f"an attention call of {self._names[layer]!r} could not be recorded: {type(error).__name__}: {error}. Please report it."
            )
            unforeseen.__cause__ = error
            error = unforeseen
        self.record.error = self.record.error or error

    def store(self, layer: int, logits: Tensor) -> None:
        """Store the logits of this forward's wanted queries in one layer."""
        step = self.step
        if step is None:
            return
        if layer in step.logits:
            raise UnsupportedModelError(
                f"layer {self._names[layer]!r} attended twice in one forward: expected once. Please report it with the model's configuration."
            )
        made = Logits.of(logits, None if self._cross else step.total)
        if made.values.shape[2] == 1:
            made.values = self._together(layer, made.values)
        step.logits[layer] = made

    def _together(self, layer: int, values: Tensor) -> Tensor:
        """One query's logits, in memory that several steps of a layer share: small pieces of the heap would not be given back."""
        batch, heads, _, keys = values.shape
        block, used = self._blocks.get(layer, (values, _STEPS))
        fits = block.shape[:2] == (batch, heads) and block.shape[-1] >= keys and block.dtype is values.dtype
        if used == _STEPS or not fits:
            block, used = values.new_empty(batch, heads, _STEPS, keys + _STEPS), 0
        mine = block[:, :, used : used + 1, :keys]
        mine.copy_(values)
        self._blocks[layer] = block, used + 1
        return mine


class LayerListener:
    """Listens to the attention calls of one layer."""

    def __init__(self, now: CurrentAnswer, number: int) -> None:
        self._now, self._number = now, number

    def refused(self, record: ForwardRecord, error: Exception) -> None:
        """Store why a call could not be recorded."""
        self._now.refused(error, self._number)

    def fused(self, record: ForwardRecord, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Store the rows of a call of `scaled_dot_product_attention`."""
        self.operands(record, sdpa_operands(*args, **kwargs), "scaled_dot_product_attention")

    def operands(self, record: ForwardRecord, call: Operands, kernel: str, result: Any = None) -> None:
        """Store the rows of a call by its operands."""
        step = self._now.step
        if step is not None:
            with exact_arithmetic(call.query.device.type):
                call = _unpacked(call, step.length)
                if call.query.shape[2] != step.length:
                    raise UnsupportedModelError(
                        f"an attention call does not fit the forward: expected {step.length} queries, one per token, got {call.query.shape[2]}. "
                        "Please report it with the model's configuration."
                    )
                self._now.store(self._number, call.logits(as_index(step.index, call.query.device)))

    def softmax(self, record: ForwardRecord, logits: Tensor, weights: Tensor) -> None:
        """Store the rows of an explicit softmax over keys."""
        step = self._now.step
        if step is not None and logits.dim() == 3 and logits.shape[0] % step.batch == 0:  # heads merged into the batch
            logits = logits.reshape(step.batch, -1, *logits.shape[1:])
        if step is None or logits.dim() != 4 or logits.shape[2] != step.length:
            return
        with exact_arithmetic(logits.device.type):
            kind = torch.float64 if logits.dtype is torch.float64 else torch.float32
            rows = logits.detach()[:, :, as_index(step.index, logits.device)]
            self._now.store(self._number, rows.to(kind, copy=True))


def _unpacked(call: Operands, length: int) -> Operands:
    """The operands with one query per token: transformers folds the heads that share a key into the queries of a single token."""
    batch, heads, queries, dim = call.query.shape
    if queries == length or length != 1:
        return call
    mask = call.mask
    if mask is not None and mask.dim() == 4 and mask.shape[1] > 1:
        mask = mask.reshape(batch, heads * queries, 1, -1)
    return Operands(call.query.reshape(batch, heads * queries, 1, dim), call.key, call.scale, mask, call.causal)
