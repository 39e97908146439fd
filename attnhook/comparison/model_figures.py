"""Figures of a comparison."""

import io
from typing import TYPE_CHECKING, Any

from attnhook.comparison.findings import Findings, map_of
from attnhook.comparison.measurements import MapKind
from attnhook.comparison.measuring import STATISTICS
from attnhook.comparison.summary_tables import depth_table
from attnhook.imaging.comparison_figures import curves_figure, photos_by_models
from attnhook.imaging.figures import shrunk
from attnhook.imaging.overlays import check_scale
from attnhook.options import Scale, ScaleOption

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def matrix_figure(
    findings: Findings, view: MapKind, photos: list[int], *, scale: "ScaleOption | None" = None, **look: Any
) -> "Figure":
    """A row per photo and a column per model."""
    if scale is None:
        scale = Scale.UNIFORM if view.mass else Scale.ROBUST
    check_scale(scale, mass=view.mass, shown=view.label)
    width = look.get("cell_width", 1.8) * look.get("dpi", 160)
    rows = [[map_of(findings, model, photo, view) for model in range(len(findings.models))] for photo in photos]
    part = "" if len(photos) == len(findings.photos) else f" {len(photos)} of {len(findings.photos)} photos."
    shown = [
        shrunk(findings.photos[photo].read(), width, *(found[1] for found in row if found))
        for photo, row in zip(photos, rows, strict=True)
    ]
    return photos_by_models(
        shown,
        [
            [found and found[0].heatmap(found[1].with_photo_size((photo.height, photo.width))) for found in row]
            for photo, row in zip(shown, rows, strict=True)
        ],
        photo_names=[_title(findings, photo) for photo in photos],
        model_names=[entry.name for entry in findings.models],
        uniform=[[found and found[0].uniform for found in row] for row in rows],
        caption=f"{view.full_label[0].upper()}{view.full_label[1:]}; row of the token that each model's head reads.{part}",
        label=view.method.replace("_", " "),
        scale=scale,
        **look,
    )


def depth_figure(findings: Findings) -> "Figure":
    """Every statistic over relative depth, with a line per model."""
    blocks = depth_table(findings).frame()
    if blocks.empty:
        raise ValueError("no statistics to draw: expected a comparison made with statistics=True. Compare again.")
    curves = {}
    for name, words in STATISTICS.items():
        models = blocks.dropna(subset=name).groupby("model", sort=False)
        curves[f"{name.replace('_', ' ')}: {words}"] = {
            model: (rows["depth"].tolist(), rows[name].tolist()) for model, rows in models
        }
    count = len({photo for (_, photo), one in findings.measurements.items() if one.statistics})
    caption = f"Means over heads, all queries and {count} photo{'s' if count > 1 else ''}; blocks by relative depth."
    drawn = {name: lines for name, lines in curves.items() if lines}
    return curves_figure(drawn, horizontal="relative depth", caption=caption)


def as_png(figure: "Figure", **options: Any) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **options)
    return buffer.getvalue()


def as_jpeg(figure: "Figure") -> bytes:
    """A figure of photos as the content of a JPEG file: a fifth of the size as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 90, "subsampling": 0})
    return buffer.getvalue()


def _title(findings: Findings, photo: int) -> str:
    label = findings.photos[photo].label
    area = findings.areas[photo]
    seen = "" if area is None or area.part > 0.999 else f", {area.part:.0%} seen by all"
    return f"{findings.photos[photo].name}{'' if label is None else f': {label}'}{seen}"
