"""Photos that are files of their own: a folder, a glob, a list."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnhook.errors import ExtractionError
from attnhook.extraction.items import PICTURE_SUFFIXES, Item, file_item, read_file, readable, readable_name


@dataclass(frozen=True)
class FileSource:
    """Files below a root, which their keys are relative to."""

    root: Path
    kind: str  # "folder", "glob" or "list"
    pattern: str = ""  # the glob, relative to the root, or the list's file
    paths: tuple[str, ...] = ()  # of a list in memory

    def description(self) -> dict[str, Any]:
        """Describe the source for the manifest."""
        return {"kind": self.kind, "root": str(self.root), "pattern": self.pattern}

    def items(self) -> Iterator[Item]:
        """List all photos, in no particular order."""
        if self.kind == "folder":
            return walk(self.root)
        return self._matches() if self.kind == "glob" else self._listed()

    def read(self, item: Item) -> bytes:
        """Read a photo's bytes."""
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
            yield from (line.rstrip("\r\n") for line in file if line.strip())
    except OSError as error:
        raise ExtractionError(f"cannot read the list {path}: expected a text file, got {error.strerror}.") from error


def _first_folder(member: bytes) -> str | None:
    """The class, in a tree with one folder per class."""
    folder, slash, _ = member.partition(b"/")
    return readable_name(folder) if slash else None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link, or one into a folder that may not be read: listed as a file with this problem
        return False


def walk(root: Path) -> Iterator[Item]:
    """List the pictures below a folder, by suffix. Follows links to folders, but never in circles; skips hidden ones."""
    pending: list[tuple[Path, bytes, frozenset[tuple[int, int]]]] = [(root, b"", frozenset())]
    while pending:
        folder, below, parents = pending.pop()
        try:
            status = folder.stat()
            entries = list(os.scandir(folder))
        except OSError as error:
            yield Item(readable_name(below) or ".", below, problem=f"expected a folder, got {error.strerror}.")
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            member = below + (b"/" if below else b"") + os.fsencode(entry.name)
            if _is_folder(entry):
                pending.append((Path(entry.path), member, parents | {identity}))
            elif Path(entry.name).suffix.lower() in PICTURE_SUFFIXES:
                yield file_item(Path(entry.path), member, label=_first_folder(member))
