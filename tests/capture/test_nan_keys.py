"""A NaN or an infinity in a key: rows are what softmax(Q K^T * scale + additive mask) gives, and NaN where the kernel's output is."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnhook.capture import softmax_matrix
from attnhook.capture.operands import Operands, exact_arithmetic
from attnhook.capture.softmax_matrix import SoftmaxMatrix

BATCH, HEADS, TOKENS, DIM, BAD = 2, 4, 7, 8, 3
HIDDEN_FROM_SOME = torch.rand(TOKENS, TOKENS, generator=torch.Generator().manual_seed(2)) > 0.2
MASKS = {  # True: attend; the bad key is hidden from all
    "keys": torch.ones(BATCH, 1, 1, TOKENS, dtype=torch.bool),
    "one for all heads": HIDDEN_FROM_SOME.expand(BATCH, 1, TOKENS, TOKENS).clone(),
    "one for all": HIDDEN_FROM_SOME.clone(),
    "a head": HIDDEN_FROM_SOME.expand(1, HEADS, TOKENS, TOKENS).clone(),
}
for mask in MASKS.values():
    mask[..., BAD] = False
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.bfloat16}


def call_of(kind: str, dtype: torch.dtype, bad: float, key_heads: int, floating: bool) -> Operands:
    """Operands in which image 0 has a bad key that the mask hides, and image 1 has none."""
    generator = torch.Generator().manual_seed(1)
    query = torch.rand(BATCH, HEADS, TOKENS, DIM, generator=generator)  # positive: infinity times it is infinity
    key = torch.randn(BATCH, key_heads, TOKENS, DIM, generator=generator)
    key[0, :, BAD] = bad
    mask = MASKS[kind]
    if floating:
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -math.inf)
    return Operands(query.to(dtype), key.to(dtype), None, mask)


def oracle(call: Operands) -> Tensor:
    """The formula in float64."""
    query, key = call.query.double(), call.key.double().repeat_interleave(HEADS // call.key.shape[1], dim=1)
    logits = query @ key.mT * DIM**-0.5
    if call.mask is not None:
        additive = torch.zeros(call.mask.shape, dtype=torch.float64)
        hidden = call.mask.dtype is torch.bool
        logits = logits + (additive.masked_fill_(~call.mask, -math.inf) if hidden else call.mask.double())
    rows = torch.softmax(logits, dim=-1)
    return torch.where((logits == -math.inf).all(dim=-1, keepdim=True), 0.0, rows)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-5, equal_nan=True)


@pytest.fixture(params=[1, 400, 2**22])
def budget(request, monkeypatch):
    monkeypatch.setattr(softmax_matrix, "BUDGET_BYTES", request.param)


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("floating", [False, True], ids=["bool", "float"])
@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MASKS)
def test_every_reading_is_that_of_the_formula(kind, dtype, bad, key_heads, floating) -> None:
    call = call_of(kind, DTYPES[dtype], bad, key_heads, floating)
    matrix, wanted = SoftmaxMatrix(call), oracle(call)
    assert wanted[0].isnan().all()
    assert not wanted[1].isnan().any()
    close(matrix.dense(), wanted)
    close(matrix.rows([2, 0]), wanted[:, :, [2, 0]])
    close(matrix.rows(slice(1, 2)), wanted[:, :, 1:2])
    close(matrix.mean_rows(slice(1, 6)), wanted[:, :, 1:6].mean(dim=2, keepdim=True))
    close(matrix.head(1).image(0).dense(), wanted[:1, 1:2])
    r = torch.rand(BATCH, HEADS, 2, TOKENS, dtype=torch.float64)
    x = torch.rand(BATCH, HEADS, TOKENS, 2, dtype=torch.float64)
    close(matrix.left_multiply(r), r @ wanted)
    close(matrix.right_multiply(x), wanted @ x)
    close(matrix.column_sums(), wanted.sum(dim=2))
    entropy = torch.special.entr(wanted).sum(dim=-1)
    close(matrix.entropy(), entropy)
    for fusion, fused in {"mean": wanted.mean(1), "max": wanted.amax(1), "min": wanted.amin(1)}.items():
        close(matrix.fused_left_multiply(r[:, 0], fusion), r[:, 0] @ fused)
        rows = torch.zeros_like(fused)
        for chunk, found in matrix.fused_chunks(fusion):
            rows[chunk.image, chunk.queries] += found
        close(rows, fused)
    seen, together = torch.zeros_like(wanted), torch.zeros_like(entropy)
    with exact_arithmetic("cpu"):
        for image, part, entropies, rows, sums, _ in matrix.entropy_chunks():
            seen[image, part.heads, part.queries] = (rows if sums is None else rows / sums[..., None]).double()
            together[image, part.heads, part.queries] = entropies
    close(seen, wanted)
    close(together, entropy)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=["flash", "math"])
@pytest.mark.parametrize("floating", [False, True], ids=["bool", "float"])
@pytest.mark.parametrize("key_heads", [HEADS, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MASKS)
def test_rows_are_nan_where_the_kernels_output_is(kind, dtype, bad, key_heads, floating, backend) -> None:
    call = call_of(kind, DTYPES[dtype], bad, key_heads, floating)
    values = torch.randn(call.key.shape, generator=torch.Generator().manual_seed(4)).to(call.key.dtype)
    with sdpa_kernel(backend):
        output = F.scaled_dot_product_attention(
            call.query, call.key, values, attn_mask=call.mask, enable_gqa=key_heads != HEADS
        )
    product = SoftmaxMatrix(call).dense().double() @ values.double().repeat_interleave(HEADS // key_heads, dim=1)
    near = 3e-2 if dtype == "bf16" else 1e-5
    torch.testing.assert_close(product, output.double(), rtol=0, atol=near, equal_nan=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_later_key_is_hidden_whatever_is_in_it(bad: float) -> None:
    query, key, values = torch.rand(3, 1, 2, TOKENS, DIM, generator=torch.Generator().manual_seed(5)).unbind(0)
    key[:, :, BAD] = bad
    matrix = SoftmaxMatrix(Operands(query, key, causal=True))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        output = F.scaled_dot_product_attention(query, key, values, is_causal=True)
    dense = matrix.dense()
    assert dense.isnan().any(dim=-1).tolist() == [[[row >= BAD for row in range(TOKENS)]] * 2]
    torch.testing.assert_close(dense @ values, output, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(matrix.right_multiply(values), dense @ values, rtol=0, atol=1e-6, equal_nan=True)
    assert matrix.entropy().isnan().tolist() == dense.isnan().any(dim=-1).tolist()


def test_a_row_whose_keys_are_all_hidden_is_zero_or_nan_with_the_kernels_output() -> None:
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
    mask[2] = False
    for bad in (0.5, math.nan):
        query, key, values = torch.rand(3, 1, 2, TOKENS, DIM, generator=torch.Generator().manual_seed(6)).unbind(0)
        key[:, :, BAD] = bad
        row = SoftmaxMatrix(Operands(query, key, None, mask)).rows([2])
        output = F.scaled_dot_product_attention(query, key, values, attn_mask=mask)[:, :, [2]]
        torch.testing.assert_close(row @ values, output, rtol=0, atol=0, equal_nan=True)
