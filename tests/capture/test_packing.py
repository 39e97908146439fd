"""Several images in one attention call: cut out, told in words, kept in files, measured; what needs one grid is refused."""

from pathlib import Path

import pytest
import torch

from attnhook import AttentionMaps, PackedLayout, Readout, TokenLayout, attention_statistics
from attnhook.attribution.token_tables import token_table
from attnhook.capture.records import BlockAttention
from attnhook.errors import NoClassTokenError, TokenLayoutError
from attnhook.options import Rows

SMALL, LARGE = TokenLayout((1, 2), cls=None), TokenLayout((2, 2), registers=1)
BEHIND = PackedLayout.behind_each_other((SMALL, LARGE))
PADDED = PackedLayout.padded((SMALL, LARGE), 8)


def rows(batch: int, count: int, queries: int | None = None) -> torch.Tensor:
    shape = (batch, 3, count if queries is None else queries, count)
    return torch.softmax(torch.randn(shape, generator=torch.Generator().manual_seed(0)), dim=-1)


def maps_of(layout: PackedLayout, batch: int) -> AttentionMaps:
    block = BlockAttention("blocks.0", "sdpa", rows(batch, layout.num_tokens), layout)
    return AttentionMaps([block], rows=Rows.ALL, readout=Readout(None, "several images"))


def test_images_one_behind_the_other_are_cut_where_they_stand() -> None:
    assert (BEHIND.entries, BEHIND.starts, BEHIND.num_tokens) == ((0, 0), (0, 2), 8)
    numbers = torch.arange(8.0).expand(1, 3, 8)
    small, large = BEHIND.split(numbers)
    assert small[0].tolist() == [[0, 1]]
    assert large[2].tolist() == [[4, 5], [6, 7]]


def test_padded_images_are_cut_each_from_its_own_entry() -> None:
    assert (PADDED.entries, PADDED.starts, PADDED.num_tokens) == ((0, 1), (0, 0), 8)
    numbers = torch.arange(16.0).reshape(2, 8)
    small, large = PADDED.split(numbers)
    assert small.tolist() == [[0, 1]]
    assert large.tolist() == [[10, 11], [12, 13]]


def test_words_and_counts() -> None:
    assert BEHIND.describe() == "2 images of 1x2, 2x2 patches in 8 tokens"
    BEHIND.check(8)
    with pytest.raises(
        TokenLayoutError, match=r"the tokens of block 1 do not fit the images: expected 8 = 2 images of .*, got 9"
    ):
        BEHIND.check(9, where="block 1")
    with pytest.raises(TokenLayoutError, match=r"expected the batch first, 2 entries, got shape \(1, 8\)"):
        PADDED.split(torch.rand(1, 8))


@pytest.mark.parametrize(
    "use, words",
    [
        (lambda: BEHIND.patches(torch.rand(1, 8)), r"a row of shape \(1, 8\)"),
        (lambda: BEHIND.outside(torch.rand(1, 8)), r"a row of shape \(1, 8\)"),
        (lambda: BEHIND.tokens_of([(0, 0)]), r"the rows \[\(0, 0\)\]"),
        (lambda: BEHIND.patch_tokens, "the mean over patches"),
    ],
)
def test_what_needs_one_grid_is_refused(use, words: str) -> None:
    with pytest.raises(TokenLayoutError, match=rf"no single patch grid for {words}: .*layout\.split"):
        use()


def test_no_image_is_the_one_with_the_class_token() -> None:
    with pytest.raises(NoClassTokenError, match="no single patch grid for a class token"):
        BEHIND.class_token()


@pytest.mark.parametrize("layout, batch", [(BEHIND, 1), (PADDED, 2)])
def test_files_keep_every_image(layout: PackedLayout, batch: int, tmp_path: Path) -> None:
    maps = maps_of(layout, batch)
    maps.save(tmp_path / "maps.safetensors")
    back = AttentionMaps.load(tmp_path / "maps.safetensors")
    assert back[0].layout == layout
    assert torch.equal(back[0].rows, maps[0].rows)


def test_tokens_are_told_apart_image_by_image() -> None:
    table = token_table(BEHIND)
    assert table.kinds.tolist() == [2, 2, 0, 1, 2, 2, 2, 2]
    assert table.coordinates[4:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    second = token_table(PADDED, 1)
    assert second.kinds.tolist() == [0, 1, 2, 2, 2, 2, 3, 3]
    assert token_table(PADDED, 0).kinds.tolist() == [2, 2, 3, 3, 3, 3, 3, 3]


def test_statistics_of_several_images() -> None:
    (found,) = attention_statistics(maps_of(PADDED, 2))
    dense = maps_of(PADDED, 2)[0].rows.double()
    torch.testing.assert_close(found.class_mass[1], dense[1, :, :, 0].mean(-1))
    torch.testing.assert_close(found.other_mass[0], dense[0, :, :, 2:].sum(-1).mean(-1))
    assert found.distance_pixels.isnan().all()
