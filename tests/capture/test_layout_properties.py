"""What holds for every layout: tokens and patches are the same numbers in two orders."""

import re
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnhook import TokenLayout
from attnhook.errors import NoClassTokenError, TokenLayoutError

FEW = st.integers(0, 4)
GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))
LAYOUTS = st.builds(
    TokenLayout,
    GRIDS,
    cls=st.sampled_from([None, 0, -1]),
    registers=FEW,
    distillation=st.booleans(),
    suffix=FEW,
    frames=st.integers(1, 3),
)
STILL = LAYOUTS.filter(lambda layout: layout.frames == 1)


@st.composite
def shuffled(draw):
    """A layout whose model kept some patches of each image, in an order of its own."""
    layout, images = draw(STILL), draw(st.integers(1, 3))
    kept = draw(st.integers(1, layout.num_patches))
    order = [draw(st.permutations(range(layout.num_patches)))[:kept] for _ in range(images)]
    return TokenLayout(
        layout.grid, layout.cls, layout.registers, layout.distillation, layout.suffix, order=torch.tensor(order)
    )


def numbered(layout, *leading):
    """Rows whose every entry is its own number."""
    count = prod(leading) * layout.num_tokens
    return torch.arange(count, dtype=torch.float64).reshape(*leading, layout.num_tokens)


@given(LAYOUTS)
def test_every_token_is_of_one_kind(layout):
    parts = layout.num_prefix_tokens, layout.num_patch_tokens, layout.num_suffix_tokens
    assert sum(parts) == layout.num_tokens
    assert range(layout.num_tokens)[layout.patch_tokens] == range(parts[0], parts[0] + parts[1])
    special = layout.registers + layout.distillation + layout.suffix + (layout.cls is not None)
    assert parts[0] + parts[2] == special


@given(LAYOUTS)
def test_the_description_adds_up_to_the_tokens(layout):
    words = layout.describe().removesuffix(" tokens").split(" + ")
    counts = [prod(int(number) for number in re.findall(r"\d+", word)) for word in words]
    assert sum(counts) == layout.num_tokens
    assert all(counts)


@given(LAYOUTS, st.lists(st.integers(1, 3), max_size=2))
def test_patches_stand_row_by_row_and_in_no_other_place(layout, leading):
    rows = numbered(layout, *leading)
    grid = layout.patches(rows)
    time = (layout.frames,) if layout.frames > 1 else ()
    assert grid.shape == (*leading, *time, *layout.grid)
    assert torch.equal(grid.flatten(len(leading)), rows[..., layout.patch_tokens])


@given(STILL)
def test_a_patch_and_its_token_lead_to_each_other(layout):
    grid = layout.patches(numbered(layout)).long()
    height, width = layout.grid
    every = [(row, column) for row in range(-height, height) for column in range(-width, width)]
    assert [layout.token_of(patch) for patch in every] == [int(grid[patch]) for patch in every]
    assert layout.tokens_of(every) == [layout.token_of(patch) for patch in every]


@given(LAYOUTS, st.data())
def test_tokens_count_from_both_ends(layout, data):
    tokens = data.draw(st.lists(st.integers(-layout.num_tokens, layout.num_tokens - 1)))
    assert layout.tokens_of(tokens) == [range(layout.num_tokens)[token] for token in tokens]


@given(LAYOUTS, st.integers(1, 1000))
def test_tokens_beyond_the_end_are_refused_with_the_count(layout, beyond):
    for token in (layout.num_tokens + beyond - 1, -layout.num_tokens - beyond):
        with pytest.raises(
            TokenLayoutError, match=f"token {token} does not exist: expected one of {layout.num_tokens}"
        ):
            layout.tokens_of([token])


@given(STILL, st.integers(0, 9), st.booleans(), st.booleans())
def test_patches_beyond_the_grid_are_refused_with_its_size(layout, beyond, below, across):
    length = layout.grid[across]
    outside = -length - 1 - beyond if below else length + beyond
    patch = (0, outside) if across else (outside, 0)
    with pytest.raises(TokenLayoutError, match=f"a row below {layout.grid[0]} and a column below {layout.grid[1]}"):
        layout.token_of(patch)


