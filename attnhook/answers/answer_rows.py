"""From stored logits to the answers: softmax rows over each image's tokens, and the mass on everything else."""

from typing import Any

import torch
from torch import Tensor

from attnhook.answers.answer_reading import Answer
from attnhook.answers.answer_records import HIDDEN, AnswerRecord, Step
from attnhook.capture.operands import softmax_rows
from attnhook.errors import NothingCapturedError, UnsupportedModelError
from attnhook.zoo.image_tokens import ImageTokens
from attnhook.zoo.vision_language import VisionLanguageModel

MASSES = ("image", "first", "text", "words", "other")
"""Where the mass of a row lies: image tokens, the first token, the rest of the prompt, the answer so far, keys that are none of these."""


def finish(
    record: AnswerRecord, about: VisionLanguageModel, names: tuple[str, ...], processor: Any
) -> tuple[Answer, ...]:
    """Make the answers; frees the logits on the way."""
    record.check_layers(names)
    ids = record.ids()
    wanted = _wanted(record, ids)
    keys = record.steps[0].logits[0].values.shape[-1]
    start = record.steps[0].total if record.generating and record.prompt is None else record.prompt
    repeats = len(ids) // (record.batch or len(ids))  # of each prompt, with num_return_sequences
    images = [one for one in about.images(ids[::repeats, :start], record.facts, keys) for _ in range(repeats)]
    if not all(images):
        raise NothingCapturedError(
            "no image in the prompt: expected image tokens in every prompt of the batch, got a prompt without. Leave such prompts out."
        )
    heads = {step.logits[layer].values.shape[1] for step in record.steps for layer in range(len(names))}
    if len(heads) > 1:
        raise UnsupportedModelError(
            f"the layers cannot be put into one tensor: expected one number of heads, got {sorted(heads)}. Please report it."
        )
    each = [
        _Table(ids[number], positions, images[number], (len(names), next(iter(heads))), _first(record, ids, number))
        for number, positions in enumerate(wanted)
    ]
    for layer in range(len(names)):
        queries, weights, seen = _layer_rows(record.steps, layer, len(ids), None if about.cross else ids.shape[1])
        for number, table in enumerate(each):
            table.fill(layer, queries, weights[number], seen[number], cross=about.cross)
    record.steps.clear()
    return tuple(table.answer(names, processor) for table in each)


def _layer_rows(steps: list[Step], layer: int, batch: int, length: int | None) -> tuple[list[int], Tensor, Tensor]:
    """The queries, their rows `(batch, queries, heads, tokens)` over a sequence (None: all keys), the keys each saw; frees the logits."""
    queries = sorted({query for step in steps for query in step.queries})
    first = steps[0].logits[layer].values
    shape = batch, len(queries), first.shape[1], first.shape[-1] if length is None else length
    logits = first.new_full(shape, -torch.inf)
    for step in steps:
        own = step.logits.pop(layer)
        own.check()
        keys = own.values.shape[-1]
        start = 0 if length is None else max(step.total - keys, 0)  # what is missing in front lies outside a window
        at = queries.index(step.queries[0])
        logits[:, at : at + len(step.queries), :, start : start + keys] = own.values.transpose(1, 2)
    seen = (logits[:, :, 0] > HIDDEN).sum(-1)
    return queries, softmax_rows(logits, masked=True).cpu(), seen.cpu()


def _wanted(record: AnswerRecord, ids: Tensor) -> list[list[int]]:
    """The positions of the tokens whose rows were captured, of each prompt: up to the end of the answer, without padding."""
    queries = sorted({query for step in record.steps for query in step.queries})
    positions = [query + 1 for query in queries if query + 1 < ids.shape[1]]
    if record.generating:
        start = record.steps[0].total if record.prompt is None else record.prompt
        positions = [position for position in positions if position >= start]
    found = []
    mask = record.facts.get("attention_mask")
    for number, row in enumerate(ids.tolist()):
        own = list(positions)
        if record.generating:
            end = next((n for n, position in enumerate(own) if row[position] in record.end_ids), len(own))
            own = own[: end + 1]
            while own and record.stops and len(ids) > 1 and row[own[-1]] == record.pad_id:
                own.pop()
        elif isinstance(mask, Tensor) and mask.dim() == 2:
            hidden = set((mask[number] == 0).nonzero()[:, 0].tolist())
            own = [position for position in own if hidden.isdisjoint((position - 1, position))]
        if record.image_id in row:  # others of the batch may have theirs earlier
            end = len(row) - row[::-1].index(record.image_id)
            own = [position for position in own if position >= end]
        if not own:
            raise NothingCapturedError(
                f"no token of prompt {number} has a row: expected tokens after the image, got none. Generate some, or choose tokens=."
            )
        found.append(own)
    return found


def _first(record: AnswerRecord, ids: Tensor, number: int) -> int:
    """The position of the first token that is not padding."""
    mask = record.facts.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        if record.pad_id is None:
            return 0
        mask = ids != record.pad_id  # as generate makes one
    return int((mask[number * len(mask) // len(ids)] != 0).int().argmax())  # with num_return_sequences, of each prompt


class _Table:
    """The rows of one answer, as they are filled in."""

    def __init__(
        self, ids: Tensor, positions: list[int], images: list[ImageTokens], layers_heads: tuple[int, int], first: int
    ) -> None:
        self._ids, self._positions, self._images, self._first = ids, positions, images, first
        shape = (len(positions), *layers_heads)
        self._rows = [torch.zeros(*shape, len(image.keys)) for image in images]
        self._mass = {name: torch.zeros(*shape) for name in MASSES}
        self._keys = torch.zeros(*shape[:2])

    def fill(self, layer: int, queries: list[int], weights: Tensor, seen: Tensor, *, cross: bool) -> None:
        """Put in one layer's rows, `(queries, heads, tokens)`, and the numbers of keys that the queries saw."""
        wanted = [queries.index(position - 1) for position in self._positions]
        self._keys[:, layer] = seen[wanted].float()
        own = weights if wanted == list(range(len(weights))) else weights[wanted]
        for image, rows in zip(self._images, self._rows, strict=True):
            rows[:, layer] = own[..., _run(image.keys)]
        for name, mass in zip(MASSES, (own @ self._groups(own.shape[-1], cross)).unbind(-1), strict=True):
            self._mass[name][:, layer] = mass

    def _groups(self, keys: int, cross: bool) -> Tensor:
        """Which of `MASSES` each key belongs to: `(keys, groups)`, one 1 per key."""
        group = torch.full((keys,), MASSES.index("other" if cross else "text"))
        if not cross:
            group[self._positions[0] :] = MASSES.index("words")
            group[self._first] = MASSES.index("first")
        group[torch.cat([image.keys for image in self._images])] = MASSES.index("image")
        return torch.nn.functional.one_hot(group, len(MASSES)).float()

    def answer(self, names: tuple[str, ...], processor: Any) -> Answer:
        """The answer."""
        ids = tuple(self._ids[self._positions].tolist())
        return Answer(
            token_ids=ids,
            images=tuple(self._images),
            rows=tuple(self._rows),
            mass=self._mass,
            layers=names,
            processor=processor,
            keys=self._keys,
        )


def _run(keys: Tensor) -> Tensor | slice:
    """Keys that follow each other as a slice, which is read much faster."""
    first, last = int(keys[0]), int(keys[-1])
    return slice(first, last + 1) if torch.equal(keys, torch.arange(first, last + 1)) else keys
