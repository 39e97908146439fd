"""Photos that are files of their own: a folder, a glob, a list."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnhook.errors import ExtractionError
from attnhook.extraction.items import Item, file_item, outside, read_file
from attnhook.files import readable, readable_name, user_path
from attnhook.imaging.photo_files import glob_matches, is_url, walk

_URL = "expected a local file, got a URL. Download it first; nothing is fetched here."


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
        return self._listed() if self.kind == "list" else self._found()

    def read(self, item: Item) -> bytes:
        """Read a photo's bytes."""
        return read_file(self.root / os.fsdecode(item.member))

    def _found(self) -> Iterator[Item]:
        below = (
            walk(self.root)
            if self.kind == "folder"
            else ((path, None) for path in glob_matches(self.root, self.pattern))
        )
        for path, problem in below:
            member = os.fsencode(path.relative_to(self.root).as_posix())
            if problem is None:
                yield file_item(path, member, label=_first_folder(member))
            else:
                yield Item(readable_name(member), member, problem=f"expected a folder, got {problem}.")

    def _listed(self) -> Iterator[Item]:
        for line in self.paths or _lines(Path(self.pattern)):
            name, _, label = line.partition("\t")
            label = readable(label.strip())
            path = os.fspath(user_path(name)) if self.paths else name
            item = file_item(self.root / path, os.fsencode(Path(path).as_posix()), label=label or None)
            if item.problem and is_url(name):
                item = replace(item, key=readable(name), problem=_URL)
            # Paths in memory are the user's own; a list may come from anyone.
            yield item if self.paths or item.problem else replace(item, problem=outside(self.root, name))


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
