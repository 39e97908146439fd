"""Measures of attention rows (entropy, the tokens that they fall on, how far they reach), and one pass over all rows of a block for them.

Every measure takes softmax rows `(..., keys)` and returns one float64 number per row: the entries of a row of 4,097 keys are about 2e-4, and
their sums are compared with each other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution.token_tables import TOKEN_KINDS, TokenTable, distinct_entries, query_table, token_table
from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import exact_arithmetic
from attnhook.capture.records import BlockAttention
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.windows import WindowLayout
from attnhook.errors import TokenLayoutError
from attnhook.options import Rows


def row_entropy(rows: Tensor) -> Tensor:
    """Shannon entropy in nats, `-sum_j p_j log p_j`: 0 for one-hot rows, `log(keys)` for uniform ones."""
    entropy: Tensor = torch.special.entr(rows)
    return entropy.sum(dim=-1, dtype=torch.float64)


def top_mass(rows: Tensor, k: int) -> Tensor:
    """Mass of the k largest entries, or of all if there are fewer."""
    if k < 1:
        raise ValueError(f"top-k mass: expected k of at least 1, got {k}.")
    return rows.topk(min(k, rows.shape[-1]), dim=-1, sorted=False).values.sum(dim=-1, dtype=torch.float64)


def token_mass(rows: Tensor, keys: TokenTable) -> Tensor:
    """Mass on each of `TOKEN_KINDS`, `(..., 4)`; they sum to the row's sum."""
    _check(rows, keys)
    return torch.stack([rows[..., keys.chosen(kind)].sum(dim=-1, dtype=torch.float64) for kind in TOKEN_KINDS], dim=-1)


def effective_patches(rows: Tensor, keys: TokenTable) -> Tensor:
    """Effective number of patches that a row attends to: the exponential of the entropy of its patches, renormalised (Hill number of order 1).

    1 if all patch attention is on one patch, the number of patches if it is uniform; NaN for a row without mass on patches.
    """
    _check(rows, keys)
    patches = rows[..., keys.chosen("patch")]
    mass = patches.sum(dim=-1, dtype=torch.float64)
    # With m the mass: H(p / m) = H(p) / m + log m.
    return torch.exp(row_entropy(patches) / mass + torch.log(mass))


def attention_distance(rows: Tensor, patches: slice | Tensor, distances: Tensor, spare: Tensor | None = None) -> Tensor:
    """Mean distance between a query patch and the patches that it attends to, `(..., queries)` float64.

    With d_ij the `distances` `(queries, patches)`: `sum_j A_ij d_ij / sum_j A_ij`, j over `patches` only (Dosovitskiy et al., An Image is Worth
    16x16 Words, 2020, arXiv 2010.11929, figure 7). NaN for a row without a position or without mass on patches. Each of the `rows`
    `(..., queries, keys)` may be multiplied by a factor of its own; `spare`, of their shape, is overwritten.
    """
    seen = rows[..., patches]
    weighted = torch.mul(seen, distances, out=None if spare is None else spare[..., : seen.shape[-1]])
    return weighted.sum(dim=-1).double() / seen.sum(dim=-1)  # sums of float32 lose no more than the products have lost


def patch_distances(queries: Tensor, keys: Tensor, patch_size: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Distance between the centres of patches, `(queries, keys)` float32, from their `(row, column)` in units of `patch_size`."""
    unit = queries.new_tensor(patch_size)
    # By differences: the default of more than 25 patches, a product of matrices, loses half of the digits.
    return torch.cdist(queries * unit, keys * unit, compute_mode="donot_use_mm_for_euclid_dist")


def row_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats, `H((p + q) / 2) - (H(p) + H(q)) / 2`: 0 for equal rows, log 2 for rows without a common key."""
    divergence = row_entropy((first + second) / 2) - (row_entropy(first) + row_entropy(second)) / 2
    return divergence.clamp_min(0.0)


def head_divergence(rows: Tensor) -> Tensor:
    """Mean of `row_divergence` over all pairs of heads: `(batch, queries)` of `(batch, heads, queries, keys)`; NaN with a single head."""
    heads = rows.shape[1]
    if heads < 2:
        return torch.full((rows.shape[0], rows.shape[2]), math.nan, dtype=torch.float64, device=rows.device)
    total = row_entropy(rows).sum(dim=1) * (-(heads - 1) / 2)
    for head in range(heads - 1):
        total += row_entropy((rows[:, head : head + 1] + rows[:, head + 1 :]) / 2).sum(dim=1)
    return (total / (heads * (heads - 1) / 2)).clamp_min_(0.0)


def _check(rows: Tensor, keys: TokenTable) -> None:
    if rows.shape[-1] != len(keys.kinds):
        raise TokenLayoutError(
            f"the rows do not fit the token layout: expected {len(keys.kinds)} keys, got {rows.shape[-1]}. Pass whole rows."
        )


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
                    values[name][at] = attention_distance(exponentials, patches, one, spare)
            if top_k is not None:
                rows = exponentials if sums is None else exponentials.div_(sums[..., None])
                values["top_mass"][at] = top_mass(rows, top_k)
                if tables is not None:
                    keys = tables[entry % count]
                    values["effective_patches"][at] = effective_patches(rows, keys)
                    masses = token_mass(rows, keys).unbind(-1)
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
    apart = [patch_distances(coordinates, keys.coordinates[patches], size) for size in patch_sizes]
    return patches.to(device) if isinstance(patches, Tensor) else patches, torch.stack(apart).to(device)
