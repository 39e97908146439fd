"""The kind and the grid position of every token of a batch entry, for layouts of whole images and of windows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import BlockAttention
from attnhook.capture.sites import Layout, Queries
from attnhook.capture.windows import PackedLayout, WindowLayout
from attnhook.options import Rows

TOKEN_KINDS = ("class", "register", "patch", "other")
"""Kinds of tokens; "other" are distillation and suffix tokens, and the padding of windows."""

_CLASS, _REGISTER, _PATCH, _OTHER = range(4)


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The tokens of one sequence, or of one window."""

    kinds: Tensor  # index into `TOKEN_KINDS` of each token, `(tokens,)` int64
    coordinates: Tensor  # row and column of each on the grid, `(tokens, 2)` float32; NaN for all but patches

    def chosen(self, kind: str) -> slice | Tensor:
        """Index of the tokens of a kind: a slice if they are contiguous, otherwise int64 indices."""
        index = (self.kinds == TOKEN_KINDS.index(kind)).nonzero()[:, 0]
        if not len(index):
            return slice(0, 0)
        first, last = int(index[0]), int(index[-1])
        return slice(first, last + 1) if last - first + 1 == len(index) else index


def token_table(layout: Layout, entry: int = 0, *, of_queries: bool = False) -> TokenTable:
    """The tokens of one batch entry."""
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
    cell = index % (layout.grid[0] * layout.grid[1])  # frames of a video share their grid
    coordinates = torch.full((layout.num_tokens, 2), math.nan, dtype=torch.float32, device="cpu")
    coordinates[layout.patch_tokens] = torch.stack([cell // layout.grid[1], cell % layout.grid[1]], dim=-1).float()
    return TokenTable(kinds, coordinates)


_NOT_IN_LAYOUT = (Queries.POOL, Queries.CLASS)


def query_table(rows: Rows | Sequence[Any], block: BlockAttention, entry: int) -> TokenTable:
    """The captured rows of one batch entry, with positions in units of the keys' grid."""
    count = block.shape[2]
    unknown = TokenTable(
        torch.full((count,), _OTHER, device="cpu"), torch.full((count, 2), math.nan, dtype=torch.float32, device="cpu")
    )
    layout = block.token_layout if block.query_token_layout is None else block.query_token_layout
    mean = isinstance(rows, Rows) and rows is not Rows.ALL
    if mean or isinstance(layout, str) or isinstance(block.token_layout, str) or block.queries in _NOT_IN_LAYOUT:
        return unknown
    table = token_table(layout, entry, of_queries=True)
    coordinates = _on_grid_of_keys(table.coordinates, layout, block.token_layout)
    if not isinstance(rows, Rows):
        chosen = layout.tokens_of([*rows])
        return TokenTable(table.kinds[chosen], coordinates[chosen])
    return TokenTable(table.kinds, coordinates) if len(table.kinds) == count else unknown


def distinct_entries(block: BlockAttention) -> int:
    """Number of batch entries after which keys and queries repeat: 1 if all entries have the same tokens."""
    counts = [1]
    for layout in (block.token_layout, block.query_token_layout):
        if isinstance(layout, WindowLayout):
            counts.append(layout.num_windows)
        elif isinstance(layout, PackedLayout) or (isinstance(layout, TokenLayout) and layout.order is not None):
            counts.append(block.shape[0])
    return max(counts)


def _on_grid_of_keys(coordinates: Tensor, queries: Layout, keys: Layout) -> Tensor:
    """Centres of the queries' patches in units of the keys' patches, for pooled queries or keys."""
    if isinstance(queries, PackedLayout) or isinstance(keys, PackedLayout):
        return coordinates
    grid = queries.query_grid or queries.grid if isinstance(queries, WindowLayout) else queries.grid
    if grid == keys.grid:
        return coordinates
    ratio = coordinates.new_tensor([keys.grid[0] / grid[0], keys.grid[1] / grid[1]])
    return (coordinates + 0.5) * ratio - 0.5


def _of_window(layout: WindowLayout, entry: int, *, of_queries: bool) -> TokenTable:
    positions, width = layout.positions, layout.grid[1]
    if of_queries and layout.query_positions is not None:
        positions, width = layout.query_positions, (layout.query_grid or layout.grid)[1]
    index = positions[entry % layout.num_windows].cpu()
    coordinates = torch.stack([index // width, index % width], dim=-1).float()
    kinds = torch.where(index < 0, _OTHER, _PATCH)
    return TokenTable(kinds, coordinates.masked_fill((index < 0)[:, None], float("nan")))


def _of_images(layout: PackedLayout, entry: int) -> TokenTable:
    """Several images in one sequence; positions are on each image's own grid."""
    kinds = torch.full((layout.num_tokens,), _OTHER, device="cpu")
    coordinates = torch.full((layout.num_tokens, 2), math.nan, dtype=torch.float32, device="cpu")
    for image, at, start in zip(layout.images, layout.entries, layout.starts, strict=True):
        if at == entry:
            table = token_table(image)
            kinds[start : start + image.num_tokens] = table.kinds
            coordinates[start : start + image.num_tokens] = table.coordinates
    return TokenTable(kinds, coordinates)
