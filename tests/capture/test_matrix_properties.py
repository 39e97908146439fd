"""What holds for every softmax matrix: rows sum to 1, and chunks, products and reductions are those of the float64 loop's matrix."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnhook.capture import softmax_matrix
from attnhook.capture.operands import Operands, exact_arithmetic
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from tests.capture.test_softmax_matrix import slow

LENGTHS = st.integers(1, 9)
MASKS = st.sampled_from(["none", "none", "bool", "keys", "additive", "a head", "minus infinity", "all hidden"])
BUDGETS = st.sampled_from([1, 200, 1_000, 5_000, 2**22])
FUSIONS = {"mean": lambda dense: dense.mean(1), "max": lambda dense: dense.amax(1), "min": lambda dense: dense.amin(1)}


def masked(kind, shape, generator):
    batch, heads, queries, keys = shape
    seen = torch.rand(queries, keys, generator=generator) > 0.3
    return {
        "none": None,
        "bool": seen,
        "keys": torch.rand(batch, 1, 1, keys, generator=generator) > 0.3,
        "additive": 3 * torch.randn(batch, 1, queries, keys, generator=generator),
        "a head": torch.randn(1, heads, queries, keys, generator=generator),
        "minus infinity": torch.zeros(queries, keys).masked_fill(~seen, -math.inf),
        "all hidden": torch.zeros(queries, keys, dtype=torch.bool),
    }[kind]


@st.composite
def calls(draw, dtypes=(torch.float32, torch.float64)):
    """Operands of any shape: GQA, strided like a fused projection's, masked, causal, with scales from nothing to one-hot rows."""
    batch, key_heads, shared = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    queries, keys, dim = draw(LENGTHS), draw(LENGTHS), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(dtypes))
    query = torch.randn(batch, queries, key_heads * shared, dim, generator=generator).to(dtype).transpose(1, 2)
    key = torch.randn(batch, keys, key_heads, dim, generator=generator).to(dtype).transpose(1, 2)
    mask = masked(draw(MASKS), (batch, key_heads * shared, queries, keys), generator)
    scale = draw(st.sampled_from([None, 0.0, 0.3, -1.0, 4.0]))
    return Operands(query, key, scale, mask, draw(st.booleans()))


@pytest.fixture(scope="module", autouse=True)
def restored():
    before = softmax_matrix.BUDGET_BYTES
    yield
    softmax_matrix.BUDGET_BYTES = before


def close(got, expected):
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=3e-6)


@given(calls(dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16)))
def test_rows_are_the_loops_and_sum_to_one_or_are_hidden(call):
    dense, expected = SoftmaxMatrix(call).dense(), slow(call)
    close(dense, expected)
    sums = dense.sum(-1)
    hidden = expected.sum(-1) == 0
    assert (sums[hidden] == 0).all()
    torch.testing.assert_close(sums[~hidden], torch.ones_like(sums[~hidden]), rtol=0, atol=1e-6)
    assert SoftmaxMatrix(call).normalised <= (not hidden.any())


@given(calls(), BUDGETS, st.data())
def test_chosen_rows_and_their_means(call, budget, data):
    softmax_matrix.BUDGET_BYTES = budget
    matrix, expected = SoftmaxMatrix(call), slow(call)
    queries = matrix.shape[2]
    index = data.draw(st.lists(st.integers(-queries, queries - 1), min_size=1))
    close(matrix.rows(index), expected[:, :, index])
    first = data.draw(st.integers(0, queries - 1))
    last = data.draw(st.integers(first + 1, queries))
    close(matrix.mean_rows(slice(first, last)), expected[:, :, first:last].mean(2, keepdim=True))


@pytest.mark.parametrize("queries", [slice(0, 9, 2), slice(3, 3), slice(4, 2), slice(9, None), slice(-1, -3)])
def test_means_of_no_rows_or_of_every_other_one_are_refused(queries):
    matrix = SoftmaxMatrix(Operands(torch.rand(1, 2, 9, 4), torch.rand(1, 2, 9, 4)))
    with pytest.raises(ValueError, match=r"expected a slice of at least one of 9 rows and no step, got slice\("):
        matrix.mean_rows(queries)


@given(calls(), BUDGETS, st.booleans(), st.booleans())
def test_products_from_both_sides(call, budget, dense, shared):
    softmax_matrix.BUDGET_BYTES = budget
    expected = slow(call)
    matrix = SoftmaxMatrix(expected if dense else call)
    batch, heads, queries, keys = matrix.shape
    generator = torch.Generator().manual_seed(5)
    many = 1 if shared else heads
    r = torch.randn(batch, many, 2, queries, dtype=torch.float64, generator=generator)
    x = torch.randn(batch, many, keys, 3, dtype=torch.float64, generator=generator)
    close(matrix.left_multiply(r), r @ expected)
    close(matrix.right_multiply(x), expected @ x)
    close(matrix.column_sums(), expected.sum(2))


