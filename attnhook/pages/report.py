"""A comparison's content to one HTML file: tables, and every photo under every model's map.

The page measures nothing. It rounds the tables' numbers and colours the maps' values.
"""

from typing import Any

from attnhook.imaging.overlays import UNIFORM_TOP
from attnhook.pages.documents import document, embedded_palettes


def report_html(content: dict[str, Any]) -> str:
    """Make the page of a comparison."""
    header = {"figures": [], **content, "palettes": embedded_palettes(), "uniform_top": UNIFORM_TOP}
    return document(
        "attnhook.pages",
        page="report.html",
        style="report.css",
        scripts=(
            "map_canvas.js",
            "report_maps.js",
            "report_tables.js",
            "report_matrix.js",
            "report_zoom.js",
            "report.js",
        ),
        title=str(content["title"]),
        header=header,
    )
