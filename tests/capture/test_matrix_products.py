"""Products, entropies and head fusion of the implicit matrix against the slow float64 loop, whatever the chunks."""

import math
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnhook.capture import softmax_matrix
from attnhook.capture.operands import Operands
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from tests.capture.test_softmax_matrix import CASES, operands, slow

FUSIONS = {"mean": lambda dense: dense.mean(1), "max": lambda dense: dense.amax(1), "min": lambda dense: dense.amin(1)}
SEEN = torch.rand(70, 70, generator=torch.Generator().manual_seed(3)) > 0.2
LONG = {
    "long": operands(70, 70),
    "long, one image": operands(70, 70, batch=1),
    "long, gqa": operands(70, 70, key_heads=2),
    "long, huge logits": operands(70, 70, scale=6.0),
    "long, bool mask": operands(70, 70, mask=SEEN),
    "long, bias a head": operands(70, 70, mask=torch.randn(1, 4, 70, 70, generator=torch.Generator().manual_seed(4))),
    "long, bias an image and bf16": operands(70, 70, mask=torch.randn(2, 1, 70, 70).bfloat16()),
    "long, causal": operands(70, 70, causal=True),
    "long, more queries": operands(130, 70),
}
ALL = CASES | LONG


@cache
def expected_of(name):
    return slow(ALL[name])


def random(*shape, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(7))


def close(got, expected, name=""):
    """Within 1e-6 of the largest entry; a logit of a hundred is itself a float32 number, with an error of 4e-6."""
    assert got.shape == expected.shape
    error = float((got.double() - expected).abs().max())
    assert error <= (1e-5 if "huge" in name else 1e-6) * float(expected.abs().max())


@pytest.fixture(params=[1, 4_000, 60_000, 2**22])
def budget(request, monkeypatch):
    monkeypatch.setattr(softmax_matrix, "BUDGET_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("name", ALL)
def test_products_equal_those_of_the_dense_matrix(name, budget):
    matrix, dense = SoftmaxMatrix(ALL[name]), expected_of(name)
    batch, heads, queries, keys = matrix.shape
    for many in (1, heads):
        r, x = random(batch, many, 3, queries), random(batch, many, keys, 2)
        close(matrix.left_multiply(r), r @ dense, name)
        close(matrix.right_multiply(x), dense @ x, name)
    close(matrix.column_sums(), dense.sum(2), name)
    assert matrix.column_sums().dtype is torch.float64
    single = random(batch, 1, 1, queries, dtype=torch.float32)
    assert matrix.left_multiply(single).dtype is torch.float32


@pytest.mark.parametrize("name", ALL)
def test_fused_products_equal_those_of_the_fused_matrix(name, budget):
    matrix, dense = SoftmaxMatrix(ALL[name]), expected_of(name)
    batch, _, queries, _ = matrix.shape
    r = random(batch, 2, queries)
    for fusion, fuse in FUSIONS.items():
        close(matrix.fused_left_multiply(r, fusion), r @ fuse(dense), name)
        parts = [(chunk, rows.to(torch.float64, copy=True)) for chunk, rows in matrix.fused_chunks(fusion)]
        whole = [torch.cat([rows for chunk, rows in parts if chunk.image == image]) for image in range(batch)]
        close(torch.stack(whole), fuse(dense), name)


@pytest.mark.parametrize("name", ALL)
def test_entropy_equals_its_definition(name, budget):
    found, dense = SoftmaxMatrix(ALL[name]).entropy(), expected_of(name)
    assert found.dtype is torch.float64
    rounding = 2e-5 if "huge" in name else 2e-6  # logits of several hundred are float32 numbers, too
    torch.testing.assert_close(found, torch.special.entr(dense).sum(-1), rtol=1e-6, atol=rounding)


@pytest.mark.parametrize("name", ["plain", "gqa", "bool mask, a row hidden", "long, bias a head", "float64"])
def test_dense_sources_heads_and_images_agree(name):
    matrix, dense = SoftmaxMatrix(ALL[name]), expected_of(name)
    wrapped = SoftmaxMatrix(dense)
    r = random(matrix.shape[0], 1, 2, matrix.shape[2])
    close(wrapped.left_multiply(r), r @ dense)
    close(wrapped.fused_left_multiply(r[:, 0], "max"), r[:, 0] @ dense.amax(1))
    torch.testing.assert_close(wrapped.entropy(), torch.special.entr(dense).sum(-1), rtol=1e-6, atol=1e-6)
    for head in range(-1, matrix.shape[1]):
        close(matrix.head(head).dense(), dense[:, [head]])
        close(wrapped.head(head).dense(), dense[:, [head]])
    close(matrix.image(1).left_multiply(r[1:]), (r @ dense)[1:])
    with pytest.raises(IndexError, match="head 9 does not exist: expected"):
        matrix.head(9)


def test_one_hot_and_uniform_rows_have_the_right_entropy():
    same = torch.zeros(1, 1, 100, 8)
    assert SoftmaxMatrix(Operands(same, same)).entropy() == pytest.approx(math.log(100), rel=1e-7)
    apart = 100 * torch.eye(100)[None, None]
    assert (SoftmaxMatrix(Operands(apart, apart)).entropy() == 0).all()


@pytest.mark.parametrize("shape", [(2, 3, 1, 5), (2, 1, 5), (1, 4, 1, 5), (2, 4, 1, 6)])
def test_a_factor_of_another_shape_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"expected a floating r of shape \(batch, heads or 1, rows, queries\) = \(2, 4, any, 5\), got"
    ):
        SoftmaxMatrix(operands()).left_multiply(torch.ones(shape))