@given(calls(), BUDGETS, st.sampled_from([*FUSIONS]), st.booleans())
def test_heads_made_one(call, budget, fusion, dense):
    softmax_matrix.BUDGET_BYTES = budget
    expected = slow(call)
    matrix, fused = SoftmaxMatrix(expected if dense else call), FUSIONS[fusion](expected)
    r = torch.randn(
        matrix.shape[0], 2, matrix.shape[2], dtype=torch.float64, generator=torch.Generator().manual_seed(6)
    )
    close(matrix.fused_left_multiply(r, fusion), r @ fused)
    seen = torch.zeros_like(fused)
    for chunk, rows in matrix.fused_chunks(fusion):
        seen[chunk.image, chunk.queries] += rows
    close(seen, fused)


@given(calls(), BUDGETS, st.booleans())
def test_entropy_is_between_nothing_and_uniform(call, budget, dense):
    softmax_matrix.BUDGET_BYTES = budget
    expected = slow(call)
    entropy = SoftmaxMatrix(expected if dense else call).entropy()
    torch.testing.assert_close(entropy, torch.special.entr(expected).sum(-1), rtol=1e-5, atol=1e-5)
    assert (entropy >= -1e-6).all()
    assert (entropy <= math.log(call.shape[3]) + 1e-6).all()


@given(calls(), BUDGETS)
def test_entropies_come_with_their_rows(call, budget):
    softmax_matrix.BUDGET_BYTES = budget
    matrix, expected = SoftmaxMatrix(call), slow(call)
    seen, entropies = torch.zeros_like(expected), torch.zeros(expected.shape[:3], dtype=torch.float64)
    with exact_arithmetic("cpu"):
        for image, part, entropy, rows, sums, free in matrix.entropy_chunks():
            free.fill_(math.nan)  # it is nobody's any more
            seen[image, part.heads, part.queries] += rows if sums is None else rows / sums[..., None]
            entropies[image, part.heads, part.queries] += entropy
    close(seen, expected)
    torch.testing.assert_close(entropies, torch.special.entr(expected).sum(-1), rtol=1e-5, atol=1e-5)


@given(calls(), BUDGETS)
def test_rows_are_measured_once_each(call, budget):
    softmax_matrix.BUDGET_BYTES = budget
    matrix = SoftmaxMatrix(call)
    places = matrix.rowwise(lambda rows, chunk: rows.sum(-1) + 10 * chunk.image + torch.arange(100)[chunk.queries])
    image, query = (torch.arange(count) for count in (matrix.shape[0], matrix.shape[2]))
    expected = slow(call).sum(-1) + 10 * image[:, None, None] + query
    torch.testing.assert_close(places.double(), expected, rtol=0, atol=1e-5)


@given(calls(), st.data())
def test_one_head_and_one_image_are_parts_of_all(call, data):
    matrix, expected = SoftmaxMatrix(call), slow(call)
    head = data.draw(st.integers(-matrix.shape[1], matrix.shape[1] - 1))
    image = data.draw(st.integers(0, matrix.shape[0] - 1))
    close(matrix.head(head).dense(), expected[:, [head]])
    close(matrix.image(image).dense(), expected[[image]])
    close(SoftmaxMatrix(call.detached()).dense(), expected)


@settings(max_examples=30)
@given(st.integers(2, 9), st.integers(0, 2**16))
def test_causal_rows_do_not_see_what_comes_later(tokens, seed):
    query, key = torch.randn(2, 1, 2, tokens, 3, generator=torch.Generator().manual_seed(seed)).unbind(0)
    dense = SoftmaxMatrix(Operands(query, key, causal=True)).dense()
    assert (dense.triu(1) == 0).all()
    other = key.clone()
    other[:, :, -1] += 7
    assert torch.equal(SoftmaxMatrix(Operands(query, other, causal=True)).dense()[:, :, :-1], dense[:, :, :-1])


@settings(max_examples=30)
@given(calls(dtypes=(torch.float64,)), st.floats(-20, 20))
def test_the_same_added_to_every_logit_of_a_row_changes_nothing(call, shift):
    bias = torch.full((1, 1, call.shape[2], 1), shift, dtype=torch.float64)
    mask = bias if call.mask is None else call.mask
    if mask.dtype is torch.bool:
        mask = torch.zeros(call.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)
    shifted = Operands(call.query, call.key, call.scale, mask if call.mask is None else mask + bias, call.causal)
    close(SoftmaxMatrix(shifted).dense(), slow(call))
