"""Statistics of attention by block and head, in one streaming pass over the rows.

They describe where attention goes. They say nothing about what it does to the output.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from attnhook.attribution.row_measures import RowStatistics, head_divergence, stream_rows
from attnhook.attribution.token_tables import TOKEN_KINDS, distinct_entries, query_table
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.sites import Layout
from attnhook.capture.softmax_matrix import BUDGET_BYTES, SoftmaxMatrix
from attnhook.capture.windows import PackedLayout
from attnhook.errors import RowsNotKeptError
from attnhook.options import PatchIndex, choose


class Averaged(StrEnum):
    """The captured rows that a mean is over."""

    ALL = "all"
    PATCHES = "patches"


@dataclass(frozen=True)
class Sink:
    """A token that receives far more attention than a uniform share.

    Attributes:
        image: Index in the batch.
        token: Index in the sequence of keys.
        patch: Row and column on the grid; None for special tokens and unknown layouts.
        mass: Attention that it receives, averaged over queries and heads.
        ratio: `mass` as a multiple of uniform attention, 1 / keys.
    """

    image: int
    token: int
    patch: PatchIndex | None
    mass: float
    ratio: float


@dataclass(frozen=True, eq=False)
class BlockStatistics:
    """Statistics of one block; tensors are `(batch, heads)` float64, means over the queries.

    Attributes:
        name: The block's name.
        queries: Number of rows that the means are over.
        entropy: In nats.
        relative_entropy: Entropy divided by `log(keys)`; 1 is uniform attention.
        distance_patches: Mean attention distance in patches; NaN if no captured row belongs to a patch.
        distance_pixels: The same in pixels of the model's input; NaN also if the patch size is unknown.
        class_mass: Attention on the class token.
        register_mass: Attention on register tokens.
        patch_mass: Attention on patches.
        other_mass: Attention on distillation and suffix tokens.
        top_mass: Mass of the k largest entries of a row.
        effective_patches: Exponential of the entropy over patches.
        head_diversity: Mean pairwise Jensen-Shannon divergence between heads, in nats, `(batch,)`.
        sinks: Tokens that receive far more than a uniform share, largest mass first.
    """

    name: str
    queries: int
    entropy: Tensor
    relative_entropy: Tensor
    distance_patches: Tensor
    distance_pixels: Tensor
    class_mass: Tensor
    register_mass: Tensor
    patch_mass: Tensor
    other_mass: Tensor
    top_mass: Tensor
    effective_patches: Tensor
    head_diversity: Tensor
    sinks: tuple[Sink, ...]

    def means(self) -> dict[str, float]:
        """Mean of every tensor over images and heads, by name, for a logger; NaN where undefined. `sinks` is their number per image."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        numbers = {name: float(value.mean()) for name, value in tensors.items()}
        return numbers | {"sinks": len(self.sinks) / self.entropy.shape[0]}


def attention_statistics(
    maps: AttentionMaps, *, queries: str = "all", top_k: int = 10, sink_ratio: float = 10.0, diversity: bool = True
) -> tuple[BlockStatistics, ...]:
    """Entropy, attention distance, token masses, head diversity and sinks of every block.

    Args:
        maps: The captured attention; with `rows="all"`, the means are over all queries, otherwise over the captured rows.
        queries: `"all"` captured rows, or `"patches"` for the rows of patches only.
        top_k: Number of entries that `top_mass` adds up.
        sink_ratio: A token is a sink if it receives at least this multiple of uniform attention.
        diversity: Whether to compare heads pairwise, which takes several times longer than everything else. `head_diversity` is NaN if False.

    Returns:
        One `BlockStatistics` per block.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, attention_statistics
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with torch.inference_mode(), AttentionCapture(model, rows="all") as capture:
        ...     logits = model(torch.randn(1, 3, 224, 224))
        >>> statistics = attention_statistics(capture.maps)
        >>> statistics[-1].entropy.shape, len(statistics)
        (torch.Size([1, 3]), 12)
    """
    kind = choose(Averaged, queries, "queries")
    return tuple(_block_statistics(maps, block, kind, top_k, sink_ratio, diversity=diversity) for block in maps)


def received_mass(block: BlockAttention) -> Tensor:
    """Mean attention that each key receives, `(batch * windows, heads, keys)` float64; sums to 1. Queries that are padding do not count."""
    return stream_rows(block).received


