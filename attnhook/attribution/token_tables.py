"""What the tokens of one batch entry are, by index: their kind and their place on the grid, for layouts of whole images and of windows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.capture.packing import PackedLayout
from attnhook.capture.records import BlockAttention
from attnhook.capture.sites import Layout, Queries
from attnhook.capture.windows import WindowLayout
from attnhook.options import Rows

TOKEN_KINDS = ("class", "register", "patch", "other")
"""What a `TokenTable` tells apart; other: distillation and suffix tokens, and the padding of windows."""

_CLASS, _REGISTER, _PATCH, _OTHER = range(4)


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The tokens of one sequence, or of one window.

    Attributes:
        kinds: Index into `TOKEN_KINDS` of each token, `(tokens,)` int64.
        places: Row and column on the grid of each token, `(tokens, 2)` float32; NaN for those that are no patches.
    """

    kinds: Tensor
    places: Tensor

    def chosen(self, kind: str) -> slice | Tensor:
        """Where the tokens of a kind stand: a slice if they stand together, else int64 indices."""
        index = (self.kinds == TOKEN_KINDS.index(kind)).nonzero()[:, 0]
        if not len(index):
            return slice(0, 0)
        first, last = int(index[0]), int(index[-1])
        return slice(first, last + 1) if last - first + 1 == len(index) else index


def token_table(layout: Layout, entry: int = 0, *, of_queries: bool = False) -> TokenTable:
    """Look the tokens of one batch entry up.

    Example:
        >>> token_table(TokenLayout(grid=(1, 2), registers=1)).places
        tensor([[nan, nan],
                [nan, nan],
                [0., 0.],
                [0., 1.]])
    """
    if isinstance(layout, WindowLayout):
        return _of_window(layout, entry, of_queries=of_queries)
    if isinstance(layout, PackedLayout):
        return _of_images(layout, entry)
    kinds = torch.full((layout.num_tokens,), _OTHER, device="cpu")
    kinds[layout.num_prefix_tokens - layout.registers : layout.num_prefix_tokens] = _REGISTER
    kinds[layout.patch_tokens] = _PATCH
    if layout.cls is not None:
        kinds[layout.class_token()] = _CLASS
    order = layout.order
    in_order = torch.arange(layout.num_patches, device="cpu")
    index = in_order if order is None else order[entry if len(order) > 1 else 0].cpu()
    cell = index % (layout.grid[0] * layout.grid[1])  # frames of a video share their places
    places = torch.full((layout.num_tokens, 2), float("nan"), device="cpu")
    places[layout.patch_tokens] = torch.stack([cell // layout.grid[1], cell % layout.grid[1]], dim=-1).float()
    return TokenTable(kinds, places)


_NOT_TOKENS = (Queries.POOL, Queries.CLASS)


def query_table(rows: Rows | Sequence[Any], block: BlockAttention, entry: int) -> TokenTable:
    """Look up what the kept rows of one batch entry are, their places in units of the keys' grid."""
    count = block.shape[2]
    nowhere = TokenTable(torch.full((count,), _OTHER, device="cpu"), torch.full((count, 2), math.nan, device="cpu"))
    layout = block.token_layout if block.query_token_layout is None else block.query_token_layout
    mean = isinstance(rows, Rows) and rows is not Rows.ALL
    if isinstance(layout, str) or isinstance(block.token_layout, str) or mean or block.queries in _NOT_TOKENS:
        return nowhere
    table = token_table(layout, entry, of_queries=True)
    places = _on_grid_of_keys(table.places, layout, block.token_layout)
    if not isinstance(rows, Rows):
        chosen = layout.tokens_of([*rows])
        return TokenTable(table.kinds[chosen], places[chosen])
    return TokenTable(table.kinds, places) if len(table.kinds) == count else nowhere


def distinct_entries(block: BlockAttention) -> int:
    """After how many batch entries the same tokens stand at the same places again, among keys and among queries."""
    counts = [1]
    for layout in (block.token_layout, block.query_token_layout):
        if isinstance(layout, WindowLayout):
            counts.append(layout.num_windows)
        elif isinstance(layout, PackedLayout) or (isinstance(layout, TokenLayout) and layout.order is not None):
            counts.append(block.shape[0])
    return max(counts)


def _on_grid_of_keys(places: Tensor, queries: Layout, keys: Layout) -> Tensor:
    """Centres of the queries' patches in units of the keys' patches, where the one grid is coarser than the other."""
    if isinstance(queries, PackedLayout) or isinstance(keys, PackedLayout):
        return places
    grid = queries.query_grid or queries.grid if isinstance(queries, WindowLayout) else queries.grid
    if grid == keys.grid:
        return places
    ratio = torch.tensor([keys.grid[0] / grid[0], keys.grid[1] / grid[1]], device="cpu")
    return (places + 0.5) * ratio - 0.5


def _of_window(layout: WindowLayout, entry: int, *, of_queries: bool) -> TokenTable:
    positions, width = layout.positions, layout.grid[1]
    if of_queries and layout.query_positions is not None:
        positions, width = layout.query_positions, (layout.query_grid or layout.grid)[1]
    index = positions[entry % layout.num_windows].cpu()
    places = torch.stack([index // width, index % width], dim=-1).float()
    kinds = torch.where(index < 0, _OTHER, _PATCH)
    return TokenTable(kinds, places.masked_fill((index < 0)[:, None], float("nan")))


def _of_images(layout: PackedLayout, entry: int) -> TokenTable:
    """Several images in one sequence: each token's place is on its own image's grid."""
    kinds = torch.full((layout.num_tokens,), _OTHER, device="cpu")
    places = torch.full((layout.num_tokens, 2), float("nan"), device="cpu")
    for image, at, start in zip(layout.images, layout.entries, layout.starts, strict=True):
        if at == entry:
            table = token_table(image)
            kinds[start : start + image.num_tokens] = table.kinds
            places[start : start + image.num_tokens] = table.places
    return TokenTable(kinds, places)