def test_a_factor_of_integers_and_an_unknown_fusion_are_refused():
    matrix = SoftmaxMatrix(operands())
    with pytest.raises(ValueError, match=r"torch\.int64"):
        matrix.left_multiply(torch.ones(2, 1, 1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="unknown fusion: expected one of 'mean', 'max', 'min'"):
        matrix.fused_left_multiply(torch.ones(2, 1, 5), "median")


def test_autocast_and_autograd_stay_outside_of_products():
    call = LONG["long"]
    matrix = SoftmaxMatrix(Operands(call.query.clone().requires_grad_(), call.key))
    r = random(2, 1, 1, 70, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        product = matrix.left_multiply(r)
        for _, rows in matrix.fused_chunks():
            assert torch.is_autocast_enabled("cpu")  # the caller's own arithmetic is the caller's
            assert rows.dtype is torch.float32
    assert torch.is_grad_enabled()
    assert not product.requires_grad
    close(product, r.double() @ slow(call))


def test_shapes_on_the_meta_device():
    call = LONG["long, bias a head"]
    matrix = SoftmaxMatrix(call).to("meta")
    assert matrix.left_multiply(torch.ones(2, 1, 3, 70, device="meta")).shape == (2, 4, 3, 70)
    assert matrix.fused_left_multiply(torch.ones(2, 3, 70, device="meta"), "max").shape == (2, 3, 70)
    assert matrix.right_multiply(torch.ones(2, 4, 70, 6, device="meta")).shape == (2, 4, 70, 6)
    assert matrix.entropy().shape == (2, 4, 70)


class Largest(TorchDispatchMode):
    """Remembers the largest memory in bytes under anything that an operation gives."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.seen = max(self.seen, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("settings", [{}, {"mask": torch.ones(1, 1, 1, 1500, dtype=torch.bool)}, {"causal": True}])
def test_nothing_is_larger_than_the_budget(settings):
    query = torch.randn(1, 2, 1500, 8)
    matrix = SoftmaxMatrix(Operands(query, query, **settings))
    assert softmax_matrix.BUDGET_BYTES < 4 * 1500 * 1500
    with Largest() as largest:
        matrix.left_multiply(torch.ones(1, 1, 1, 1500))
        matrix.right_multiply(torch.ones(1, 1, 1500, 4))
        matrix.fused_left_multiply(torch.ones(1, 1, 1500), "max")
        matrix.entropy()
    assert 0 < largest.seen <= softmax_matrix.BUDGET_BYTES


def test_what_is_kept_owns_its_memory_unless_nothing_else_is_in_it():
    query, key, _ = torch.randn(1, 7, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    kept = Operands(query, key).detached()
    memories = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (kept.query, kept.key)}
    assert sum(memories.values()) == (query.numel() + key.numel()) * 4  # without the values'
    fewer = Operands(query, key[:, :1]).detached()
    assert fewer.key.untyped_storage().nbytes() == key.numel() * 2
    assert torch.equal(fewer.query, query)
    assert torch.equal(kept.key, key)
    pair = torch.randn(1, 7, 2, 2, 4).permute(2, 0, 3, 1, 4)
    assert Operands(pair[0], pair[1]).detached().query.data_ptr() == pair.data_ptr()
    alone = torch.randn(1, 7, 2, 4).transpose(1, 2)
    assert Operands(alone, key).detached().query.data_ptr() == alone.data_ptr()


@pytest.mark.parametrize("budget", [64, 4 * 16 * 9, 2**22], ids=["rows", "heads", "whole"])
@pytest.mark.parametrize("level", [-400.0, -45.0, 0.0, 45.0, 70.0, 400.0])
def test_rows_whose_exponentials_leave_the_range_of_floats_are_shifted(monkeypatch, level: float, budget: int) -> None:
    monkeypatch.setattr(softmax_matrix, "BUDGET_BYTES", budget)
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 4, 9, 8).unbind(0)
    query[..., 0], key[..., 0] = 0.0, 1.0
    query[1, 1:3, :, 0] = level  # some heads of one image: all logits of a row near this
    matrix = SoftmaxMatrix(Operands(query, key, 1.0))
    explicit = torch.softmax(query.double() @ key.double().mT, dim=-1)
    r, x = torch.rand(2, 1, 3, 9, dtype=torch.float64), torch.rand(2, 1, 9, 3, dtype=torch.float64)
    near = {"rtol": 1e-4, "atol": 1e-6}  # a logit of 400 has 2 ** -15 between it and the next float32
    torch.testing.assert_close(matrix.left_multiply(r), r @ explicit, **near)
    torch.testing.assert_close(matrix.right_multiply(x), explicit @ x, **near)
    torch.testing.assert_close(matrix.fused_left_multiply(r[:, 0]), r[:, 0] @ explicit.mean(1), **near)
    torch.testing.assert_close(matrix.mean_rows(slice(2, 7)), explicit[:, :, 2:7].mean(2, keepdim=True).float(), **near)
