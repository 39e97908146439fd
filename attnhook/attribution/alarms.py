"""Signs of unhealthy attention in training: numbers of blocks and heads beyond a threshold, 0 if all is well.

Thresholds know nothing about trends, and an alarm proves nothing. Entropy collapse precedes divergence (Zhai et al. 2023, arXiv 2303.06296).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from attnhook.attribution.summaries import BlockSummary


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
