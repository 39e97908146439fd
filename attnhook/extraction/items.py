"""One photo of a source before anyone has read it: its name, and where its bytes are."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from attnhook.errors import ExtractionError, ImageError, MissingPackageError

MAX_BYTES = 2**30
"""Files above this are no photos: they are refused unread."""

PICTURE_SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
"""What a folder or an archive is searched for. Lists and globs say themselves what they want."""


@dataclass(frozen=True, slots=True)
class Item:
    """One photo, unread.

    Attributes:
        key: Its name in the source, unique there.
        member: Its path below the source's root, or its name in the archive.
        container: Which of the source's archives or tables holds it.
        number: Where in that: the offset of its bytes, its place in the directory, or its row.
        size: Bytes, or -1 where they are not known.
        stamp: When it was last written, in nanoseconds; with `size` it tells a photo that has changed.
        label: Its class, or None.
        group: Photos of the same group go into the same shard: the rows of a Parquet file are read a group at a time. Empty: its key.
        problem: Why it cannot be read, where that is known already.
    """

    key: str
    member: bytes = b""
    container: int = 0
    number: int = 0
    size: int = -1
    stamp: int = 0
    label: str | None = None
    group: str = ""
    problem: str | None = None


def readable_name(member: bytes) -> str:
    r"""A file's name as text, whatever bytes it is made of."""
    return member.decode("utf-8", "backslashreplace")


def readable(text: str) -> str:
    r"""Text that may hold bytes that are none, as Python reads names from the disk."""
    try:
        return readable_name(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # halves of characters that came from elsewhere
        return text.encode("utf-8", "backslashreplace").decode()


def file_item(path: Path, member: bytes, *, label: str | None = None) -> Item:
    """A file as an item."""
    key = readable_name(member)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # no name holds a byte 0
        return Item(key, member, label=label, problem=f"expected a file, got {getattr(error, 'strerror', error)}.")
    if not stat.S_ISREG(found.st_mode):
        return Item(key, member, label=label, problem="expected a file, got a directory or device.")
    return Item(key, member, size=found.st_size, stamp=found.st_mtime_ns, label=label)


def read_file(path: Path) -> bytes:
    """Read a file that should be a photo."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise ImageError(f"cannot read {path}: expected an image file, got a directory or device. Pass files.")
    check_size(found.st_size, os.fspath(path))
    return path.read_bytes()


def check_size(size: int, name: str) -> None:
    """Refuse what is too large for a photo."""
    if size > MAX_BYTES:
        raise ImageError(f"cannot read {name}: expected at most {MAX_BYTES:,} bytes, got {size:,}. Shrink it first.")


def check_exists(paths: tuple[Path, ...]) -> None:
    """Refuse archives and tables that are not there."""
    for path in paths:
        if not path.is_file():
            raise ExtractionError(f"no photos: expected a file at {path}, got none. Check the path.")


def require(module: str, package: str) -> ModuleType:
    """Import an optional package."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f'extraction needs the package {package}, got {error}. Run `pip install "attnhook[extract]"`.'
        ) from error
