"""Measures of attention rows: their entropy, the tokens that they fall on, how far they reach.

Every function takes softmax rows `(..., keys)` and returns one float64 number per row: the entries of a row of 4,097 keys are about 2e-4, and
their sums are compared with each other.
"""

import math

import torch
from torch import Tensor

from attnhook.attribution.token_tables import TOKEN_KINDS, TokenTable
from attnhook.errors import TokenLayoutError


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
    unit = torch.tensor(patch_size, device=queries.device)
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
