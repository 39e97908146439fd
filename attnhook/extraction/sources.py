"""Where photos come from: find out what kind of source something is."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from attnhook.errors import ExtractionError
from attnhook.extraction.containers import TarSource, ZipSource
from attnhook.extraction.file_sources import FileSource
from attnhook.extraction.image_tables import DatasetSource, ParquetSource
from attnhook.extraction.items import Item
from attnhook.files import user_path
from attnhook.imaging.photo_files import PICTURE_SUFFIXES, is_folder, is_glob, is_url, split_glob, walk

_LISTS = frozenset({".txt", ".lst", ".list", ".tsv"})
_FORMS = "a folder, a glob, a text list, a .zip, .tar or .parquet file, a sequence of paths, or a datasets.Dataset"


class Source(Protocol):
    """Photos by name, read one at a time, from any process."""

    def description(self) -> dict[str, Any]:
        """Describe the source for the manifest, in values that JSON can hold."""

    def items(self) -> Iterator[Item]:
        """List all photos, unread."""

    def read(self, item: Item) -> bytes:
        """Read a photo's bytes."""


_CONTAINERS: dict[str, Callable[[tuple[Path, ...]], Source]]
_CONTAINERS = {".zip": ZipSource, ".tar": TarSource, ".parquet": ParquetSource}


def open_source(source: Any, column: str | None = None) -> Source:
    """Open whatever `extract` takes as a source; `column` is the photos' in tables."""
    opened = _open(source, column)
    if column is not None and not isinstance(opened, ParquetSource | DatasetSource):
        raise ExtractionError(
            f"column={column!r} is for tables: expected Parquet files or a datasets.Dataset, got {type(source).__name__}. Leave it out."
        )
    return opened


def _open(source: Any, column: str | None) -> Source:
    if isinstance(source, str | Path):
        opened = _of_path(os.fspath(source))
        return replace(opened, column=column) if isinstance(opened, ParquetSource) else opened
    if type(source).__module__.partition(".")[0] == "datasets":
        return DatasetSource(source, column)
    if isinstance(source, Sequence) and source and all(isinstance(path, str | Path) for path in source):
        return FileSource(Path.cwd(), "list", paths=tuple(os.fspath(path) for path in source))
    if all(hasattr(source, name) for name in ("description", "items", "read")):
        custom: Source = source
        return custom
    got = f"an empty {type(source).__name__}" if isinstance(source, Sequence) and not source else type(source).__name__
    raise ExtractionError(f"no photos: expected {_FORMS}, got {got}.")


def reopen_source(description: dict[str, Any]) -> Source:
    """Open the source that a manifest describes."""
    kind = description["kind"]
    if kind in {"folder", "glob", "list"}:
        return FileSource(Path(description["root"]), kind, description["pattern"])
    if f".{kind}" in _CONTAINERS:
        opened = _CONTAINERS[f".{kind}"](tuple(map(Path, description["files"])))
        return replace(opened, column=description.get("column")) if isinstance(opened, ParquetSource) else opened
    raise ExtractionError(
        f"the photos cannot be fetched again: expected a source on disk, got one of kind {kind!r}. Pass it: open_maps(folder, source=...)."
    )


def _of_path(text: str) -> Source:
    path = user_path(text)
    if not text:  # not the current folder, which Path makes of it
        raise ExtractionError(f"no photos: expected {_FORMS}, got an empty path. The current folder is '.'.")
    if is_folder(path):
        return _of_folder(path.resolve())
    if not _is_there(path):
        if is_url(text):
            raise ExtractionError(
                f"no photos: expected {_FORMS}, got a URL. Download it first; nothing is fetched here."
            )
        if is_glob(text):
            return _of_glob(path)
        raise ExtractionError(f"no photos: expected {_FORMS}, got nothing at {text!r}. Check the path.")
    path = path.resolve()
    suffix = path.suffix.lower()
    if suffix in _CONTAINERS:
        return _CONTAINERS[suffix]((path,))
    if suffix in _LISTS:
        return FileSource(path.parent, "list", str(path))
    if suffix in PICTURE_SUFFIXES:
        return FileSource(path.parent, "list", paths=(path.name,))
    advice = " Unpack it first: compressed tar files do not allow random access." if ".t" in path.name else ""
    raise ExtractionError(f"no photos: expected {_FORMS}, got {path.name!r}.{advice}")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have, or a folder that may not be read
        return False


def _of_folder(path: Path) -> Source:
    """A folder of pictures, or else of archives or tables."""
    if next(walk(path), None) is None:
        files = {suffix: sorted(path.rglob(f"[!.]*{suffix}")) for suffix in _CONTAINERS}
        kinds = [suffix for suffix in files if files[suffix]]
        if len(kinds) > 1:
            raise ExtractionError(
                f"no photos in {str(path)!r}: expected pictures, or one kind of archive or table, got {', '.join(kinds)}. Pass a glob of one "
                "kind."
            )
        if kinds:
            return _CONTAINERS[kinds[0]](tuple(files[kinds[0]]))
    return FileSource(path, "folder")


def _of_glob(path: Path) -> Source:
    root, below = split_glob(path)
    suffix = path.suffix.lower()
    if suffix not in _CONTAINERS:
        return FileSource(root, "glob", below)
    files = sorted(root.glob(below))
    if not files:
        raise ExtractionError(f"no photos: expected files that match {str(path)!r}, got none. Check the glob.")
    return _CONTAINERS[suffix](tuple(files))
