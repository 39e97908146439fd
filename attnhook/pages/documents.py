"""Self-contained HTML files: style, script and data inside, nothing fetched, no text in the data is markup.

A page's policy allows the one script that it comes with, by its hash, and no request. Where texts go into the page is the script's part:
as text only.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from attnhook.imaging.palettes import BUNDLED, palette

_SIZE = "@@@@@@@@@@@@"  # replaced by the file's size, padded to as many characters


def document(
    package: str,
    *,
    page: str,
    style: str,
    scripts: Sequence[str],
    title: str,
    header: dict[str, Any],
    parts: dict[str, str] | None = None,
) -> str:
    """Fill a page's template."""
    room = files(package)
    joined = "\n".join(room.joinpath(name).read_text(encoding="utf-8") for name in scripts)
    script = f'"use strict";\n(() => {{\n{joined}\nstart();\n}})();\n'
    places = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_digest(script)}'",
        "style": room.joinpath(style).read_text(encoding="utf-8"),
        "header": _json({**header, "bytes": _SIZE}),
        **(parts or {}),
        "script": script,
    }
    return _with_size(_filled(room.joinpath(page).read_text(encoding="utf-8"), places))


def embedded_palettes() -> dict[str, str]:
    """Write the bundled colour tables down for a page."""
    return {name: base64.b64encode(palette(name).tobytes()).decode("ascii") for name in BUNDLED}


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
    # Quotes inside a text are escaped, so no text holds this.
    return page.replace(f'"bytes":"{_SIZE}"', f'"bytes":"{size.rjust(len(_SIZE))}"')
