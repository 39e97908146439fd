"""Where photos come from: which kind of source something is."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from attnhook.errors import ExtractionError
from attnhook.extraction.archives import TarSource, ZipSource
from attnhook.extraction.file_sources import FileSource, walk
from attnhook.extraction.image_tables import DatasetSource, ParquetSource
from attnhook.extraction.items import PICTURE_SUFFIXES, Item

_LISTS = frozenset({".txt", ".lst", ".list", ".tsv"})
_HOLDERS: dict[str, Any] = {".zip": ZipSource, ".tar": TarSource, ".parquet": ParquetSource}
_FORMS = "a folder, a glob, a text list, a .zip, .tar or .parquet file, a sequence of paths, or a datasets.Dataset"


class Source(Protocol):
    """Photos by name, read one at a time, from any process."""

    def description(self) -> dict[str, Any]:
        """What the manifest says: which source this is, in what JSON can hold."""

    def items(self) -> Iterator[Item]:
        """All photos, unread."""

    def read(self, item: Item) -> bytes:
        """The bytes of a photo's file."""


def open_source(source: Any) -> Source:
    """Find out what kind of source something is."""
    if isinstance(source, str | Path):
        return _of_path(os.fspath(source))
    if type(source).__module__.partition(".")[0] == "datasets":
        return DatasetSource(source)
    if isinstance(source, Sequence) and source and all(isinstance(path, str | Path) for path in source):
        return FileSource(Path.cwd(), "list", paths=tuple(os.fspath(path) for path in source))
    if all(hasattr(source, name) for name in ("description", "items", "read")):
        found: Source = source
        return found
    raise ExtractionError(f"no photos: expected {_FORMS}, got {type(source).__name__}.")


def reopen_source(description: dict[str, Any]) -> Source:
    """Open the source that a manifest speaks of."""
    kind = description["kind"]
    if kind in {"folder", "glob", "list"}:
        return FileSource(Path(description["root"]), kind, description["pattern"])
    if f".{kind}" in _HOLDERS:
        holder: Source = _HOLDERS[f".{kind}"](tuple(map(Path, description["files"])))
        return holder
    raise ExtractionError(
        f"the photos cannot be fetched again: expected a source on disk, got one of kind {kind!r}. Pass it: open_maps(folder, source=...)."
    )


def _of_path(text: str) -> Source:
    path = Path(text).expanduser()
    if path.is_dir():
        return _of_folder(path.resolve())
    if not path.exists() and any(sign in text for sign in "*?["):
        return _of_glob(path)
    if not path.exists():
        raise ExtractionError(f"no photos: expected {_FORMS}, got nothing at {text!r}. Check the path.")
    path = path.resolve()
    if path.suffix.lower() in _HOLDERS:
        return _held([path])
    if path.suffix.lower() in _LISTS:
        return FileSource(path.parent, "list", str(path))
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return FileSource(path.parent, "list", paths=(path.name,))
    again = " Unpack it first: compressed tar files cannot be read from the middle." if ".t" in path.name else ""
    raise ExtractionError(f"no photos: expected {_FORMS}, got {path.name!r}.{again}")


def _of_folder(path: Path) -> Source:
    """A folder of pictures, or else of archives or tables."""
    if next(walk(path), None) is None:
        held = {suffix: sorted(path.rglob(f"[!.]*{suffix}")) for suffix in _HOLDERS}
        kinds = [suffix for suffix, files in held.items() if files]
        if len(kinds) > 1:
            raise ExtractionError(
                f"no photos in {str(path)!r}: expected pictures, or one kind of archive or table, got {', '.join(kinds)}. Pass a glob of one "
                "kind."
            )
        if kinds:
            return _held(held[kinds[0]])
    return FileSource(path, "folder")


def _of_glob(path: Path) -> Source:
    pattern = path if path.is_absolute() else Path.cwd() / path
    fixed = 1
    while not any(sign in pattern.parts[fixed] for sign in "*?[") or Path(*pattern.parts[: fixed + 1]).is_dir():
        fixed += 1  # folders may have such signs in their names
    root, below = Path(*pattern.parts[:fixed]), str(Path(*pattern.parts[fixed:]))
    if pattern.suffix.lower() in _HOLDERS:
        found = sorted(root.glob(below))
        if not found:
            raise ExtractionError(f"no photos: expected files that match {str(path)!r}, got none. Check the glob.")
        return _held(found)
    return FileSource(root, "glob", below)


def _held(paths: list[Path]) -> Source:
    holder: Source = _HOLDERS[paths[0].suffix.lower()](tuple(paths))
    return holder
