"""Photos that are files: a folder tree, a glob, a list."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnhook.errors import ExtractionError
from attnhook.extraction.items import PICTURE_SUFFIXES, Item, file_item, read_file, readable, readable_name

_NO_PHOTOS = frozenset({"__MACOSX"})


@dataclass(frozen=True)
class FileSource:
    """Files below a root.

    Attributes:
        root: What their keys are relative to.
        kind: `"folder"`, `"glob"` or `"list"`.
        pattern: The glob, relative to the root, or the list's file; empty for a folder.
        paths: Of a list in memory.
    """

    root: Path
    kind: str
    pattern: str = ""
    paths: tuple[str, ...] = ()

    def description(self) -> dict[str, Any]:
        """What the manifest says."""
        return {"kind": self.kind, "root": str(self.root), "pattern": self.pattern}

    def items(self) -> Iterator[Item]:
        """All photos, in no particular order."""
        if self.kind == "folder":
            return walk(self.root)
        return self._matches() if self.kind == "glob" else self._listed()

    def read(self, item: Item) -> bytes:
        """The bytes of a photo."""
        return read_file(self.root / os.fsdecode(item.member))

    def _matches(self) -> Iterator[Item]:
        for path in self.root.glob(self.pattern):
            below = path.relative_to(self.root)
            if not path.is_dir() and not any(part.startswith(".") for part in below.parts):
                member = os.fsencode(below.as_posix())
                yield file_item(path, member, label=_first_folder(member))

    def _listed(self) -> Iterator[Item]:
        for line in self.paths or _lines(Path(self.pattern)):
            name, _, label = line.partition("\t")
            label = readable(label.strip())
            yield file_item(self.root / name, os.fsencode(Path(name).as_posix()), label=label or None)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for line in file:
                if line.strip():
                    yield line.rstrip("\r\n")
    except OSError as error:
        raise ExtractionError(f"cannot read the list {path}: expected a text file, got {error.strerror}.") from error


def _first_folder(member: bytes) -> str | None:
    """The class that a tree of one folder a class says."""
    folder, slash, _ = member.partition(b"/")
    return readable_name(folder) if slash else None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in circles, or one that leads where nobody may look: as a file it says so
        return False


def walk(root: Path) -> Iterator[Item]:
    """All pictures below a folder, by their suffix. Links to folders are followed, but never in circles; hidden ones are left out."""
    pending: list[tuple[Path, bytes, frozenset[tuple[int, int]]]] = [(root, b"", frozenset())]
    while pending:
        folder, below, above = pending.pop()
        try:
            found = folder.stat()
            entries: Iterable[os.DirEntry[str]] = list(os.scandir(folder))
        except OSError as error:
            yield Item(readable_name(below) or ".", below, problem=f"expected a folder, got {error.strerror}.")
            continue
        here = (found.st_dev, found.st_ino)
        if here in above:
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _NO_PHOTOS:
                continue
            member = b"/".join([*([below] if below else []), os.fsencode(entry.name)])
            if _is_folder(entry):
                pending.append((Path(entry.path), member, above | {here}))
            elif Path(entry.name).suffix.lower() in PICTURE_SUFFIXES:
                yield file_item(Path(entry.path), member, label=_first_folder(member))
