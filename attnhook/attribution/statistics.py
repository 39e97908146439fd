"""Statistics of attention by block and head, streamed: no matrix is ever whole.

From `rows="all"` they are means over all queries (or all patch queries); from other captures means over the rows that were kept. They describe
where attention goes. They say nothing about what it does to the output.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import torch
from torch import Tensor

from attnhook.attribution.row_measures import (
    attention_distance,
    effective_patches,
    head_divergence,
    row_entropy,
    token_mass,
    top_mass,
)
from attnhook.attribution.token_tables import TOKEN_KINDS, TokenTable, distinct_entries, query_table, token_table
from attnhook.capture.packing import PackedLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.sites import Layout
from attnhook.capture.softmax_matrix import BUDGET_BYTES, RowChunk, SoftmaxMatrix
from attnhook.capture.windows import WindowLayout
from attnhook.errors import RowsNotKeptError
from attnhook.options import PatchIndex, choose


class Averaged(StrEnum):
    """Over which of the kept rows a mean is taken."""

    ALL = "all"
    PATCHES = "patches"


@dataclass(frozen=True)
class Sink:
    """A token that attracts far more attention than its share.

    Attributes:
        image: Index in the batch.
        token: Index in the sequence of keys.
        patch: Its row and column on the grid, None for special tokens and unknown layouts.
        mass: Mean attention that it receives, over queries and heads.
        ratio: `mass` in units of uniform attention, 1 / keys.
    """

    image: int
    token: int
    patch: PatchIndex | None
    mass: float
    ratio: float


@dataclass(frozen=True, eq=False)
class BlockStatistics:
    """What `attention_statistics` says of one block; tensors `(batch, heads)` float64, means over the queries.

    Attributes:
        name: The block's name.
        queries: How many rows the means are over.
        entropy: In nats.
        relative_entropy: Entropy over `log(keys)`: 1 is uniform.
        distance_patches: Mean attention distance in patches; NaN where no kept row belongs to a patch.
        distance_pixels: The same in pixels of the model's input; NaN also where the patches' size is unknown.
        class_mass: Attention on the class token.
        register_mass: Attention on register tokens.
        patch_mass: Attention on patches.
        other_mass: Attention on distillation and suffix tokens.
        top_mass: Mass of the k largest entries of a row.
        effective_patches: Exponential of the entropy over patches.
        head_diversity: Mean pairwise Jensen-Shannon divergence between heads, in nats, `(batch,)`.
        sinks: Tokens that attract far more than their share, strongest first.
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
        """Every tensor's mean over images and heads, by name: what a logger takes. NaN where undefined, `sinks` is their number an image."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        numbers = {name: float(value.mean()) for name, value in tensors.items()}
        return numbers | {"sinks": len(self.sinks) / self.entropy.shape[0]}


def attention_statistics(
    maps: AttentionMaps, *, queries: str = "all", top_k: int = 10, sink_ratio: float = 10.0, diversity: bool = True
) -> tuple[BlockStatistics, ...]:
    """All statistics of all blocks, one streaming pass a block.

    Args:
        maps: What was captured; `rows="all"` for statistics over all queries.
        queries: `"all"` kept rows, or `"patches"`: those of patches only.
        top_k: How many entries `top_mass` adds up.
        sink_ratio: From how many times uniform attention on a token counts as a sink.
        diversity: Whether to compare heads pairwise, which costs heads / 2 times everything else; NaN if not.

    Returns:
        One a block.

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


def entropy(block: BlockAttention, *, relative: bool = False) -> Tensor:
    """Mean entropy over all kept rows.

    Returns:
        `(batch, heads)` float64.
    """
    kept = block.captured
    values = kept.entropy() if isinstance(kept, SoftmaxMatrix) else row_entropy(kept)
    mean = values.mean(dim=2, dtype=torch.float64)
    return mean / _log(block.shape[3]) if relative else mean


def received_mass(block: BlockAttention) -> Tensor:
    """Mean attention that each key receives, over all kept rows.

    Returns:
        `(batch, heads, keys)` float64; sums to 1. Windows stand in the batch axis.
    """
    kept = block.captured
    if isinstance(kept, SoftmaxMatrix):
        return kept.column_sums().double() / kept.shape[2]
    return kept.mean(dim=2, dtype=torch.float64)


