"""Figures of a comparison."""

import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from attnhook.comparison.comparisons import Comparison
from attnhook.comparison.map_kinds import View
from attnhook.comparison.measuring import STATISTICS
from attnhook.comparison.summary_tables import depth_table
from attnhook.imaging.comparison_figures import curves_figure, photos_by_models
from attnhook.imaging.overlays import check_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def matrix_figure(comparison: Comparison, view: View, photos: list[int], *, scale: Any, **options: Any) -> "Figure":
    """Photos by models."""
    check_scale(scale, mass=view.mass, shown=view.label)
    models = range(len(comparison.models))
    heatmaps, uniform = [], []
    for photo in photos:
        found = [comparison.measurements.get((model, photo)) for model in models]
        maps = [
            None if one is None or view.id not in one.maps else one.maps[view.id].heatmap(one.geometry) for one in found
        ]
        heatmaps.append(maps)
        uniform.append([None if one is None or view.id not in one.maps else one.maps[view.id].uniform for one in found])
    part = "" if len(photos) == len(comparison.photos) else f" {len(photos)} of {len(comparison.photos)} photos."
    return photos_by_models(
        [comparison.photos[photo].read() for photo in photos],
        heatmaps,
        photo_names=[_title(comparison, photo) for photo in photos],
        model_names=[entry.name for entry in comparison.models],
        uniform=uniform,
        caption=f"{view.label[0].upper()}{view.label[1:]}; mean over heads, row of what each model's head reads.{part}",
        label=view.method.replace("_", " "),
        scale=scale,
        **options,
    )


def depth_figure(comparison: Comparison) -> "Figure":
    """Every statistic over relative depth, a line a model."""
    rows = depth_table(comparison).rows
    if not rows:
        raise ValueError("no statistics to draw: expected a comparison made with statistics=True. Compare again.")
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, words in STATISTICS.items():
        lines = curves.setdefault(f"{name.replace('_', ' ')}: {words}", {})
        for row in rows:
            if row[name] is not None:
                positions, values = lines.setdefault(row["model"], ([], []))
                positions.append(row["depth"])
                values.append(row[name])
    count = len({photo for (_, photo), one in comparison.measurements.items() if one.statistics})
    caption = (
        f"Means over heads, all queries and {count} photo{'s' if count > 1 else ''}; blocks at their relative depth."
    )
    kept = {name: lines for name, lines in curves.items() if lines}
    return curves_figure(kept, horizontal="relative depth", caption=caption)


def rendered(figure: "Figure") -> Image.Image:
    """A figure as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as picture:
        return picture.convert("RGB")


def _title(comparison: Comparison, photo: int) -> str:
    label = comparison.photos[photo].label
    area = comparison.areas[photo]
    seen = "" if area is None or area.part > 0.999 else f", {area.part:.0%} seen by all"
    return f"{comparison.photos[photo].name}{'' if label is None else f': {label}'}{seen}"
