"""Scenes to one HTML file: style, script and data inside, nothing fetched, every text escaped."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from attnhook import __version__
from attnhook.imaging.palettes import BUNDLED, palette
from attnhook.options import BlocksOption
from attnhook.workflows.viewer.packing import LETTERS
from attnhook.workflows.viewer.scenes import AUTO, MATRIX_BITS, ROW_BITS, Scene, pack_scene

_SCRIPTS = ("reading.js", "drawing.js", "controls.js")
_SIZE = "@@@@@@@@@@@@"  # replaced by the file's size, padded to as many characters


def viewer_html(
    scenes: Sequence[Scene],
    *,
    model: str,
    matrices: BlocksOption = AUTO,
    matrix_heads: str = AUTO,
    longest: int = 1280,
) -> str:
    """Make the viewer's page.

    Args:
        scenes: Photos with their attention.
        model: What the model is called; any text.
        matrices: The blocks whose whole matrices the file holds, so that patches can be asked where they look; timm's meaning, `()` for
            none. `"auto"` takes the last block where all rows were captured, none otherwise.
        matrix_heads: Whether matrices keep `"all"` heads or their `"mean"`; `"auto"` keeps all where that is at most `MOST_VALUES` values a
            photo.
        longest: The most pixels that the photos' longer edges keep in the file.

    Returns:
        The HTML, complete.

    Raises:
        ValueError: If there are no scenes.
    """
    if not scenes:
        raise ValueError("cannot make a viewer: expected at least one photo, got none.")
    packed = [pack_scene(scene, matrices=matrices, matrix_heads=matrix_heads, longest=longest) for scene in scenes]
    header = {
        "model": model,
        "version": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "letters": LETTERS,
        "bits": {"rows": ROW_BITS, "matrices": MATRIX_BITS},
        "palettes": {name: base64.b64encode(palette(name).tobytes()).decode("ascii") for name in BUNDLED},
        "scenes": [one for one, _ in packed],
        "bytes": _SIZE,
    }
    room = files("attnhook.workflows.viewer")
    parts_of_script = [room.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts_of_script) + "\nstart();\n})();\n"
    title = f"{model}: {', '.join(scene.name for scene in scenes[:3])}{' …' if len(scenes) > 3 else ''}"
    payloads = "\n".join(
        f'<script type="text/plain" id="payload-{number}">{text}</script>' for number, (_, text) in enumerate(packed)
    )
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_digest(script)}'",
        "style": room.joinpath("viewer.css").read_text(encoding="utf-8"),
        "header": _json(header),
        "payloads": payloads,
        "script": script,
    }
    page = room.joinpath("viewer.html").read_text(encoding="utf-8")
    return _with_size(_filled(page, parts))


def save_viewer(page: str, path: str | Path) -> Path:
    """Write a page to a temporary name, then rename: never half a file.

    Args:
        page: What `viewer_html` gave.
        path: The file's path.

    Returns:
        The path.
    """
    target = Path(path)
    temporary = target.with_name(f"{target.name}.partial")
    try:
        temporary.write_text(page, encoding="utf-8", newline="\n")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _filled(page: str, parts: dict[str, str]) -> str:
    """Put the parts in, each in its place; what a part says is never looked at for places of others."""
    pieces = [page]
    for name, part in parts.items():
        place = "{{" + name + "}}"
        index = next(number for number, piece in enumerate(pieces) if number % 2 == 0 and place in piece)
        before, _, after = pieces[index].partition(place)
        pieces[index : index + 1] = [before, part, after]
    return "".join(pieces)


def _json(content: dict[str, Any]) -> str:
    """JSON that no text inside can end the script element of."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _with_size(page: str) -> str:
    size = str(len(page.encode("utf-8")))
    return page.replace(f'"{_SIZE}"', f'"{size.rjust(len(_SIZE))}"')