def find_sinks(block: BlockAttention, *, ratio: float = 10.0) -> tuple[Sink, ...]:
    """Tokens that receive, over queries and heads, at least `ratio` times uniform attention.

    Whether they mean something visual is not looked at: a class token is often among them, and with one kept row its peaks are. Of windows,
    uniform is one window's.
    """
    received = received_mass(block).mean(dim=1).cpu()
    keys = received.shape[-1]
    where = (received * keys >= ratio).nonzero()
    masses = received[where[:, 0], where[:, 1]].tolist()
    count = distinct_entries(block)
    places = cache(lambda entry: _places(block, entry))
    found = [
        Sink(entry // _windows(block), token, _patch(places(entry % count)[token]), mass, mass * keys)
        for (entry, token), mass in zip(where.tolist(), masses, strict=True)
    ]
    return tuple(sorted(found, key=lambda sink: -sink.mass))


def _places(block: BlockAttention, entry: int) -> list[list[float]]:
    if isinstance(block.token_layout, str):
        return [[math.nan, math.nan]] * block.shape[3]
    places: list[list[float]] = token_table(block.token_layout, entry).places.tolist()
    return places


def _patch(place: list[float]) -> PatchIndex | None:
    row, column = place
    return None if math.isnan(row) else (int(row), int(column))


def head_diversity(block: BlockAttention) -> Tensor:
    """Mean Jensen-Shannon divergence, in nats, between every two heads' rows, over all kept rows.

    Returns:
        `(batch,)` float64: 0 where heads look alike, at most log 2; NaN with a single head.
    """
    values = _stream(block, lambda rows, _: head_divergence(rows)[:, None, :, None])
    return values[:, 0, :, 0].mean(dim=1)


# --- one pass -----------------------------------------------------------------------------------------------------------------------------


def _block_statistics(
    maps: AttentionMaps, block: BlockAttention, averaged: Averaged, top_k: int, sink_ratio: float, *, diversity: bool
) -> BlockStatistics:
    layout = None if isinstance(block.token_layout, str) else block.token_layout
    pixel = _patch_pixels(layout, maps)
    count = distinct_entries(block)
    tables = [] if layout is None else [token_table(layout, entry) for entry in range(count)]
    asking = [query_table(maps.selected_rows, block, entry) for entry in range(count)]

    def measure(rows: Tensor, chunk: RowChunk) -> Tensor:
        columns = [row_entropy(rows), top_mass(rows, top_k)]
        nothing = torch.full_like(columns[0], math.nan)
        if layout is None:
            columns += [nothing] * 7
        else:
            keys, places = tables[chunk.image % count], asking[chunk.image % count].places[chunk.queries]
            columns += [*token_mass(rows, keys).unbind(-1), effective_patches(rows, keys)]
            columns += [attention_distance(rows, keys, places, patch_size=size) for size in ((1.0, 1.0), pixel)]
        apart = head_divergence(rows)[:, None].expand_as(nothing) if diversity else nothing
        return torch.stack([*columns, apart], dim=-1)

    at_once = count == 1 and isinstance(block.captured, Tensor) and block.captured.nbytes <= BUDGET_BYTES
    values = measure(block.rows, RowChunk(0, slice(None))) if at_once else _stream(block, measure)
    counted = torch.stack([_counted(block, table, averaged) for table in asking])
    means = _means(values, counted.repeat(len(values) // count, 1).to(values.device), _windows(block))
    spread, top, cls, registers, patches, other, effective, far, far_pixels, apart = means.unbind(-1)
    return BlockStatistics(
        name=block.name,
        queries=int(counted.sum()) * _windows(block) // count,
        entropy=spread,
        relative_entropy=spread / _log(block.shape[3]),
        distance_patches=far,
        distance_pixels=far_pixels,
        class_mass=cls,
        register_mass=registers,
        patch_mass=patches,
        other_mass=other,
        top_mass=top,
        effective_patches=effective,
        head_diversity=apart[:, 0],
        sinks=find_sinks(block, ratio=sink_ratio),
    )


def _means(values: Tensor, counted: Tensor, windows: int) -> Tensor:
    """Means over an image's windows and counted queries, NaN left out: `(batch, heads, n)` of `(batch * windows, heads, queries, n)`."""
    weights = counted[:, None, :, None] & ~values.isnan()
    shape = (values.shape[0] // windows, windows, *values.shape[1:])
    total = torch.where(weights, values, 0.0).reshape(shape).sum(dim=(1, 3))
    return torch.div(total, weights.reshape(shape).sum(dim=(1, 3)))


def _stream(block: BlockAttention, measure: Callable[[Tensor, RowChunk], Tensor]) -> Tensor:
    matrix = block.captured if isinstance(block.captured, SoftmaxMatrix) else SoftmaxMatrix(block.captured)
    return matrix.rowwise(measure)


def _windows(block: BlockAttention) -> int:
    return block.token_layout.num_windows if isinstance(block.token_layout, WindowLayout) else 1


def _log(keys: int) -> float:
    return math.log(keys) if keys > 1 else math.nan


def _patch_pixels(layout: Layout | None, maps: AttentionMaps) -> tuple[float, float]:
    area = maps.patch_area or maps.input_size
    if area is None or layout is None or isinstance(layout, PackedLayout):
        return math.nan, math.nan
    return area[0] / layout.grid[0], area[1] / layout.grid[1]


def _counted(block: BlockAttention, queries: TokenTable, averaged: Averaged) -> Tensor:
    """Which rows a mean is over: `(rows,)` bool. Padding of windows is never among them."""
    patches = queries.kinds == TOKEN_KINDS.index("patch")
    if averaged is Averaged.ALL:
        return patches if isinstance(block.token_layout, WindowLayout) and patches.any() else torch.ones_like(patches)
    if not patches.any():
        raise RowsNotKeptError(
            f"queries='patches' of block {block.name!r}: expected rows of patches, got none among the {block.shape[2]} kept. "
            "Capture with rows='all'."
        )
    return patches
