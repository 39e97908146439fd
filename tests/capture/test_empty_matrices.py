"""Matrices without queries, keys or images: every operation gives what a dense matrix of that shape gives."""

import pytest
import torch

from attnhook.capture.operands import Operands
from attnhook.capture.softmax_matrix import SoftmaxMatrix

SHAPES = [(1, 2, 0, 5), (1, 2, 3, 0), (1, 2, 0, 0), (0, 2, 3, 5)]


@pytest.mark.parametrize("dense", [False, True], ids=["operands", "dense"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_operations_on_nothing(shape: tuple[int, int, int, int], dense: bool) -> None:
    batch, heads, queries, keys = shape
    source = (
        torch.rand(shape)
        if dense
        else Operands(torch.rand(batch, heads, queries, 4), torch.rand(batch, heads, keys, 4))
    )
    matrix = SoftmaxMatrix(source)
    assert matrix.dense().shape == shape
    expected = torch.zeros(shape)
    r, x = torch.rand(batch, heads, 2, queries), torch.rand(batch, heads, keys, 2)
    for got, wanted in (
        (matrix.left_multiply(r), r @ expected),
        (matrix.right_multiply(x), expected @ x),
        (matrix.fused_left_multiply(r[:, 0]), r[:, 0] @ expected[:, 0]),
        (matrix.fused_left_multiply(r[:, 0], "max"), r[:, 0] @ expected[:, 0]),
        (matrix.entropy(), expected.sum(-1).double()),
        (matrix.column_sums(), expected.sum(-2).double()),
        (matrix.rowwise(lambda rows, _: rows.sum(-1)), expected.sum(-1)),
    ):
        assert got.shape == wanted.shape
        assert batch == 0 or torch.equal(got.double(), wanted.double())
    assert list(matrix.fused_chunks()) == []


def test_the_mean_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a slice of at least one of 0 rows"):
        SoftmaxMatrix(torch.rand(1, 2, 0, 5)).mean_rows(slice(None))
