"""The implicit matrix against a slow float64 loop."""

import math

import pytest
import torch

from attnhook.capture import softmax_matrix
from attnhook.capture.operands import Operands
from attnhook.capture.softmax_matrix import SoftmaxMatrix


def slow(call: Operands) -> torch.Tensor:
    batch, heads, queries, keys = call.shape
    query, key = call.query.double(), call.key.double()
    scale = 1 / math.sqrt(query.shape[-1]) if call.scale is None else call.scale
    result = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)
    shared = heads // key.shape[1]
    mask = None if call.mask is None else call.mask.expand(call.shape)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                exponents = []
                for j in range(keys):
                    score = float(query[b, h, i] @ key[b, h // shared, j]) * scale
                    if mask is not None:
                        if mask.dtype is torch.bool:
                            score = score if mask[b, h, i, j] else -math.inf
                        else:
                            score += float(mask[b, h, i, j])
                    exponents.append(math.exp(-math.inf if call.causal and j > i else score))
                total = sum(exponents)
                if total:
                    result[b, h, i] = torch.tensor(exponents, dtype=torch.float64) / total
    return result


def operands(queries: int = 5, keys: int = 5, key_heads: int = 4, batch: int = 2, **settings) -> Operands:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, 4, queries, 6, generator=generator)
    return Operands(query, torch.randn(batch, key_heads, keys, 6, generator=generator), **settings)


HIDDEN = torch.ones(5, 5, dtype=torch.bool)
HIDDEN[2] = False
HIDDEN[0, 3] = False
CASES = {
    "plain": operands(),
    "one image": operands(batch=1),
    "cross": operands(3, 7),
    "scale": operands(scale=0.9),
    "scale 0": operands(scale=0.0),
    "gqa": operands(key_heads=2),
    "one key head, one image": operands(key_heads=1, batch=1),
    "causal": operands(causal=True),
    "bool mask, a row hidden": operands(mask=HIDDEN),
    "key mask": operands(mask=torch.tensor([1, 1, 0, 1, 0]).bool().view(1, 1, 1, 5)),
    "additive mask": operands(mask=torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(1))),
    "minus infinity": operands(mask=torch.zeros(5, 5).masked_fill(~HIDDEN, -math.inf)),
    "causal and mask": operands(mask=HIDDEN, causal=True),
    "float64": Operands(*torch.randn(2, 2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))),
    "bf16": Operands(*torch.randn(2, 2, 4, 5, 6, generator=torch.Generator().manual_seed(3)).bfloat16()),
}


@pytest.mark.parametrize("call", CASES.values(), ids=CASES)
def test_every_entry_equals_the_loop(call: Operands) -> None:
    dense = SoftmaxMatrix(call).dense()
    assert dense.dtype is torch.float32
    torch.testing.assert_close(dense.double(), slow(call), atol=1e-6, rtol=0)


@pytest.mark.parametrize("call", CASES.values(), ids=CASES)
def test_chosen_rows_are_those_of_the_dense_matrix(call: Operands) -> None:
    matrix = SoftmaxMatrix(call)
    dense = matrix.dense()
    for index in ([0], [2, 0], [-1], slice(1, 3)):
        rows = matrix.rows(index)
        torch.testing.assert_close(rows, dense[:, :, index], atol=1e-6, rtol=0)


@pytest.mark.parametrize("budget", [1, 640, 641, 2**22])
@pytest.mark.parametrize("queries", [slice(0, 5), slice(1, 4), slice(4, 5)])
def test_mean_rows_do_not_depend_on_chunks(budget: int, queries: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_matrix, "BUDGET_BYTES", budget)
    for call in CASES.values():
        matrix = SoftmaxMatrix(call)
        inside = slice(min(queries.start, call.shape[2] - 1), queries.stop)
        expected = slow(call)[:, :, inside].mean(2, keepdim=True)
        torch.testing.assert_close(matrix.mean_rows(inside).double(), expected, atol=1e-6, rtol=0)


def test_a_dense_matrix_hands_out_copies() -> None:
    dense = SoftmaxMatrix(operands()).dense()
    rows = SoftmaxMatrix(dense).rows([1])
    rows.zero_()
    assert dense[:, :, 1].sum() > 0
    torch.testing.assert_close(SoftmaxMatrix(dense).mean_rows(slice(1, 3)), dense[:, :, 1:3].mean(2, keepdim=True))


def test_autocast_and_autograd_stay_outside() -> None:
    call = CASES["plain"]
    call = Operands(call.query.clone().requires_grad_(), call.key)
    with torch.autocast("cpu", torch.bfloat16):
        rows = SoftmaxMatrix(call).rows([0])
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert not rows.requires_grad
    torch.testing.assert_close(rows.double(), slow(CASES["plain"])[:, :, :1], atol=1e-6, rtol=0)
