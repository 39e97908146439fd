"""Files that are written whole or not at all, and the cache folder."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """The folder for converted weights and measurements: `$ATTNHOOK_CACHE`, or `attnhook` in the user's cache."""
    if chosen := os.environ.get("ATTNHOOK_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "attnhook"


@contextmanager
def replacing(path: Path, *, mark: str = "", durable: bool = False) -> Iterator[Path]:
    """Write to a temporary file, which replaces the real one when it is complete."""
    temporary = path.with_name(f"{path.name}{mark}.partial")
    temporary.unlink(missing_ok=True)  # writing would follow a link that was left there
    try:
        yield temporary
        if durable:
            _flush(temporary, os.O_RDWR)
        temporary.replace(path)
        if durable:
            _flush(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def check_format(folder: Path, expected: str, what: str, error: type[Exception]) -> None:
    """Refuse a folder whose `manifest.json` names another format, or cannot be read."""
    path = folder / "manifest.json"
    if not path.is_file():
        return
    try:
        found = str(json.loads(path.read_text(encoding="utf-8"))["format"])
    except (ValueError, TypeError, KeyError):
        found = ""
    if found != expected:
        raise error(
            f"{folder} holds something else: expected an empty folder, or one {what}, got a manifest of format {found!r}. Choose another folder."
        )


def _flush(path: Path, flags: int) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk. Windows cannot open a folder, and does not need to."""
    try:
        opened = os.open(path, flags)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
