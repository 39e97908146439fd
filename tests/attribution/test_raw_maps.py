"""Raw attention against the rows it is cut from."""

import pytest
import timm
import torch

from attnhook import AttentionCapture, AttentionMaps, raw_attention, value_weighted_attention
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import NoReadoutError, RowsNotKeptError
from tests.models import GRID, TIMM, TRANSFORMERS, images, sharpen

CASES = {case.name: case for case in TIMM + TRANSFORMERS}


def maps_of(name: str, batch: int = 2, **options) -> AttentionMaps:
    case = CASES[name]
    model = case.build()
    with torch.no_grad(), AttentionCapture(model, **options) as capture:
        case.feed(model, batch)
    return capture.maps


def test_heads_are_fused_as_asked() -> None:
    maps = maps_of("vit")
    heads = raw_attention(maps, heads=None).values
    assert heads.shape == (2, 4, *GRID)
    torch.testing.assert_close(heads.flatten(2), maps[-1].rows[:, :, 0, 1:])
    assert torch.equal(raw_attention(maps).values, heads.mean(1))
    assert torch.equal(raw_attention(maps, heads="max").values, heads.amax(1))
    assert torch.equal(raw_attention(maps, heads="min").values, heads.amin(1))
    assert torch.equal(raw_attention(maps, heads=-1).values, heads[:, 3])
    assert torch.equal(raw_attention(maps, block=0, heads=1).values, maps[0].rows[:, 1, 0, 1:].view(2, *GRID))
    with pytest.raises(
        IndexError, match=r"head 4 of block 'blocks\.1\.attn' does not exist: expected -4 to 3\. Pass one of them"
    ):
        raw_attention(maps, heads=4)
    with pytest.raises(ValueError, match="unknown heads"):
        raw_attention(maps, heads="median")


@pytest.mark.parametrize("name", ["vit", "vit_avg", "vit_siglip", "vit_registers", "ViTModel", "Dinov2Model"])
def test_all_rows_give_the_readouts_map(name: str) -> None:
    readout, everything = maps_of(name), maps_of(name, rows="all")
    torch.testing.assert_close(raw_attention(everything).values, raw_attention(readout).values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["vit", "vit_avg", "vit_siglip", "ViTModel"])
def test_a_batch_of_two_equals_two_singles(name: str) -> None:
    model, batch = CASES[name].build(), images(2)
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(batch) if name != "ViTModel" else model(pixel_values=batch)
        together = raw_attention(capture.maps).values
        singles = []
        for image in batch:
            model(image[None])
            singles.append(raw_attention(capture.maps).values)
    torch.testing.assert_close(together, torch.cat(singles), atol=2e-5, rtol=0)


def test_the_row_of_a_patch() -> None:
    everything = maps_of("vit", rows="all")[-1].weights()
    chosen = maps_of("vit", rows=[(1, 2), (-1, -1), 0])
    for row, token in enumerate((1 + 1 * GRID[1] + 2, 15, 0)):
        expected = everything[:, :, token, 1:].mean(1).view(2, *GRID)
        torch.testing.assert_close(raw_attention(chosen, row=row).values, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(raw_attention(maps_of("vit", rows=[(1, 2)])).values, raw_attention(chosen, row=0).values)
    with pytest.raises(RowsNotKeptError, match="expected one captured row, got 3"):
        raw_attention(chosen)
    with pytest.raises(RowsNotKeptError, match=r"row 3 of block .* was not captured: expected -3 to 2"):
        raw_attention(chosen, row=3)


def test_a_model_without_a_readout_says_why() -> None:
    from torch import nn

    from attnhook import TokenLayout

    model = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True))
    with torch.no_grad(), AttentionCapture(model, blocks="0", rows="all") as capture:
        model[0](*[torch.randn(1, 6, 8)] * 3)
    with pytest.raises(NoReadoutError, match="has no readout row"):
        raw_attention(capture.maps)
    with torch.no_grad(), AttentionCapture(model, rows="all", layout=TokenLayout((2, 3), cls=None)) as capture:
        model[0](*[torch.randn(1, 6, 8)] * 3)
    assert raw_attention(capture.maps).values.shape == (1, 2, 3)


def test_maps_are_no_views_of_what_was_captured() -> None:
    from attnhook.attribution.raw_maps import fuse_heads

    rows = torch.rand(1, 2, 4)
    for heads in (0, None, "mean"):
        assert fuse_heads(rows, heads).untyped_storage().data_ptr() != rows.untyped_storage().data_ptr()


def test_one_row_of_whole_matrices_makes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = maps_of("vit", rows="all")
    expected = maps[-1].weights()[..., 1:].mean(1).unflatten(-1, GRID)

    def refuse(_: object) -> None:
        raise AssertionError("the whole matrix was computed")

    monkeypatch.setattr(SoftmaxMatrix, "dense", refuse)
    for row in (0, 7, -2):
        torch.testing.assert_close(raw_attention(maps, row=row).values, expected[:, row], atol=1e-6, rtol=0)
    for row in (16, -17):
        with pytest.raises(RowsNotKeptError, match=rf"row {row} of block .* was not captured: expected -16 to 15"):
            raw_attention(maps, row=row)


@pytest.mark.parametrize("rows", ["readout", "pool", "all"])
@pytest.mark.parametrize("method", [raw_attention, value_weighted_attention])
def test_the_readout_of_several_pooling_queries_is_their_mean(rows: str, method) -> None:
    model = CASES["vit_siglip"].build()
    model.attn_pool = sharpen(timm.layers.AttentionPoolLatent(32, num_heads=4, latent_len=3, pool_type="avg"))
    with torch.no_grad(), AttentionCapture(model, rows=rows, values=True) as capture:
        model(images())
    pooling = capture.maps[-1]
    assert pooling.rows.shape[2] == 3
    expected = pooling.rows.mean(2)
    if method is value_weighted_attention:
        expected = expected * pooling.values.norm(dim=-1)
    torch.testing.assert_close(method(capture.maps, heads=None).values.flatten(2), expected, atol=1e-6, rtol=1e-6)
    one = raw_attention(capture.maps, row=1, heads=None).values.flatten(2)
    torch.testing.assert_close(one, pooling.rows[:, :, 1])


@pytest.mark.parametrize("rows", ["readout", "all"])
def test_of_several_pooling_queries_the_one_that_timm_reads_is_the_readout(rows: str) -> None:
    model = CASES["vit_siglip"].build()
    model.attn_pool = sharpen(timm.layers.AttentionPoolLatent(32, num_heads=4, latent_len=3, pool_type="token"))
    with torch.no_grad(), AttentionCapture(model, rows="all") as whole:
        model(images())
    with torch.no_grad(), AttentionCapture(model, rows=rows) as capture:
        model(images())
    expected = whole.maps[-1].weights()[:, :, 0].mean(1)
    torch.testing.assert_close(raw_attention(capture.maps).values.flatten(1), expected, atol=1e-6, rtol=1e-6)