@given(LAYOUTS, st.integers(-5, 5))
def test_only_the_right_number_of_tokens_fits(layout, off):
    got = layout.num_tokens + off
    if off == 0:
        layout.check(got)
        return
    with pytest.raises(TokenLayoutError, match=f"expected {layout.num_tokens} = .*, got {got}"):
        layout.check(got)


@given(LAYOUTS)
def test_the_class_token_is_where_it_was_said(layout):
    if layout.cls is None:
        with pytest.raises(NoClassTokenError, match="no class token"):
            layout.class_token()
        return
    token = layout.class_token()
    assert token == (0 if layout.cls == 0 else layout.num_tokens - 1)
    assert token not in range(layout.num_tokens)[layout.patch_tokens]


@given(LAYOUTS, st.integers(0, 2**16))
def test_mass_is_on_patches_or_outside_of_them(layout, seed):
    rows = torch.rand(2, layout.num_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    axes = tuple(range(-3 if layout.frames > 1 else -2, 0))
    torch.testing.assert_close(layout.outside(rows) + layout.patches(rows).sum(axes), rows.sum(-1))
    special = torch.cat([rows[:, : layout.num_prefix_tokens], rows[:, layout.patch_tokens.stop :]], dim=1)
    torch.testing.assert_close(layout.outside(rows), special.sum(-1))


@given(LAYOUTS)
def test_without_special_tokens_only_patches_are_left(layout):
    bare = layout.without_special_tokens()
    assert bare.num_tokens == bare.num_patch_tokens == layout.num_patches
    assert torch.equal(bare.patches(numbered(bare)), layout.patches(numbered(layout)) - layout.num_prefix_tokens)


@given(shuffled(), st.integers(1, 2))
def test_shuffled_patches_go_there_and_back(layout, heads):
    images = layout.order.shape[0]
    rows = numbered(layout, images, heads)
    cells = layout.patches(rows).flatten(2)
    index = layout.order[:, None].expand(-1, heads, -1)
    assert torch.equal(cells.gather(2, index), rows[..., layout.patch_tokens])
    assert int(cells.isnan().sum()) == images * heads * (layout.num_patches - layout.num_patch_tokens)
    torch.testing.assert_close(layout.outside(rows), rows.sum(-1) - rows[..., layout.patch_tokens].sum(-1))


@given(shuffled())
def test_one_order_stands_for_all_images_and_two_for_two(layout):
    if layout.order.shape[0] == 1:
        assert layout.patches(numbered(layout, 4)).shape == (4, *layout.grid)
    else:
        with pytest.raises(TokenLayoutError, match=f"expected the batch first, {layout.order.shape[0]} images"):
            layout.patches(numbered(layout, layout.order.shape[0] + 1))


@given(GRIDS, st.sampled_from(["registers", "suffix"]), st.integers(-9, -1))
def test_counts_below_zero_are_refused(grid, name, count):
    with pytest.raises(TokenLayoutError, match=f"expected registers and suffix of at least 0.*{name}={count}"):
        TokenLayout(grid, **{name: count})


@pytest.mark.parametrize("grid", [14, (3,), (1, 2, 3), (0, 4), (4, -1), (2.5, 3), "12", None])
def test_what_is_no_grid_is_refused(grid):
    with pytest.raises(TokenLayoutError, match=r"bad patch grid: expected \(rows, columns\), both at least 1, got"):
        TokenLayout(grid)


@pytest.mark.parametrize("frames", [0, -2])
def test_a_video_without_frames_is_refused(frames):
    with pytest.raises(TokenLayoutError, match=f"frames of at least 1, got .*frames={frames}"):
        TokenLayout((2, 3), frames=frames)


@pytest.mark.parametrize("cls", [1, 3, 7, -2])
def test_a_class_token_among_the_patches_is_refused(cls):
    with pytest.raises(TokenLayoutError, match=f"an index among the tokens before or after the patches, got cls={cls}"):
        TokenLayout((2, 3), cls=cls)


def test_a_class_token_may_stand_among_the_others() -> None:
    assert TokenLayout((2, 3), cls=4, registers=4).class_token() == 4
    assert TokenLayout((2, 3), cls=-3, suffix=2).class_token() == 6
