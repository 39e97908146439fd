"""What a capture stores while an answer is made: the ids that went in, and the attention logits of the wanted queries of every layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnhook.errors import AttnhookError, BlockNotCapturedError, UnsupportedModelError

HIDDEN = -3e4
"""Logits below this are of masked keys: half of the lowest float16, which masks of that type add."""


@dataclass(slots=True, eq=False)
class Logits:
    """The logits of one layer's wanted queries."""

    values: Tensor  # (batch, heads, queries, keys)
    beyond: Tensor | None = None  # the largest after the last token; a static cache is longer than the sequence

    @classmethod
    def of(cls, values: Tensor, total: int | None) -> "Logits":
        """Without the keys after the first `total`; None: all keys."""
        if total is None or values.shape[-1] <= total:
            return cls(values)
        return cls(values[..., :total].clone(), values[..., total:].amax())

    def check(self) -> None:
        """Raise if a key that was cut off is attended."""
        if self.beyond is not None and float(self.beyond) > HIDDEN:
            raise UnsupportedModelError(
                "the keys of an attention call cannot be matched to tokens: expected those beyond the last token to be masked, got keys that "
                "are attended. Use a dynamic cache, or use_cache=False."
            )


@dataclass(slots=True, eq=False)
class Step:
    """One forward."""

    start: int  # tokens before this forward
    length: int  # tokens that went in
    batch: int
    queries: list[int]  # positions of the wanted queries in the sequence
    logits: dict[int, Logits] = field(default_factory=dict)  # by layer

    @property
    def total(self) -> int:
        """Tokens so far, this forward's included."""
        return self.start + self.length

    @property
    def index(self) -> slice | list[int]:
        """The wanted queries among those of this forward."""
        own = [position - self.start for position in self.queries]
        return slice(own[0], own[-1] + 1) if own == list(range(own[0], own[-1] + 1)) else own


@dataclass(eq=False)
class AnswerRecord:
    """One run of `generate`, or forwards that continue each other."""

    generating: bool = False
    batch: int | None = None  # number of prompts that `generate` was given
    prompt: int | None = None  # their length
    ended: bool = False  # whether `generate` has returned
    sequences: Tensor | None = None  # what it returned
    end_ids: tuple[int, ...] = ()
    pad_id: int | None = None  # None: it is an end id, or there is none
    stops: bool = False  # whether something else than an end id may end one answer of a batch, which is then padded
    image_id: int | None = None  # of forwards: the tokens after the last of these are wanted
    steps: list[Step] = field(default_factory=list)
    pieces: list[Tensor] = field(default_factory=list)  # ids of the sequence, as they went in
    facts: dict[str, Any] = field(default_factory=dict)
    error: AttnhookError | None = None

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Store arguments that were not seen yet."""
        self.facts = {**facts, **self.facts}

    @property
    def total(self) -> int:
        """Tokens that went in."""
        return sum(piece.shape[1] for piece in self.pieces)

    def ids(self) -> Tensor:
        """The sequence, `(batch, tokens)` int64 on the CPU, after checking that what went in is what `generate` returned."""
        fed = torch.cat(self.pieces, dim=1).cpu()
        if self.sequences is None:
            return fed
        returned = self.sequences.cpu()
        count = fed.shape[1]
        same = len(returned) == len(fed) and returned.shape[1] in (count, count + 1)
        if not same or not torch.equal(returned[:, :count], fed):
            raise UnsupportedModelError(
                "the answer's rows cannot be matched to its tokens: expected generate to feed every token once and in order, got sequences of "
                f"shape {tuple(returned.shape)} that differ from the ids that went in, {tuple(fed.shape)}. Use greedy search or sampling."
            )
        return returned

    def check_layers(self, names: tuple[str, ...]) -> None:
        """Raise if a layer was not seen in a forward that others completed."""
        for step in self.steps:
            missing = [name for number, name in enumerate(names) if number not in step.logits]
            if missing:
                raise BlockNotCapturedError(
                    f"the attention of {missing[0]!r} was not seen in a forward of {step.length} tokens ({len(missing)} of {len(names)} "
                    "layers): expected a call of scaled_dot_product_attention, a softmax, or a function at transformers' attention interface. "
                    "Load the model with attn_implementation='sdpa' or 'eager', and pass it an image."
                )
