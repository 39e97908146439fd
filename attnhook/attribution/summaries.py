"""One block's attention in a few numbers, cheap enough for every training step, and alarms when they pass a threshold.

The numbers are means over queries and images. They say where attention goes, and nothing about what it does to the output. Thresholds know
nothing about trends; entropy collapse precedes divergence (Zhai et al. 2023, arXiv 2303.06296).
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution.row_measures import head_divergence, stream_rows
from attnhook.attribution.token_tables import TOKEN_KINDS, TokenTable
from attnhook.capture.anatomy import Readout
from attnhook.capture.records import BlockAttention
from attnhook.capture.sites import Queries
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import AttnhookError
from attnhook.options import Rows


@dataclass(frozen=True, eq=False)
class BlockSummary:
    """One block's attention in one forward, averaged over queries (without the padding of windows) and over images.

    An entry is an image or one of its windows.
    """

    name: str
    keys: int  # their number
    whole: bool  # whether all tokens are queries and all their rows were captured
    entropy: Tensor  # in nats, `(heads,)` float64
    distance: Tensor  # mean attention distance of patch queries, in patches, `(heads,)` float64; NaN if there are none
    received: Tensor  # share of the attention that each key receives, `(entries, heads, keys)` float64
    # The row of the class token or the pooling query if the head reads it and the block has it, else the mean of all rows.
    readout: Tensor  # `(entries, heads, keys)` float32
    patches: Tensor | None  # which keys are patches, `(entries or 1, keys)` bool; None if the layout is unknown

    @property
    def relative_entropy(self) -> Tensor:
        """Entropy over `log(keys)`, `(heads,)`: 1 is uniform."""
        return self.entropy / (math.log(self.keys) if self.keys > 1 else math.nan)

    @property
    def sink_mass(self) -> Tensor:
        """Largest share of the attention that one key receives, `(heads,)` float64; 1 / keys if uniform."""
        return self.received.amax(dim=-1).mean(dim=0)

    @property
    def block_sink_mass(self) -> Tensor:
        """Largest share that one key receives from all heads together, `()` float64."""
        return self.received.mean(dim=1).amax(dim=-1).mean()

    @property
    def head_diversity(self) -> Tensor:
        """Mean Jensen-Shannon divergence, in nats, between the readout rows of any two heads, `()` float64; NaN with a single head."""
        return head_divergence(self.readout.double()[:, :, None]).mean()

    def live_patch_mass(self, ratio: float, largest: float) -> Tensor:
        """Share of each head's attention on patches that are not sinks, `(heads,)` float64; NaN if the layout is unknown."""
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
    known: dict[Any, Any] | None = None,
) -> BlockSummary:
    """Summarise a block, of which `rows` were captured, in one pass over its rows; `known` as in `stream_rows`."""
    found = stream_rows(block, rows, known=known)
    entropy, distance = found.values["entropy"], found.values["distance_patches"]
    windows = len(found.real)
    weights = (found.real.double() / found.real.sum())[:, None]  # of an image's queries, `(windows, 1, queries)`
    of_images = (entropy.reshape(-1, windows, *entropy.shape[1:]) * weights).sum(dim=(1, 3))
    return BlockSummary(
        block.name,
        block.shape[3],
        rows is Rows.ALL and block.queries in (Queries.TOKENS, Queries.PATCHES),
        of_images.mean(dim=0),
        distance.nanmean(dim=(0, 2)),
        found.received,
        _readout_rows(block, found.received, readout, rows),
        _patches(found.keys, block.shape[0], entropy.device),
    )


def _patches(keys: list[TokenTable] | None, entries: int, device: torch.device) -> Tensor | None:
    if keys is None:
        return None
    patches = torch.stack([table.kinds for table in keys]) == TOKEN_KINDS.index("patch")
    return patches.to(device) if len(keys) == 1 else patches.to(device).repeat(entries // len(keys), 1)


def _readout_rows(block: BlockAttention, received: Tensor, readout: Readout, rows: Rows | Sequence[Any]) -> Tensor:
    if rows is Rows.ALL:
        matrix = block.captured if isinstance(block.captured, SoftmaxMatrix) else SoftmaxMatrix(block.captured)
        if block.queries in (Queries.POOL, Queries.CLASS):
            return matrix.rows(block.readout_rows or slice(None)).mean(dim=2)
        if readout.rows is Rows.CLS and block.queries is Queries.TOKENS:
            with suppress(AttnhookError):  # the tokens fit no layout
                return matrix.rows([block.layout.class_token()])[:, :, 0]
    return received.float()


@dataclass(frozen=True)
class AlarmThresholds:
    """Thresholds beyond which a number is an alarm.

    Attributes:
        entropy: A block has collapsed if its entropy divided by `log(keys)` is below this, averaged over queries, heads and images. Uniform
            attention has 1. The blocks of DINOv2-small have 0.6 to 0.8, and 0.01 to 0.05 if queries are multiplied by 30; a ViT-S initialised
            by timm has 1.0, and 0.28 with such queries.
        live_mass: A head is dead if less than this share of its attention is on patches that are not sinks.
        sink_ratio: For `live_mass`, a key is a sink if it receives at least this multiple of uniform attention from all heads together, or at
            least `sink_share`.
        sink_share: A block has an attention sink if one key receives more than this share of its attention, averaged over images.

    Example:
        >>> AlarmThresholds(entropy=0.2).sink_share
        0.5
    """

    entropy: float = 0.35
    live_mass: float = 0.02
    sink_ratio: float = 10.0
    sink_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("entropy", "live_mass", "sink_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"bad threshold {name}: expected 0 to 1, got {getattr(self, name)}. Pass a share.")
        if not self.sink_ratio > 0:
            raise ValueError(
                f"bad threshold sink_ratio: expected above 0, got {self.sink_ratio}. 1 is uniform attention."
            )


def raise_alarms(summaries: Sequence[BlockSummary], thresholds: AlarmThresholds) -> dict[str, int]:
    """Count the blocks and heads beyond the thresholds, for whole matrices only: a single row may well be peaked."""
    whole = [summary for summary in summaries if summary.whole and summary.keys > 1]
    finite = [one for one in whole if bool(one.entropy.isfinite().all())]
    collapsed = [float(one.relative_entropy.mean()) < thresholds.entropy for one in finite]
    live = [one.live_patch_mass(thresholds.sink_ratio, thresholds.sink_share) for one in finite]
    sinks = [float(one.block_sink_mass) > thresholds.sink_share for one in finite]
    return {
        "entropy_collapse": sum(collapsed),
        "dead_heads": sum(int((mass < thresholds.live_mass).sum()) for mass in live),
        "attention_sink": sum(sinks),
        "not_finite": len(whole) - len(finite),
    }
