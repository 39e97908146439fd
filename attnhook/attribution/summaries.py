"""One block's attention in a few numbers, from one pass that is cheap enough for every training step, and how far two passes are apart.

What `statistics` computes of rows one function at a time, this adds up inside each chunk while it is in cache, and as means over queries only.
It says where attention goes, and nothing of what it does to the output.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution.row_measures import head_divergence
from attnhook.attribution.token_tables import TOKEN_KINDS, TokenTable, distinct_entries, query_table, token_table
from attnhook.capture.anatomy import Readout
from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import exact_arithmetic
from attnhook.capture.records import BlockAttention
from attnhook.capture.sites import Queries
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.windows import WindowLayout
from attnhook.errors import AttnhookError
from attnhook.options import Rows


@dataclass(frozen=True, eq=False)
class BlockSummary:
    """One block's attention in one forward; means over queries (padding of windows left out) and, but for the rows, over images.

    Attributes:
        name: The block's name.
        keys: Number of keys of a row.
        whole: Whether the means are over all tokens' rows; False if some rows were captured, or only a class token or a pooling asks.
        entropy: In nats, `(heads,)` float64.
        distance: Mean attention distance of patch queries, in patches, `(heads,)` float64; NaN where there are none.
        received: Share of the attention that each key receives, `(entries, heads, keys)` float64; entries are images, or their windows.
        readout: The row of the class token or the pooling where the head reads that and the block has it, else the mean of all rows (one
            window's, of windows): `(entries, heads, keys)` float32.
        patches: Which keys are patches, `(entries or 1, keys)` bool; None if that is not known.
    """

    name: str
    keys: int
    whole: bool
    entropy: Tensor
    distance: Tensor
    received: Tensor
    readout: Tensor
    patches: Tensor | None

    @property
    def relative_entropy(self) -> Tensor:
        """Entropy over `log(keys)`, `(heads,)`: 1 is uniform."""
        return self.entropy / (math.log(self.keys) if self.keys > 1 else math.nan)

    @property
    def sink_mass(self) -> Tensor:
        """The largest share of the attention that one key receives, `(heads,)` float64; 1 / keys is uniform."""
        return self.received.amax(dim=-1).mean(dim=0)

    @property
    def block_sink_mass(self) -> Tensor:
        """The same of all heads together: a key that every head looks at, `()` float64."""
        return self.received.mean(dim=1).amax(dim=-1).mean()

    @property
    def head_diversity(self) -> Tensor:
        """Mean Jensen-Shannon divergence, in nats, between the readout rows of every two heads, `()` float64; NaN with a single head."""
        return head_divergence(self.readout.double()[:, :, None]).mean()

    def live_patch_mass(self, ratio: float, largest: float) -> Tensor:
        """Share of each head's attention that falls on patches which are no sinks, `(heads,)` float64; NaN where patches are not known."""
        if self.patches is None:
            return torch.full_like(self.entropy, math.nan)
        sinks = self.received.mean(dim=1) >= min(ratio / self.keys, largest)
        live = self.patches & ~sinks
        return (self.received * live[:, None]).sum(dim=-1).mean(dim=0)

    def cpu(self) -> "BlockSummary":
        """The same on the CPU."""
        tensors: dict[str, Any] = {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def summarise_block(
    block: BlockAttention,
    readout: Readout,
    rows: Rows | Sequence[Any] = Rows.ALL,
    *,
    distances: bool = True,
    known: "dict[Any, Any] | None" = None,
) -> BlockSummary:
    """Sum a block up in one pass over its rows, of which no more than a chunk is ever there.

    Example:
        >>> import timm
        >>> from attnhook import AttentionCapture
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        ...     logits = model(torch.randn(2, 3, 224, 224))
        >>> summarise_block(capture.maps[-1], capture.maps.readout).received.shape
        torch.Size([2, 3, 197])
    """
    matrix = block.captured if isinstance(block.captured, SoftmaxMatrix) else SoftmaxMatrix(block.captured)
    weights = _weights(block, matrix.device)
    ranges = _known_ranges(block, rows, matrix.device, {} if known is None else known) if distances else None
    entries, heads, _, keys = matrix.shape
    entropy = torch.zeros(heads, dtype=torch.float64, device=matrix.device)
    received = torch.zeros(entries, heads, keys, dtype=torch.float64, device=matrix.device)
    reach = torch.zeros(2, heads, dtype=torch.float64, device=matrix.device)
    with exact_arithmetic(matrix.device.type):
        for entry, part, entropies, exponentials, sums, spare in matrix.entropy_chunks():
            weight = weights[entry % len(weights), part.queries]
            entropy[part.heads] += entropies @ weight
            factors = weight.float() if sums is None else weight.float() / sums
            received[entry, part.heads] += torch.matmul(factors.expand(part.shape)[:, None], exponentials)[:, 0]
            if ranges is not None:
                reach[:, part.heads] += ranges[entry % len(ranges)].reach(part.queries, exponentials, spare)
        windows = block.token_layout.num_windows if isinstance(block.token_layout, WindowLayout) else 1
        shares = weights.sum(dim=1).reshape(-1, 1, 1).repeat(entries // len(weights), 1, 1)
        received = received / shares.clamp_min(1e-12)  # a window of padding alone has none
        return BlockSummary(
            block.name,
            keys,
            rows is Rows.ALL and block.queries in (Queries.TOKENS, Queries.PATCHES),
            entropy / (entries // windows),
            reach[0] / reach[1],
            received,
            _readout_rows(block, matrix, received, readout, rows),
            _patches(block, matrix.device),
        )


def _weights(block: BlockAttention, device: torch.device) -> Tensor:
    """What each query counts, `(windows, queries)` float64: together 1 an image."""
    queries = block.shape[2]
    if not isinstance(block.token_layout, WindowLayout):
        return torch.full((1, queries), 1 / queries, dtype=torch.float64, device=device)
    real = block.token_layout.real_queries(queries).to(device, torch.float64)
    return real / real.sum()


def _patches(block: BlockAttention, device: torch.device) -> Tensor | None:
    layout = block.token_layout
    if isinstance(layout, str):
        return None
    count = distinct_entries(block)
    kinds = torch.stack([token_table(layout, entry).kinds for entry in range(count)])
    patches = (kinds == TOKEN_KINDS.index("patch")).to(device)
    return patches if count in (1, block.shape[0]) else patches.repeat(block.shape[0] // count, 1)


def _readout_rows(
    block: BlockAttention, matrix: SoftmaxMatrix, received: Tensor, readout: Readout, rows: Rows | Sequence[Any]
) -> Tensor:
    if rows is Rows.ALL and block.queries in (Queries.POOL, Queries.CLASS):
        own = matrix.rows(block.readout_rows or slice(None))
        return own.mean(dim=2)
    if rows is Rows.ALL and readout.rows is Rows.CLS and block.queries is Queries.TOKENS:
        try:
            return matrix.rows([block.layout.class_token()])[:, :, 0]
        except AttnhookError:  # tokens that fit no layout
            pass
    return received.float()


# --- distances ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Ranges:
    """How far every patch query of one entry is from every patch key.

    Attributes:
        keys: Where the patches stand among the keys.
        apart: `(queries, patches)` float32; 0 for queries that have no place.
        placed: Which queries have one, `(queries,)` float32.
    """

    keys: slice | Tensor
    apart: Tensor
    placed: Tensor

    def reach(self, queries: slice, rows: Tensor, spare: Tensor) -> Tensor:
        """Sum over queries of the mean distance, and the number of queries: `(2, heads)` float64."""
        seen = rows[..., self.keys]
        mass = seen.sum(dim=-1)
        far = torch.mul(seen, self.apart[queries], out=spare[..., : seen.shape[-1]]).sum(dim=-1)
        counted = self.placed[queries] * (mass > 0)
        return torch.stack([(far * counted / mass.clamp_min(1e-30)).sum(dim=-1), counted.sum(dim=-1)]).double()


def _known_ranges(
    block: BlockAttention, rows: Rows | Sequence[Any], device: torch.device, known: dict[Any, Any]
) -> list[_Ranges] | None:
    """`_ranges`, of all blocks with the same tokens in order once."""
    if rows is not Rows.ALL or not isinstance(block.token_layout, TokenLayout) or distinct_entries(block) > 1:
        return _ranges(block, rows, device)
    key = block.token_layout, block.query_token_layout, block.queries, block.shape[2:], device
    if key not in known:
        known[key] = _ranges(block, rows, device)
    found: list[_Ranges] | None = known[key]
    return found


def _ranges(block: BlockAttention, rows: Rows | Sequence[Any], device: torch.device) -> list[_Ranges] | None:
    if isinstance(block.token_layout, str):
        return None
    layout = block.token_layout
    pairs = [(token_table(layout, entry), query_table(rows, block, entry)) for entry in range(distinct_entries(block))]
    made = [_range(keys, asking, device) for keys, asking in pairs]
    return made if any(bool(one.placed.any()) for one in made) else None


def _range(keys: TokenTable, asking: TokenTable, device: torch.device) -> _Ranges:
    chosen = keys.chosen("patch")
    placed = ~asking.places.isnan().any(dim=-1)
    apart = torch.cdist(torch.nan_to_num(asking.places), keys.places[chosen])
    return _Ranges(
        chosen.to(device) if isinstance(chosen, Tensor) else chosen,
        (apart * placed[:, None]).to(device),
        placed.float().to(device),
    )
