"""One photo of a source that nobody has read yet: its name, and where its bytes are."""

import importlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from attnhook.errors import ImageError, MissingPackageError
from attnhook.files import leads_out, readable, readable_name

MAX_BYTES = 2**30
"""Larger files are refused unread."""


@dataclass(frozen=True, slots=True)
class Item:
    """One photo, unread."""

    key: str  # its name, unique in the source
    member: bytes = b""  # its path below the source's root
    container: int = 0  # which of the source's archives or tables holds it
    number: int = 0  # where in the container: the offset of its bytes, its place in the directory, or its row
    size: int = -1  # in bytes; -1 if unknown
    stamp: int = 0  # modification time in nanoseconds; a photo whose size or stamp differs has changed
    label: str | None = None
    group: str = ""  # photos of one go into the same shard: rows of a Parquet file are read together; "": its own
    problem: str | None = None  # why it cannot be read, if that is known already


def file_item(path: Path, member: bytes, *, label: str | None = None) -> Item:
    """Make the item of a file."""
    key = readable_name(member)
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        return Item(key, member, label=label, problem=f"expected a file, got {getattr(error, 'strerror', error)}.")
    if not stat.S_ISREG(status.st_mode):
        return Item(key, member, label=label, problem="expected a file, got a directory or device.")
    return Item(key, member, size=status.st_size, stamp=status.st_mtime_ns, label=label)


def read_file(path: Path) -> bytes:
    """Read an image file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
        raise ImageError(f"cannot read {path}: expected an image file, got a directory or device. Pass files.")
    check_size(status.st_size, os.fspath(path))
    return path.read_bytes()


def outside(folder: Path, name: str) -> str | None:
    """Why a file may not be read that a list or a table names; None if it lies below their folder. Links lead no further than absolute paths."""
    if not leads_out(folder, name):
        return None
    return (
        f"expected a file below {readable(str(folder))}, got one outside it. Move what names it to a folder above the photos, or pass the paths "
        "in Python."
    )


def check_size(size: int, name: str) -> None:
    """Refuse what is too large to be a photo."""
    if size > MAX_BYTES:
        raise ImageError(f"cannot read {name}: expected at most {MAX_BYTES:,} bytes, got {size:,}. Shrink it first.")


def require(module: str) -> ModuleType:
    """Import an optional module."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(
            f'extraction needs the package {package}, got {error}. Run `pip install ".[extract]"` in a clone.'
        ) from error
