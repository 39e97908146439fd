"""One pass over all rows of a block, a chunk at a time: the numbers behind `attention_statistics`, the monitor and the comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution import row_measures
from attnhook.attribution.token_tables import TOKEN_KINDS, TokenTable, distinct_entries, query_table, token_table
from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import exact_arithmetic
from attnhook.capture.records import BlockAttention
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.windows import WindowLayout
from attnhook.options import Rows

IN_PATCHES: Mapping[str, tuple[float, float]] = MappingProxyType({"distance_patches": (1.0, 1.0)})
MASSES = ("top_mass", *(f"{kind}_mass" for kind in TOKEN_KINDS), "effective_patches")

Distances = tuple[slice | Tensor, Tensor]
"""Where the patches are among the keys, and how far each query is from each of them: `(units, queries, patches)` float32, NaN if unknown."""

Known = dict[Any, list[Distances] | None]


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """Numbers of every row of a block; an entry of the batch is an image, or one of its windows."""

    values: dict[str, Tensor]  # by name, `(entries, heads, queries)` float64; NaN where undefined
    received: Tensor  # mean attention of each key from the real queries, `(entries, heads, keys)` float64
    real: Tensor  # which queries are not padding, `(windows or 1, queries)` bool
    keys: list[TokenTable] | None  # what the keys of each distinct entry are; None if the layout is unknown


def stream_rows(
    block: BlockAttention,
    selected_rows: Rows | Sequence[Any] = Rows.ALL,
    *,
    units: Mapping[str, tuple[float, float]] = IN_PATCHES,
    top_k: int | None = None,
    known: Known | None = None,
) -> RowStatistics:
    """Compute every row once and measure it: its entropy, its distances and, if `top_k` is given, the `MASSES`.

    `units` has a patch's height and width for every distance wanted. Distances are added to `known`, for later blocks with the same tokens.
    """
    count, matrix = distinct_entries(block), block.captured
    if isinstance(matrix, Tensor):
        # Images with the same tokens are computed at once, as heads of one image.
        matrix = SoftmaxMatrix(matrix.flatten(0, 1)[None] if len(matrix) and count == 1 else matrix)
    layout, device, shape = block.token_layout, matrix.device, matrix.shape[:3]
    tables = None if isinstance(layout, str) else [token_table(layout, entry) for entry in range(count)]
    known = {} if known is None else known
    distances = None if tables is None else _distances(block, selected_rows, tables, [*units.values()], known)
    real = _real_queries(block).to(device)
    names = ("entropy", *units, *(() if top_k is None else MASSES))
    values = {name: torch.full(shape, torch.nan, dtype=torch.float64, device=device) for name in names}
    received = torch.zeros(*shape[:2], matrix.shape[3], dtype=torch.float64, device=device)
    with exact_arithmetic(device.type):
        for entry, part, entropy, exponentials, sums, spare in matrix.entropy_chunks():
            at = entry, part.heads, part.queries
            values["entropy"][at] = entropy
            counted = real[entry % len(real), part.queries].to(exponentials.dtype)
            factors = counted.expand(part.shape) if sums is None else counted / sums
            received[entry, part.heads] += torch.matmul(factors[:, None], exponentials)[:, 0]
            if distances is not None:
                patches, apart = distances[entry % count]
                for name, one in zip(units, apart[:, part.queries], strict=True):
                    values[name][at] = row_measures.attention_distance(exponentials, patches, one, spare)
            if top_k is not None:
                rows = exponentials if sums is None else exponentials.div_(sums[..., None])
                values["top_mass"][at] = row_measures.top_mass(rows, top_k)
                if tables is not None:
                    keys = tables[entry % count]
                    values["effective_patches"][at] = row_measures.effective_patches(rows, keys)
                    masses = row_measures.token_mass(rows, keys).unbind(-1)
                    for kind, mass in zip(TOKEN_KINDS, masses, strict=True):
                        values[f"{kind}_mass"][at] = mass
    batch, heads, queries, keys_per_row = block.shape
    received.view(-1, len(real), *received.shape[1:]).div_(real.sum(dim=1).clamp_min(1)[:, None, None])
    values = {name: value.view(batch, heads, queries) for name, value in values.items()}
    return RowStatistics(values, received.view(batch, heads, keys_per_row), real, tables)


def _real_queries(block: BlockAttention) -> Tensor:
    layout, queries = block.token_layout, block.shape[2]
    every = torch.ones(1, queries, dtype=torch.bool, device="cpu")
    return layout.real_queries(queries) if isinstance(layout, WindowLayout) else every


def _distances(
    block: BlockAttention,
    selected_rows: Rows | Sequence[Any],
    keys: list[TokenTable],
    patch_sizes: Sequence[tuple[float, float]],
    known: Known,
) -> list[Distances] | None:
    """Distances for each distinct entry; None if no query is a patch."""
    device = block.captured.device
    name = block.token_layout, block.query_token_layout, block.queries, block.shape[2:], device, *patch_sizes
    shared = selected_rows is Rows.ALL and isinstance(block.token_layout, TokenLayout) and len(keys) == 1
    if shared and name in known:
        return known[name]
    coordinates = [query_table(selected_rows, block, entry).coordinates for entry in range(len(keys))]
    found = None
    if not all(bool(one.isnan().all()) for one in coordinates):
        found = [_between(*pair, patch_sizes, device) for pair in zip(coordinates, keys, strict=True)]
    if shared:
        known[name] = found
    return found


def _between(
    coordinates: Tensor, keys: TokenTable, patch_sizes: Sequence[tuple[float, float]], device: torch.device
) -> Distances:
    patches = keys.chosen("patch")
    apart = [row_measures.patch_distances(coordinates, keys.coordinates[patches], size) for size in patch_sizes]
    return patches.to(device) if isinstance(patches, Tensor) else patches, torch.stack(apart).to(device)
