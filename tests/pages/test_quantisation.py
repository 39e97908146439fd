"""Quantised rows: within their stated bounds, small, and read back as they were written."""

import base64
import zlib

import numpy as np
import pytest
import torch

from attnhook.pages.quantisation import LETTERS, Payload, differences, quantise


def values_of(small):
    """What the page reads in JavaScript: m (c / L)^2."""
    return small.maxima.astype(np.float64)[..., None] * (small.codes / np.iinfo(small.codes.dtype).max) ** 2


def bounds_of(small):
    """How far a true value may be from the one read: m (c + 1/4) / L^2."""
    return small.maxima.astype(np.float64)[..., None] * (small.codes + 0.25) / np.iinfo(small.codes.dtype).max ** 2


def heavy_tailed(heads=2, queries=7, keys=50):
    rows = torch.softmax(4 * torch.randn(heads, queries, keys, generator=torch.Generator().manual_seed(0)), dim=-1)
    rows[0, 0] = torch.tensor([0.9] + [0.1 / (keys - 1)] * (keys - 1))  # a sink
    rows[1, 0] = 0
    return rows


@pytest.mark.parametrize("bits", [8, 16])
def test_values_lie_within_the_bounds(bits):
    rows = heavy_tailed()
    small = quantise(rows, bits)
    error = np.abs(values_of(small) - rows.double().numpy())
    assert (error <= bounds_of(small) * (1 + 1e-6)).all()
    assert error.max() > 0.2 * bounds_of(small).max()  # the bounds are no excuse
    assert small.codes.dtype.itemsize == bits // 8
    assert (values_of(small)[1, 0] == 0).all()


def test_small_values_survive_a_sink():
    rows = heavy_tailed()
    assert values_of(quantise(rows, 8))[0, 0, 5] == pytest.approx(0.1 / 49, rel=0.1)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_what_is_no_softmax_row_is_refused(bad):
    with pytest.raises(ValueError, match="not softmax rows"):
        quantise(torch.tensor([[[0.5, bad]]]), 8)


def unpacked(text, length):
    """What the page does in JavaScript: HTML's letters back to Python's, 85 to a byte string, inflated."""
    return zlib.decompress(base64.b85decode(text.translate(str.maketrans(",.:", "<>&")))[:length])


def test_differences_give_the_codes_back():
    """As the page does it: row by row, from the rows that it has."""
    codes = np.random.default_rng(0).integers(0, 256, (2, 13, 5), dtype=np.uint8)
    left = differences(codes, 3)
    back = np.zeros(codes.shape, int)
    for head, query, key in np.ndindex(codes.shape):
        near, above = (int(back[head, query - rows, key]) if query >= rows else 0 for rows in (1, 3))
        back[head, query, key] = (int(left[head, query, key]) + (near + above) // 2) % 256
    assert (back == codes).all()


def test_a_payload_is_read_back_where_its_header_says():
    payload = Payload()
    written = [quantise(heavy_tailed(), bits) for bits in (8, 16, 8)]
    places = [payload.add(one) for one in written]
    text, length = payload.text()
    assert set(text) <= set(LETTERS)
    assert not set("<>&\"'\\") & set(LETTERS)
    content = unpacked(text, length)
    for place, one in zip(places, written, strict=True):
        kind = np.dtype("<u1" if place["bits"] == 8 else "<u2")
        assert place["maxima"] % 4 == 0
        codes = np.frombuffer(content, kind, one.codes.size, place["codes"]).reshape(one.codes.shape)
        assert (codes == one.codes).all()
        assert (np.frombuffer(content, "<f4", one.maxima.size, place["maxima"]) == one.maxima.ravel()).all()
