"""Self-contained HTML files: the viewer, a comparison's report, a training's log and an answer, with style, script and data inside.

A page's policy allows its own script, by its hash, and no request. The script puts texts from the data into the page as text, never as markup.
"""

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from attnhook import __version__
from attnhook.files import LONGEST_NAME, readable, replacing, user_path
from attnhook.imaging.looks import BUNDLED, UNIFORM_TOP, palette
from attnhook.pages.quantisation import LETTERS, MATRIX_BITS, ROW_BITS

_VIEWER = ("reading.js", "drawing.js", "masking.js", "words.js", "zooming.js", "controls.js")
_NOWHERE = "base-uri 'none'; form-action 'none'"  # default-src says nothing of where links and forms lead
_SIZE = "@@@@@@@@@@@@"  # replaced by the file's size, padded to as many characters


def report_html(content: dict[str, Any]) -> str:
    """Make the page of a comparison."""
    scripts = (
        "report_maps.js",
        "report_tables.js",
        "report_dots.js",
        "report_matrix.js",
        "report_zoom.js",
        "report.js",
    )
    return _document(
        "report",
        scripts,
        str(content["title"]),
        {"figures": [], "strips": [], "marks": {}, **content, "uniform_top": UNIFORM_TOP},
    )


def packed_html(packed: Sequence[tuple[dict[str, Any], str]], *, model: str) -> str:
    """Make the viewer's page of photos that `pack_scene` packed, so that their captures need not be in memory together."""
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
        "scenes": [one for one, _ in packed],
    }
    return _document("viewer", _VIEWER, title, header, payloads=payloads)


def log_html(content: dict[str, Any], pictures: Sequence[Sequence[bytes]]) -> str:
    """Make the page of a training log; the pictures are JPEG files, one per tag and step of `content["tags"]`."""
    payloads = "\n".join(
        f'<script type="text/plain" id="picture-{tag}-{step}">{base64.b64encode(one).decode("ascii")}</script>'
        for tag, found in enumerate(pictures)
        for step, one in enumerate(found)
    )
    made = {"version": __version__, "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    return _document("log", ("log.js",), f"Attention log: {content['title']}", {**content, **made}, payloads=payloads)


def answer_html(content: dict[str, Any], pictures: Sequence[bytes]) -> str:
    """Make the page of an answer; the pictures are JPEG files, one for each of `content["parts"]`."""
    payloads = "\n".join(
        f'<script type="text/plain" id="picture-{number}">{base64.b64encode(one).decode("ascii")}</script>'
        for number, one in enumerate(pictures)
    )
    made = {"version": __version__, "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    return _document("answer", ("answer.js",), str(content["title"]), {**content, **made}, payloads=payloads)


def save_viewer(page: str, path: str | Path) -> Path:
    """Write a page to a temporary name, then rename: never half a file."""
    target = check_page_name(path)
    with replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return target


def check_page_name(path: str | Path, *, or_folder: bool = False) -> Path:
    """The path of a page; another suffix is refused, because no browser would open the file."""
    target = user_path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        expected, advice = (", or a folder", ", or end the name in / for a folder") if or_folder else ("", "")
        raise ValueError(
            f"cannot write {str(path)!r}: expected a name that ends in .html{expected}, got {target.suffix or 'no suffix'}. "
            f"Change the suffix{advice}."
        )
    if (length := len(os.fsencode(target.name))) > LONGEST_NAME:
        raise ValueError(
            f"cannot write the page: expected a name of at most {LONGEST_NAME} bytes, got {length}. Shorten it."
        )
    return target


def _document(kind: str, scripts: Sequence[str], title: str, header: dict[str, Any], **parts: str) -> str:
    """Fill a page's template."""
    joined = "\n".join(_read(name) for name in ("map_canvas.js", *scripts))
    script = f'"use strict";\n(() => {{\n{joined}\nstart();\n}})();\n'
    palettes = {name: base64.b64encode(palette(name).tobytes()).decode("ascii") for name in BUNDLED}
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    parts |= {
        "title": html.escape(readable(title)),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; {_NOWHERE}",
        "style": _read(f"{kind}.css"),
        "header": _json({**header, "palettes": palettes, "bytes": _SIZE}),
        "script": script,
    }
    # In one pass: placeholders inside a part stay as they are.
    page = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _read(f"{kind}.html"))
    size = str(len(page.encode("utf-8"))).rjust(len(_SIZE))
    # Quotes inside a text are escaped, so no text holds this.
    return page.replace(f'"bytes":"{_SIZE}"', f'"bytes":"{size}"')


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json(content: dict[str, Any]) -> str:
    """Write JSON in which no text can end the script element around it."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
