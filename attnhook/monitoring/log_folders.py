"""A folder that `DirectoryWriter` wrote, as one HTML page with a slider over its steps."""

import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from attnhook.files import leads_out
from attnhook.imaging.images import read_image
from attnhook.monitoring.writers import as_jpeg
from attnhook.pages.documents import log_html

_POINTS = 1000  # of a curve
_OF_HEAD = re.compile(r"/head\d+/")
_Item = TypeVar("_Item")
_LOGGER = logging.getLogger("attnhook")


def page_of(folder: Path, *, most: int) -> str:
    """Make the page, with pictures of at most `most` steps."""
    numbers, unread = _lines(folder, "scalars.jsonl")
    files = _pictures(folder)
    if not numbers and not files:
        raise FileNotFoundError(
            f"no log in {folder}: expected scalars.jsonl or pictures such as attention/overlay/0/step-00000100.jpg. Pass the folder that a "
            "DirectoryWriter writes into."
        )
    if most < 2:
        raise ValueError(f"bad number of steps: expected at least 2, got {most}. Pass a larger number.")
    steps = sorted({step for found in files.values() for step in found})
    shown = set(_spread(steps, most))
    values: dict[int, dict[str, float]] = {}
    for line in numbers:
        values.setdefault(line.pop("step"), {}).update(line)  # of a step that was repeated, the later line is valid
    drawn = sorted({*_spread(sorted(values), _POINTS), *(shown & values.keys())})
    tags = sorted({tag for step in drawn for tag in values[step] if not _OF_HEAD.search(tag)})
    texts, _ = _lines(folder, "texts.jsonl")
    tagged = [(tag, sorted(shown & found.keys())) for tag, found in files.items() if shown & found.keys()]
    content = {
        "title": folder.resolve().name,
        "tags": [{"tag": tag, "steps": found} for tag, found in tagged],
        "logged": len(steps),
        "shown": len(shown),
        "unread": unread,
        "steps": drawn,
        "measured": len(values),
        "numbers": {tag: [_rounded(values[step].get(tag)) for step in drawn] for tag in tags},
        "texts": [
            list(text) for text in dict.fromkeys((str(line.get("tag")), str(line.get("text"))) for line in texts)
        ],
    }
    return log_html(content, [[_jpeg(files[tag][step]) for step in found] for tag, found in tagged])


def _lines(folder: Path, name: str) -> tuple[list[dict[str, Any]], int]:
    """The lines of a file that are whole, and how many are not: a run that was killed may have left half a line."""
    path, found = folder / name, list[dict[str, Any]]()
    unread = 0
    whole = path.is_file() and _is_own(path, folder)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if whole else []:
        try:
            entry = json.loads(line)
            found.append({**entry, "step": int(entry["step"])})
        except (ValueError, TypeError, KeyError, OverflowError):
            unread += 1
    return found, unread


def _pictures(folder: Path) -> dict[str, dict[int, Path]]:
    """The pictures by tag and step: overlays first, heads last."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.rglob("step-*.*")):
        number = path.stem.removeprefix("step-")
        if number.isdecimal() and path.suffix in (".jpg", ".png") and _is_own(path, folder):
            found.setdefault(path.parent.relative_to(folder).as_posix(), {})[int(number)] = path
    return dict(sorted(found.items(), key=lambda item: ("/heads/" in item[0], item[0])))


def _is_own(path: Path, folder: Path) -> bool:
    """Whether a file lies in the folder, and is no link that would put another one into the page."""
    name = path.relative_to(folder)
    if not leads_out(folder, name):
        return True
    _LOGGER.warning("%r is left out: expected a file of this log, got a link that leads out of its folder.", str(name))
    return False


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most so many, evenly spread, the first and the last among them."""
    last = len(items) - 1
    return [items[round(number * last / (most - 1))] for number in range(most)] if last >= most else list(items)


def _rounded(value: Any) -> float | None:
    """A value as the page has it; None if it is missing or no finite number, as what others write may be."""
    return float(f"{value:.4g}") if isinstance(value, int | float) and math.isfinite(value) else None


def _jpeg(path: Path) -> bytes:
    if path.suffix == ".jpg":
        return path.read_bytes()
    return as_jpeg(read_image(path))
