"""What holds for every prompt: rows are eager attention's, and with the rest they sum to one; any text, images, answers and padding."""

from functools import cache
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnhook import AnswerCapture
from tests.answers.families import BEFORE_5, IMAGE, llava, pixels, qwen2_vl
from tests.answers.test_answer_conditions import eager_matrices
from tests.answers.test_answer_rows import check

WORDS = st.lists(st.integers(3, 90), max_size=4)
EDGES = st.sampled_from([2, 4, 6])  # patches along an edge, of which two by two make a token


@cache
def models() -> dict[str, Any]:
    return {"llava": llava()[0], "qwen2_vl": qwen2_vl()[0]}


@st.composite
def batches(draw: Any, sides: tuple[str, ...] = ("left", "right")) -> tuple[str, dict[str, Any]]:
    """The model's name and a batch of prompts: one or two images each, of 16 tokens (LLaVA) or of any number (Qwen2-VL)."""
    family = draw(st.sampled_from(["llava", "qwen2_vl"]))
    rows, grids = [], []
    for _ in range(draw(st.integers(1, 3))):
        row = [1, *draw(WORDS)]
        for _ in range(draw(st.integers(1, 2))):
            height, width = (8, 8) if family == "llava" else (draw(EDGES), draw(EDGES))
            grids.append([1, height, width])
            tokens = [IMAGE] * (height * width // 4)
            row += [97, *tokens, 96] if family == "qwen2_vl" else tokens
            row += [draw(st.integers(3, 90)), *draw(WORDS)]
        rows.append(row)
    longest, side = max(map(len, rows)), draw(st.sampled_from(sides))
    padding = [[0] * (longest - len(row)) for row in rows]
    pairs = list(zip(padding, rows, strict=True))
    ids = torch.tensor([front + row if side == "left" else row + front for front, row in pairs])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    if family == "llava":
        return family, inputs | {"pixel_values": pixels(len(grids))}
    patches = sum(height * width for _, height, width in grids)
    values = torch.rand(patches, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(3))
    inputs |= {"pixel_values": values, "image_grid_thw": torch.tensor(grids)}
    return family, inputs if BEFORE_5 else inputs | {"mm_token_type_ids": (ids == IMAGE).long()}


@settings(max_examples=12)
@given(batches(), st.integers(1, 6), st.sampled_from([{}, {"use_cache": False}, {"cache_implementation": "static"}]))
def test_every_word_of_every_answer(batch: tuple[str, dict[str, Any]], new: int, cache: dict[str, Any]) -> None:
    family, inputs = batch
    answers = check(models()[family], inputs, max_new_tokens=new, min_new_tokens=new, **cache)
    assert [len(answer) for answer in answers] == [new] * len(inputs["input_ids"])


@settings(max_examples=12)
@given(batches(), st.data())
def test_every_token_of_a_forward(batch: tuple[str, dict[str, Any]], data: Any) -> None:
    """All after the image, or chosen ones counted from either end, but for padding and what it predicts."""
    family, inputs = batch
    model, length = models()[family], inputs["input_ids"].shape[1]
    chosen = data.draw(st.none() | st.lists(st.integers(1, length - 1), min_size=length // 2), "tokens")
    signed = None if chosen is None else [token - length * data.draw(st.booleans()) for token in chosen]
    with torch.no_grad():
        bare = model(**inputs).logits
        with AnswerCapture(model, tokens=signed) as capture:
            assert torch.equal(model(**inputs).logits, bare)
    matrices, wanted = eager_matrices(model, inputs), []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        after = range(int((ids == IMAGE).nonzero().max()) + 1, length)
        own = after if chosen is None else sorted(set(chosen))
        wanted.append([token for token in own if mask[token] and mask[token - 1]])
    if not all(wanted):
        return
    for number, (answer, tokens) in enumerate(zip(capture.answers, wanted, strict=True)):
        ids = inputs["input_ids"][number]
        assert answer.token_ids == tuple(ids[tokens].tolist())
        queries = [token - 1 for token in tokens]
        expected = matrices[number][:, :, queries][..., ids == IMAGE].permute(2, 0, 1, 3)
        torch.testing.assert_close(torch.cat(answer._rows, -1), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(answer.mass["image"], expected.sum(-1), rtol=0, atol=1e-5)
        total = sum(answer.mass.values())
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
