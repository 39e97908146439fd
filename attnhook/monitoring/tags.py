"""What one look at the attention says: scalars by tag, and pictures. Tags are part of the interface: they stay as they are.

By tag, NaN left out; `<block>` is the attention module's path, `<k>` a head, `<i>` an image of the probe:

- `attention/<block>/entropy` in nats and `/relative_entropy` over `log(keys)`, means over queries, heads and images;
- `attention/<block>/distance`: mean attention distance of patches, in patches;
- `attention/<block>/sink_mass`: the largest share of the attention that one key receives from all heads together;
- `attention/<block>/head_diversity`: mean Jensen-Shannon divergence between the heads' readout rows, in nats;
- `attention/<block>/change`: mean Jensen-Shannon divergence of the readout rows from those at the last logged step, in nats;
- `attention/<block>/head<k>/entropy`, `/distance`, `/sink_mass`, `/change`: the same of one head;
- `attention/alarms/entropy_collapse`, `/dead_heads`, `/attention_sink`, `/not_finite`: see `attnhook.attribution.alarms`;
- pictures `attention/overlay/<i>`, `attention/<method>/<i>` of further methods, `attention/heads/<i>`.

In front of `attention/` stands `live/` for `observe`, and the name of a model given in `also`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from attnhook.attribution.alarms import AlarmThresholds, raise_alarms
from attnhook.attribution.methods import METHODS
from attnhook.attribution.raw_maps import raw_attention
from attnhook.attribution.received import received_attention
from attnhook.attribution.row_measures import row_divergence
from attnhook.attribution.summaries import BlockSummary
from attnhook.capture.records import AttentionMaps
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.overlays import common_range
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import ScaleOption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECEIVED = "received_attention"
"""What a model without a readout has for overlays: no method of `METHODS`, which all start at a readout."""

Rows = Mapping[str, Tensor]
"""Readout rows by block, `(entries, heads, keys)`."""


def scalars_of(
    summaries: Sequence[BlockSummary], before: Rows | None, thresholds: AlarmThresholds, prefix: str = ""
) -> dict[str, float]:
    """All numbers of one look."""
    values: dict[str, float] = {}
    for one in summaries:
        start = f"{prefix}attention/{one.name}"
        of_heads = {"entropy": one.entropy, "distance": one.distance, "sink_mass": one.sink_mass}
        previous = None if before is None else before.get(one.name)
        if previous is not None and previous.shape == one.readout.shape:
            of_heads["change"] = row_divergence(previous, one.readout).mean(dim=0)
        numbers = {kind: heads.tolist() for kind, heads in of_heads.items()}
        values |= {f"{start}/{kind}": _mean(heads) for kind, heads in numbers.items()}
        values[f"{start}/relative_entropy"] = float(one.relative_entropy.mean())
        values[f"{start}/sink_mass"] = float(one.block_sink_mass)
        values[f"{start}/head_diversity"] = float(one.head_diversity)
        for kind, heads in numbers.items():
            values |= {f"{start}/head{head}/{kind}": value for head, value in enumerate(heads)}
    if any(one.whole for one in summaries):
        alarms = raise_alarms(summaries, thresholds)
        values |= {f"{prefix}attention/alarms/{name}": float(count) for name, count in alarms.items()}
    return {tag: value for tag, value in values.items() if math.isfinite(value)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- pictures -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Painter:
    """Draws maps of the probe on its photos.

    Attributes:
        photos: RGB.
        geometries: Where the model looks in each.
        scale: As in `overlay`.
        sheets: How many photos get a sheet of heads.
    """

    photos: Sequence[Image.Image]
    geometries: Sequence[ImageGeometry]
    scale: ScaleOption
    sheets: int

    def pictures(
        self, maps: AttentionMaps, methods: Sequence[str], prefix: str = ""
    ) -> Iterator[tuple[str, Image.Image]]:
        """Draw every method's overlay on every photo, and the heads of the last block."""
        for number, method in enumerate(methods):
            found = map_of(method, maps)
            folder = "overlay" if number == 0 else method
            for index, one in enumerate(found):
                yield f"{prefix}attention/{folder}/{index}", self._overlay(index, one)
        if methods:
            for index in range(min(self.sheets, len(self.photos))):
                yield f"{prefix}attention/heads/{index}", self._heads(index, maps)

    def _overlay(self, index: int, one: PatchMap) -> Image.Image:
        return one.to("cpu").overlay(self.photos[index], self.geometries[index], scale=self.scale)

    def _heads(self, index: int, maps: AttentionMaps) -> Image.Image:
        from attnhook.imaging.figures import sheet

        block, patch_map = maps[-1], heads_of(maps)[index].to("cpu")
        heads, uniform = patch_map.heatmap(self.geometries[index]), patch_map.uniform
        shared = common_range(list(heads), self.scale, uniform=uniform)
        titles = [f"head {head}" for head in range(len(heads))]
        caption = f"Every head of {block.name}, on one scale."
        figure = sheet(self.photos[index], list(heads), titles, caption=caption, scale=shared, uniform=uniform, dpi=110)
        return _picture(figure)


def _picture(figure: "Figure") -> Image.Image:
    file = BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def map_of(method: str, maps: AttentionMaps) -> PatchMap:
    """One method's maps of all images, `(batch, h, w)`."""
    return received_attention(maps) if method == RECEIVED else METHODS[method](maps)


def heads_of(maps: AttentionMaps) -> PatchMap:
    """The last block's maps of every head, `(batch, heads, h, w)`: of the readout, or received where there is none."""
    return received_attention(maps, heads=None) if maps.readout.rows is None else raw_attention(maps, heads=None)
