"""Scenes to one HTML file."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attnhook import __version__
from attnhook.files import replacing
from attnhook.pages.documents import document, embedded_palettes
from attnhook.pages.quantisation import LETTERS, MATRIX_BITS, ROW_BITS


def packed_html(packed: Sequence[tuple[dict[str, Any], str]], *, model: str) -> str:
    """Make the viewer's page of photos that are packed already: what was captured of them need not be kept until then."""
    if not packed:
        raise ValueError("cannot make a viewer: expected at least one photo, got none.")
    title = f"{model}: {', '.join(one['name'] for one, _ in packed[:3])}{' …' if len(packed) > 3 else ''}"
    payloads = "\n".join(
        f'<script type="text/plain" id="payload-{number}">{text}</script>' for number, (_, text) in enumerate(packed)
    )
    header = {
        "model": model,
        "version": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "letters": LETTERS,
        "bits": {"rows": ROW_BITS, "matrices": MATRIX_BITS},
        "palettes": embedded_palettes(),
        "scenes": [one for one, _ in packed],
    }
    return document(
        "attnhook.pages",
        page="viewer.html",
        style="viewer.css",
        scripts=("map_canvas.js", "reading.js", "drawing.js", "controls.js"),
        title=title,
        header=header,
        parts={"payloads": payloads},
    )


def save_viewer(page: str, path: str | Path) -> Path:
    """Write a page to a temporary name, then rename: never half a file."""
    target = Path(path)
    with replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return target
