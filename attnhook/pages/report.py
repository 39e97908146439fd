"""A comparison's content to one HTML file: tables, and every photo under every model's map.

The page measures nothing. It rounds the tables' numbers and colours the maps' values.
"""

from typing import Any

from attnhook.imaging.overlays import UNIFORM_TOP
from attnhook.pages.documents import document, embedded_palettes


def report_html(content: dict[str, Any]) -> str:
    """Make the page of a comparison.

    Args:
        content: Plain JSON, finite numbers or None:

            - `title`, `made`, `version`: Texts.
            - `notes`: `{"level", "text"}` each, with the levels "ok", "warning" and "info".
            - `failures`: `{"model", "photo", "error"}` each; the photo is None where it is about the model as a whole.
            - `tables`: `{"id", "title", "note", "columns", "rows"}` each. Columns have `key`, `label`, `help` and `digits`; rows have a cell
              by a column's key: None, a text, a number, or `{"value", "error", "low", "high", "n"}`.
            - `figures`: `{"title", "png"}` each: a PNG in base64. May be missing.
            - `photos`: `{"name", "label", "width", "height", "jpeg", "shared", "box"}` each: the photo's size in pixels, the whole photo as a
              JPEG of any size in base64, the part of it that all models saw, from 0 to 1, and that part as (top, left, bottom, right) in
              photo pixels.
            - `models`: `{"name"}` each.
            - `views`: `{"id", "label", "mass"}` each; `mass` says that the values are attention mass.
            - `maps`: `{"view", "model", "photo", "grid", "scale", "offset", "valid", "area", "low", "high", "uniform", "data"}` each: three
              indices, the patches' rows and columns, the terms of `ImageGeometry`, the input pixels that the grid covers, the range of the
              values, one over the number of keys (or None), and the values: `low + (high - low) * n / 65534` for each little-endian 16-bit n,
              65535 for NaN, in base64. A map may be missing.
            - `reasons`: `{"view", "model", "photo", "text"}` for each map that is missing: its place says why.

    Returns:
        The HTML, complete: nothing is fetched, and no text of the content is markup.

    Raises:
        ValueError: If the content holds a number that JSON does not have (NaN, infinity).
    """
    header = {"figures": [], **content, "palettes": embedded_palettes(), "uniform_top": UNIFORM_TOP}
    return document(
        "attnhook.pages",
        page="report.html",
        style="report.css",
        scripts=("report_maps.js", "report_tables.js", "report_matrix.js", "report_zoom.js", "report.js"),
        title=str(content["title"]),
        header=header,
    )
