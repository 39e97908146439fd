"""What a monitor logs each time: scalars by tag, without NaN, and pictures. `docs/monitoring.md` lists the tags, which do not change."""

import math
from collections.abc import Iterator, Mapping, Sequence

from PIL import Image
from torch import Tensor

from attnhook.attribution.methods import METHODS
from attnhook.attribution.raw_maps import raw_attention, received_attention
from attnhook.attribution.row_measures import row_divergence
from attnhook.attribution.summaries import AlarmThresholds, BlockSummary, raise_alarms
from attnhook.capture.records import AttentionMaps
from attnhook.imaging.lettering import with_color_bar
from attnhook.imaging.looks import Look
from attnhook.imaging.overlays import blend, common_look
from attnhook.imaging.panels import color_bar, rendered
from attnhook.monitoring.probes import ProbeBatch
from attnhook.options import ScaleOption

_SHEET_PIXELS, _SHEET_DPI = 166, 92  # of a panel in the sheet of heads, and of the sheet


def scalars_of(
    summaries: Sequence[BlockSummary],
    previous_rows: Mapping[str, Tensor] | None,
    thresholds: AlarmThresholds,
    prefix: str = "",
) -> dict[str, float]:
    """All numbers of one step; the previous readout rows are `(entries, heads, keys)` by block."""
    values: dict[str, float] = {}
    for block in summaries:
        start = f"{prefix}attention/{block.name}"
        by_head = {"entropy": block.entropy, "distance": block.distance, "sink_mass": block.sink_mass}
        previous = None if previous_rows is None else previous_rows.get(block.name)
        if previous is not None and previous.shape == block.readout.shape:
            by_head["change"] = row_divergence(previous, block.readout).mean(dim=0)
        for kind, tensor in by_head.items():
            heads = tensor.tolist()
            values[f"{start}/{kind}"] = sum(heads) / len(heads)
            values |= {f"{start}/head{head}/{kind}": value for head, value in enumerate(heads)}
        values[f"{start}/relative_entropy"] = float(block.relative_entropy.mean())
        values[f"{start}/sink_mass"] = float(block.block_sink_mass)
        values[f"{start}/head_diversity"] = float(block.head_diversity)
    for kind in ("entropy", "relative_entropy"):
        of_blocks = [float(getattr(block, kind).mean()) for block in summaries]
        values[f"{prefix}attention/{kind}"] = sum(of_blocks) / len(of_blocks)
    if any(block.whole for block in summaries):
        alarms = raise_alarms(summaries, thresholds)
        values |= {f"{prefix}attention/alarms/{name}": float(count) for name, count in alarms.items()}
    return {tag: value for tag, value in values.items() if math.isfinite(value)}


def pictures_of(
    maps: AttentionMaps, probe: ProbeBatch, methods: Sequence[str], *, scale: ScaleOption, sheets: int
) -> Iterator[tuple[str, Image.Image]]:
    """Draw every method's overlay on every photo above its colour bar, and of the first photos a sheet of the last block's heads."""
    for number, method in enumerate(methods):
        patch_maps = METHODS[method](maps)
        folder = "overlay" if number == 0 else method
        for index, patch_map in enumerate(patch_maps.to("cpu")):
            values = patch_map.heatmap(probe.geometries[index])
            look = Look(scale=scale, uniform=patch_map.uniform)
            picture = blend(probe.photos[index], values, look)
            yield f"attention/{folder}/{index}", with_color_bar(picture, *color_bar([values], look, patch_map.quantity))
    for index in range(min(sheets, len(probe)) if methods else 0):
        yield f"attention/heads/{index}", _sheet_of_heads(maps, probe, index, scale)


def _sheet_of_heads(maps: AttentionMaps, probe: ProbeBatch, index: int, scale: ScaleOption) -> Image.Image:
    from attnhook.imaging.figures import sheet, shown_at

    of_heads = received_attention if maps.readout.rows is None else raw_attention
    patch_map = of_heads(maps, heads=None)[index].to("cpu")
    photo, geometry = shown_at(probe.photos[index], probe.geometries[index], _SHEET_PIXELS)
    heads = list(patch_map.heatmap(geometry))
    look = common_look(heads, Look(scale=scale, uniform=patch_map.uniform))
    titles = [f"head {head}" for head in range(len(heads))]
    caption = f"Every head of {maps[-1].name}, on one scale."
    return rendered(sheet(photo, heads, titles, caption=caption, dpi=_SHEET_DPI, **vars(look)))
