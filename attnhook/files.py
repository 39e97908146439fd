"""Files that are written whole or not at all, and the cache folder."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """The folder for converted weights and measurements.

    Example:
        >>> import os
        >>> os.environ["ATTNHOOK_CACHE"] = "somewhere"
        >>> cache_dir().name
        'somewhere'
        >>> del os.environ["ATTNHOOK_CACHE"]
    """
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
    """Write to a temporary file, which replaces the real one when it is complete.

    Example:
        >>> with replacing(Path("numbers.txt")) as temporary:  # doctest: +SKIP
        ...     temporary.write_text("1 2 3")
    """
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


def format_of(folder: Path) -> str | None:
    """The format that a folder's `manifest.json` names; None without one, empty if it cannot be read."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["format"])
    except (ValueError, TypeError, KeyError):
        return ""


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
