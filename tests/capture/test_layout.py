"""Tokens and the patch grid."""

import pytest
import torch

from attnhook import TokenLayout
from attnhook.errors import NoClassTokenError, TokenLayoutError


@pytest.mark.parametrize(
    "layout, prefix, total, words",
    [
        (TokenLayout((2, 3)), 1, 7, "1 class + 2x3 patch tokens"),
        (TokenLayout((4, 8), registers=4), 5, 37, "1 class + 4 register + 4x8 patch tokens"),
        (TokenLayout((2, 3), cls=None, registers=4), 4, 10, "4 register + 2x3 patch tokens"),
        (TokenLayout((2, 3), distillation=True), 2, 8, "1 class + 1 distillation + 2x3 patch tokens"),
        (TokenLayout((2, 3), suffix=5), 1, 12, "1 class + 2x3 patch + 5 suffix tokens"),
        (TokenLayout((2, 3), cls=-1), 0, 7, "2x3 patch + 1 class tokens"),
    ],
)
def test_counts(layout: TokenLayout, prefix: int, total: int, words: str) -> None:
    assert (layout.num_prefix_tokens, layout.num_tokens, layout.describe()) == (prefix, total, words)
    row = torch.arange(total)
    assert layout.patches(row).tolist() == (torch.arange(layout.num_patches) + prefix).view(layout.grid).tolist()


@pytest.mark.parametrize("grid", [(4, 8), (8, 4), (1, 6)])
def test_a_bright_patch_stands_where_it_is_not_transposed(grid: tuple[int, int]) -> None:
    layout = TokenLayout(grid, registers=2)
    for r in range(grid[0]):
        for c in range(grid[1]):
            row = torch.zeros(layout.num_tokens)
            row[3 + r * grid[1] + c] = 1
            assert layout.patches(row).nonzero().tolist() == [[r, c]]
            assert layout.token_of((r, c)) == layout.token_of((r - grid[0], c - grid[1])) == 3 + r * grid[1] + c


def test_dropped_patches_are_nan_and_the_rest_stand_in_place() -> None:
    order = torch.tensor([[5, 0, 3], [1, 2, 4]])
    layout = TokenLayout((2, 3), order=order)
    rows = torch.rand(2, 4, 1, 4)
    grid = layout.patches(rows)
    for image in range(2):
        for patch in range(6):
            got = grid[image, :, 0, patch // 3, patch % 3]
            where = (order[image] == patch).nonzero()
            if len(where):
                assert torch.equal(got, rows[image, :, 0, 1 + int(where)])
            else:
                assert got.isnan().all()
    torch.testing.assert_close(layout.outside(rows), rows[..., 0])
    with pytest.raises(TokenLayoutError, match="no fixed token"):
        layout.token_of((0, 0))
    with pytest.raises(TokenLayoutError, match="expected the batch first, 2 images"):
        layout.patches(torch.rand(3, 4))


def test_errors_carry_the_numbers() -> None:
    layout = TokenLayout((2, 3), cls=None)
    with pytest.raises(TokenLayoutError, match=r"expected 6 = 2x3 patch tokens, got 9"):
        layout.check(9)
    with pytest.raises(TokenLayoutError, match=r"patch \(2, 0\) lies outside"):
        layout.tokens_of([(2, 0)])
    with pytest.raises(TokenLayoutError, match="token 6 does not exist: expected one of 6"):
        layout.tokens_of([6])
    with pytest.raises(NoClassTokenError, match="no class token: the sequence has 2x3 patch tokens"):
        layout.class_token()
    with pytest.raises(TokenLayoutError, match="bad patch grid"):
        TokenLayout((0, 3))
    with pytest.raises(TokenLayoutError, match="bad token counts"):
        TokenLayout((1, 3), registers=-1)
    assert layout.tokens_of([-1, (1, 0)]) == [5, 3]
    assert TokenLayout((2, 3), cls=-1).class_token() == 6
