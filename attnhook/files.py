"""Files that are written whole or not at all, names of files, and the cache folder."""

import hashlib
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LONGEST_NAME = 255
"""Bytes of a file's name, on the usual file systems."""
_KEPT = 40  # characters of a name that is too long


def cache_dir() -> Path | None:
    """The folder for converted weights and measurements: `$ATTNHOOK_CACHE`, or `attnhook` in the user's cache; None without a home."""
    if chosen := os.environ.get("ATTNHOOK_CACHE"):
        return user_path(chosen)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local, "attnhook")
    if sys.platform not in ("darwin", "win32") and (cache := os.environ.get("XDG_CACHE_HOME")):
        return Path(cache, "attnhook")
    home = _home()
    below = {"darwin": "Library/Caches", "win32": "AppData/Local"}.get(sys.platform, ".cache")
    return None if home is None else home / below / "attnhook"


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and a user that the system does not know: containers
        return None


def user_path(path: str | Path) -> Path:
    """A path that a user gave, in which a shell could not put the home folder for `~`. `~name` is a name like any other."""
    given = Path(path)
    if given.parts[:1] == ("~",) and not os.path.lexists(given) and (home := _home()) is not None:
        return home.joinpath(*given.parts[1:])
    return given


def readable_name(name: bytes) -> str:
    r"""Decode a file name, whatever bytes it consists of: those that are not UTF-8 become `\xff`."""
    return name.decode("utf-8", "backslashreplace")


def readable(text: str) -> str:
    r"""Replace the surrogates that Python reads file names into, which no UTF-8 file can hold."""
    try:
        return readable_name(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text.encode("utf-8", "backslashreplace").decode()


def file_name(stem: str, ending: str) -> str:
    """A file name; a stem too long for a file system is cut, and a hash tells it from others that begin like it."""
    whole = os.fsencode(stem)
    if len(whole) + len(os.fsencode(ending)) > LONGEST_NAME:
        stem = f"{stem[:_KEPT]}-{hashlib.sha256(whole).hexdigest()[:8]}"
    return stem + ending


def check_writable(folder: Path, error: type[Exception] = ValueError) -> None:
    """Refuse a folder that cannot be made or written to, before anything is computed. Leaves nothing there."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise error(f"cannot write to {folder}: expected a folder, got a file. Choose another name.")
    place, missing = folder, list[str]()
    while not os.path.lexists(place):
        place, missing = place.parent, [place.name, *missing]
    try:  # under a name of its own: others may be about to make the folder
        with tempfile.TemporaryDirectory(prefix=".", dir=place) as private:
            Path(private, *missing).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as found:  # ValueError: a zero byte
        raise error(
            f"cannot write to {folder}: expected a folder that can be written to, got {getattr(found, 'strerror', None) or found}. Choose "
            "another folder."
        ) from found


def leads_out(folder: Path, name: str | Path) -> bool:
    """Whether a name in a folder leads to a file outside it, by `..`, as an absolute path, or through links."""
    return not Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder))


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Write to a temporary file, which replaces the real one when it is complete. Of several writers at once, the last one stays."""
    # A name of its own, which nobody could have guessed and put a link at.
    temporary = path.with_name(f"{path.name[:_KEPT]}.{secrets.token_hex(8)}.partial")
    try:
        yield temporary
        if durable:
            _flush(temporary, os.O_RDWR)
        temporary.replace(path)
        if durable:
            _flush(path.parent, os.O_RDONLY)
    except OSError as error:
        if str(error.filename) == str(temporary):
            error.filename = os.fspath(path)  # the name that the user knows
        raise
    finally:
        with suppress(OSError):  # the folder cannot be reached: the error that said so goes on
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