def find_sinks(rows: RowStatistics, *, ratio: float = 10.0) -> tuple[Sink, ...]:
    """Tokens that receive at least `ratio` times uniform attention, over queries and heads; in windows, the uniform share of one window.

    The class token is often among them. With one captured row, its peaks are.
    """
    received = rows.received.mean(dim=1).cpu()
    keys = received.shape[-1]
    where = (received * keys >= ratio).nonzero()
    masses = received[where[:, 0], where[:, 1]].tolist()
    found = [
        Sink(entry // len(rows.real), token, _patch(rows, entry, token), mass, mass * keys)
        for (entry, token), mass in zip(where.tolist(), masses, strict=True)
    ]
    return tuple(sorted(found, key=lambda sink: -sink.mass))


def _patch(rows: RowStatistics, entry: int, token: int) -> PatchIndex | None:
    if rows.keys is None:
        return None
    row, column = rows.keys[entry % len(rows.keys)].coordinates[token].tolist()
    return None if math.isnan(row) else (int(row), int(column))


def _block_statistics(
    maps: AttentionMaps, block: BlockAttention, averaged: Averaged, top_k: int, sink_ratio: float, *, diversity: bool
) -> BlockStatistics:
    keys, count = block.shape[3], distinct_entries(block)
    units = {"distance_patches": (1.0, 1.0), "distance_pixels": _patch_size(block.token_layout, maps)}
    rows = stream_rows(block, maps.selected_rows, units=units, top_k=top_k)
    windows = len(rows.real)
    values = rows.values | {"head_diversity": _head_divergence(block, wanted=diversity).expand(block.shape[:3])}
    chosen = [_chosen_queries(maps, block, rows.real[entry % windows], entry, averaged) for entry in range(count)]
    counted = torch.stack(chosen).to(rows.real.device)
    means = dict(zip(values, _means(torch.stack([*values.values()]), counted, windows), strict=True))
    head_diversity = means.pop("head_diversity")[:, 0]
    return BlockStatistics(
        name=block.name,
        queries=int(counted.sum()) * windows // count,
        relative_entropy=means["entropy"] / (math.log(keys) if keys > 1 else math.nan),
        head_diversity=head_diversity,
        sinks=find_sinks(rows, ratio=sink_ratio),
        **means,
    )


def _head_divergence(block: BlockAttention, *, wanted: bool) -> Tensor:
    """Divergence between the heads of every row, `(batch * windows, 1, queries)` float64."""
    batch, _, queries, _ = block.shape
    if not wanted:
        return torch.full((batch, 1, queries), math.nan, dtype=torch.float64, device=block.captured.device)
    if isinstance(block.captured, Tensor) and block.captured.nbytes <= BUDGET_BYTES:
        return head_divergence(block.captured)[:, None]
    matrix = block.captured if isinstance(block.captured, SoftmaxMatrix) else SoftmaxMatrix(block.captured)
    return matrix.rowwise(lambda rows, _: head_divergence(rows)[:, None])


def _means(values: Tensor, counted: Tensor, windows: int) -> Tensor:
    """Means over an image's windows and counted queries, without NaN: `(n, batch, heads)` of `(n, batch * windows, heads, queries)`."""
    chosen = counted.repeat(values.shape[1] // len(counted), 1)[:, None]
    values = values.masked_fill(~chosen, math.nan)
    return values.reshape(len(values), -1, windows, *values.shape[2:]).nanmean(dim=(2, 4))


def _patch_size(layout: Layout | str, maps: AttentionMaps) -> tuple[float, float]:
    """Height and width of a patch in pixels of the model's input."""
    area = maps.patch_area or maps.input_size
    if area is None or isinstance(layout, str | PackedLayout):
        return math.nan, math.nan
    return area[0] / layout.grid[0], area[1] / layout.grid[1]


def _chosen_queries(maps: AttentionMaps, block: BlockAttention, real: Tensor, entry: int, averaged: Averaged) -> Tensor:
    """Which rows a mean is over: `(rows,)` bool."""
    if averaged is Averaged.ALL:
        return real
    patches = query_table(maps.selected_rows, block, entry).kinds == TOKEN_KINDS.index("patch")
    if not patches.any():
        raise RowsNotKeptError(
            f"queries='patches' of block {block.name!r}: expected rows of patches, got none among the {block.shape[2]} captured rows. "
            "Capture with rows='all'."
        )
    return patches
