"""What the tokens of hierarchical and windowed models are: the rules that several libraries' models share.

A rule is a function from a `CallContext` to `SiteTokens`. Grids come from the size of the images and the number of tokens: a model that shrinks
height and width by one factor has, for one number of tokens, one grid that fits, or the rule says that it cannot tell.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.layout import TokenLayout
from attnhook.capture.sites import CallContext, SiteTokens
from attnhook.capture.windows import WindowLayout
from attnhook.options import Size

TokensOf = Callable[[CallContext], SiteTokens]


def shrunk_grid(area: Size, cells: int) -> Size | str:
    """The grid of a map that is `area` shrunk by one factor in both directions, rounded down or up."""
    fitting: set[Size] = set()
    for rows in range(1, cells + 1):
        if cells % rows:
            continue
        columns = cells // rows
        # floor(H / r) == rows or ceil(H / r) == rows, for some r > 0, the same for columns
        low = max(area[0] / (rows + 1), area[1] / (columns + 1))
        high = min(area[0] / max(rows - 1, 1e-9), area[1] / max(columns - 1, 1e-9))
        if low < high:
            fitting.add((rows, columns))
    exact = {grid for grid in fitting if grid[0] * area[1] == grid[1] * area[0]}
    fitting = exact or fitting
    if len(fitting) == 1:
        return fitting.pop()
    return (
        f"{cells} tokens of a {area[0]}x{area[1]} input: expected one grid of that shape, got {sorted(fitting) or 'none'}. "
        "Pass layout=TokenLayout(...)."
    )


def _layout(area: Size | None, tokens: int, prefix: int, cls: int | None) -> TokenLayout | str:
    if area is None:
        return "the size of the images is not known: no four-dimensional input was seen. Pass layout=TokenLayout(...)."
    grid = shrunk_grid(area, tokens - prefix)
    if isinstance(grid, str):
        return grid
    return TokenLayout(grid, cls=cls, registers=max(prefix - (cls is not None), 0))


def shrunk(prefix: int = 0, cls: int | None = None) -> TokensOf:
    """Rule of a stage whose positions are the image shrunk by one factor, row by row, keys perhaps further than queries."""

    def tokens_of(call: CallContext) -> SiteTokens:
        keys = _layout(call.input_size, call.keys, prefix, cls)
        same = call.queries == call.keys
        return SiteTokens(keys, None if same else _layout(call.input_size, call.queries, prefix, cls))

    return tokens_of


def class_attention(prefix: int = 1) -> TokensOf:
    """Rule of a block where only the class token asks, over itself and the positions."""

    def tokens_of(call: CallContext) -> SiteTokens:
        keys = _layout(call.input_size, call.keys, prefix, 0)
        return SiteTokens(keys, "the only query is the class token")

    return tokens_of


def windows(cut: Callable[[CallContext], WindowLayout | str]) -> TokensOf:
    """Rule of a block that attends within windows."""

    def tokens_of(call: CallContext) -> SiteTokens:
        layout = cut(call)
        if isinstance(layout, str):
            return SiteTokens(layout)
        if layout.num_tokens != call.keys:
            return SiteTokens(f"{call.keys} keys do not fit {layout.describe()}, which hold {layout.num_tokens}.")
        return SiteTokens(layout)

    return tokens_of


def mask_units(size: Sequence[int], schedule: Sequence[Sequence[int]], tokens: int, call: CallContext) -> WindowLayout:
    """The mask units of Hiera (Ryali et al. 2023, arXiv:2306.00989), whose tokens stand a number of units apart."""
    positions, grid = _unrolled(size, schedule, tokens)
    units = positions.numel() // call.keys
    keys = positions.reshape(call.keys, units).T
    words = "mask units" if units > 1 else "window of all tokens, in the order of mask units,"
    if call.queries == call.keys:
        return WindowLayout(grid, keys, words=words)
    asking, fewer = _unrolled(size, schedule, units * call.queries)
    return WindowLayout(grid, keys, asking.reshape(call.queries, units).T, fewer, words)


def _unrolled(size: Sequence[int], schedule: Sequence[Sequence[int]], tokens: int) -> tuple[Tensor, Size]:
    """Row-major index of each token of a stage with that many, in the order in which Hiera keeps them; the stage's grid."""
    height, width = size
    left = list(schedule)
    while height * width > tokens and left:
        stride = left.pop(0)
        height, width = height // stride[0], width // stride[1]
    index = torch.arange(height * width, device="cpu").reshape(1, height, width)
    for rows, columns in left:
        batch, high, wide = index.shape
        index = index.reshape(batch, high // rows, rows, wide // columns, columns).permute(0, 2, 4, 1, 3)
        index = index.reshape(batch * rows * columns, high // rows, wide // columns)
    return index.reshape(-1), (height, width)


def pair(value: Any) -> Size:
    """Height and width from one number or two."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def parents(model: nn.Module, name: str) -> tuple[nn.Module, ...]:
    """The modules that hold a module, closest first."""
    parts = name.split(".")[:-1]
    return tuple(model.get_submodule(".".join(parts[:i])) for i in range(len(parts), -1, -1))
