"""Which files are photos: in a folder, for a glob, or one by one, as every command and `attend`, `compare` and `extract` take them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from attnhook.errors import ImageError
from attnhook.files import readable, user_path

# fmt: off
PICTURE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif",
    ".tiff", ".webp",
})
# fmt: on
"""The files that are taken from folders and archives. Lists and globs may name any file."""
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/+.", re.IGNORECASE)  # a Path has lost one of the slashes; C:\ is a drive


def is_url(text: str) -> bool:
    """Whether a name looks like a URL."""
    return _URL.match(text) is not None


def is_glob(text: str) -> bool:
    """Whether a name that is no file is a pattern."""
    return any(character in text for character in "*?[")


def split_glob(path: Path) -> tuple[Path, str]:
    """The folder in which a pattern is looked for, and the rest. Names of folders may contain its characters."""
    pattern = path if path.is_absolute() else Path.cwd() / path
    fixed = 1
    while not is_glob(pattern.parts[fixed]) or Path(*pattern.parts[: fixed + 1]).is_dir():
        fixed += 1
    return Path(*pattern.parts[:fixed]), str(Path(*pattern.parts[fixed:]))


def glob_matches(root: Path, pattern: str) -> Iterator[Path]:
    """The files below a folder that match, without hidden ones."""
    for path in root.glob(pattern):
        if not is_folder(path) and not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path


def is_folder(path: "Path | os.DirEntry[str]") -> bool:
    """Whether it is a folder that can be reached: circular links, and names that no file can have, are none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def walk(root: Path) -> Iterator[tuple[Path, str | None]]:
    """The pictures below a folder, by suffix, and folders that cannot be read, with why. Follows links, never in circles; skips hidden files."""
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(root, frozenset())]
    while pending:
        folder, parents = pending.pop()
        try:
            status = folder.stat()
            entries = list(os.scandir(folder))
        except OSError as error:
            yield folder, error.strerror
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if is_folder(entry):
                pending.append((Path(entry.path), parents | {identity}))
            elif Path(entry.name).suffix.lower() in PICTURE_SUFFIXES:
                yield Path(entry.path), None


def photo_paths(source: str | Path) -> list[str | Path]:
    """The photos that a name stands for: the pictures below a folder, the matches of a glob, or itself."""
    path = user_path(source)
    if source == "":  # not the current folder, which Path makes of it
        raise ImageError("no photos: expected a path, got an empty one. The current folder is '.'.")
    if is_folder(path):
        found = sorted(picture for picture, _ in walk(path))
        what = f"pictures in the folder {readable(str(path))}"
    elif is_glob(str(source)) and not os.path.lexists(path) and not is_url(str(source)):
        found = sorted(
            below if path.is_absolute() else path_from_here(below) for below in glob_matches(*split_glob(path))
        )
        what = f"files that match {readable(str(source))!r}"
    else:
        return [source]
    if not found:
        raise ImageError(f"no photos: expected {what}, got none. Check the path.")
    return list(found)


def path_from_here(path: Path) -> Path:
    """A path below the current folder, as a user would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
