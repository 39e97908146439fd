"""Signs of attention that has gone wrong in training, as plain numbers of blocks and heads: 0 is well.

They count what is below or above fixed thresholds; they know of no trend and prove nothing. Entropy that collapses comes before divergence
(Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", arXiv 2303.06296).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from attnhook.attribution.summaries import BlockSummary


@dataclass(frozen=True)
class AlarmThresholds:
    """From where on a number is an alarm.

    Attributes:
        entropy: A block has collapsed if the entropy of its rows, over `log(keys)`, is below this on average over queries, heads and images.
            Uniform attention has 1. A DINOv2-small's blocks have 0.6 to 0.8, and 0.01 to 0.05 with queries scaled by 30; a ViT-S that is
            initialised by timm has 1.0, and 0.28 with such queries.
        live_mass: A head is dead if less than this share of its attention falls on patches which are no sinks.
        sink_ratio: What is a sink for `live_mass`: a key that receives this many times uniform attention from all heads together; at the
            latest one that receives `sink_share`.
        sink_share: A block has an attention sink if one key receives more than this share of all its attention, on average over images.

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
                raise ValueError(f"bad threshold {name}: expected a share from 0 to 1, got {getattr(self, name)}.")
        if not self.sink_ratio > 0:
            raise ValueError(f"bad threshold sink_ratio: expected a number above 0, got {self.sink_ratio}.")


def raise_alarms(summaries: Sequence[BlockSummary], thresholds: AlarmThresholds) -> dict[str, int]:
    """Count the blocks and heads that are beyond the thresholds. Only whole matrices are judged: one row may well look at one thing."""
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
