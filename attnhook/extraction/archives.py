"""Photos in archives: zip, and tar as WebDataset writes it. Nothing is unpacked to the disk, so no name in an archive can lead out of it."""

import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from attnhook.errors import ImageError
from attnhook.extraction.items import PICTURE_SUFFIXES, Item, check_exists, check_size, readable
from attnhook.extraction.open_files import OpenFiles, names_of

_LABEL_SUFFIX = ".cls"
_LONGEST_LABEL = 4096
_PIECE = 2**20


@dataclass
class _Archives(ABC):
    """Archives of one kind.

    Attributes:
        files: The archives.
    """

    files: tuple[Path, ...]
    _open: OpenFiles = field(default_factory=OpenFiles, init=False, repr=False, compare=False)

    kind = ""

    def __post_init__(self) -> None:
        check_exists(self.files)
        self._names = names_of(self.files)

    def description(self) -> dict[str, Any]:
        """What the manifest says."""
        return {"kind": self.kind, "files": [str(path) for path in self.files]}

    def items(self) -> Iterator[Item]:
        """All pictures of all archives."""
        for number, path in enumerate(self.files):
            try:
                yield from self._items(number, path)
            except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
                yield Item(
                    self._names[number],
                    container=number,
                    number=-1,
                    problem=f"expected a whole {self.kind} file, got {readable(str(error))}. Fetch it again.",
                )

    @abstractmethod
    def _items(self, number: int, path: Path) -> Iterator[Item]:
        """The pictures of one archive."""

    def _key(self, number: int, name: str) -> str:
        return f"{self._names[number]}/{name}" if len(self.files) > 1 else name


class ZipSource(_Archives):
    """Pictures in zip files; a folder above them is their class."""

    kind = "zip"

    def _items(self, number: int, path: Path) -> Iterator[Item]:
        stamp = path.stat().st_mtime_ns
        with zipfile.ZipFile(path) as archive:
            for place, entry in enumerate(archive.infolist()):
                name = PurePosixPath(entry.filename)
                if entry.is_dir() or name.suffix.lower() not in PICTURE_SUFFIXES or _hidden(name):
                    continue
                label = name.parts[0] if len(name.parts) > 1 else None
                key = readable(entry.filename)
                yield Item(self._key(number, key), b"", number, place, entry.file_size, stamp ^ entry.CRC, label)

    def read(self, item: Item) -> bytes:
        """The bytes of a photo."""
        archive = self._opened(item.container)
        entry = archive.infolist()[item.number]
        check_size(entry.file_size, item.key)
        try:
            content: bytes = archive.read(entry)
        except Exception as error:  # damaged, encrypted, odd: each decompressor has its own classes
            raise ImageError(
                f"cannot read {item.key}: expected a whole member of a zip file, got {error}. Fetch it again."
            ) from error
        return content

    def _opened(self, number: int) -> zipfile.ZipFile:
        archive: zipfile.ZipFile = self._open.get(number, lambda: zipfile.ZipFile(self.files[number]))
        return archive


class TarSource(_Archives):
    """Pictures in uncompressed tar files; a member `NAME.cls` beside `NAME.jpg` is its class (WebDataset), else the folder above it."""

    kind = "tar"

    def _items(self, number: int, path: Path) -> Iterator[Item]:
        sample, pictures, label, found = "", list[Item](), None, path.stat()
        with tarfile.open(path, "r:") as archive:
            try:
                for entry in archive:
                    archive.members = []  # type: ignore[attr-defined] # or it keeps all of them
                    name = PurePosixPath(entry.name)
                    if entry.isdir() or _hidden(name):
                        continue
                    base = str(name.parent / name.name.partition(".")[0])
                    if base != sample:
                        yield from _labelled(pictures, label)
                        sample, pictures, label = base, [], None
                    if name.suffix == _LABEL_SUFFIX and entry.isreg() and entry.size <= _LONGEST_LABEL:
                        label = _text(archive, entry)
                    elif name.suffix.lower() in PICTURE_SUFFIXES:
                        pictures.append(self._member(number, found, entry))
            except (tarfile.TarError, OSError, EOFError, ValueError):
                yield from _labelled(pictures, label)  # they stand before what is damaged
                raise
            yield from _labelled(pictures, label)
            problem = _end_problem(path, archive.offset)
        if problem is not None:
            yield Item(self._names[number], container=number, number=-1, problem=f"{problem} Fetch it again.")

    def _member(self, number: int, found: os.stat_result, entry: tarfile.TarInfo) -> Item:
        name = PurePosixPath(entry.name)
        problem = None
        if entry.islnk() or entry.issym():
            problem = f"expected a file's own bytes, got a link to {entry.linkname!r}."
        elif not entry.isreg() or entry.issparse():
            problem = "expected a plain file, got a sparse file or a device."
        elif entry.offset_data + entry.size > found.st_size:
            problem = "expected a whole member, got a tar file that is cut short. Fetch it again."
        folder = readable(name.parts[0]) if len(name.parts) > 1 else None
        key = self._key(number, readable(entry.name))
        return Item(key, b"", number, entry.offset_data, entry.size, found.st_mtime_ns, folder, problem=problem)

    def read(self, item: Item) -> bytes:
        """The bytes of a photo."""
        check_size(item.size, item.key)
        with self.files[item.container].open("rb") as file:
            file.seek(item.number)
            return file.read(item.size)


def _labelled(pictures: list[Item], label: str | None) -> Iterator[Item]:
    from dataclasses import replace

    for item in pictures:
        yield item if label is None else replace(item, label=label)


def _end_problem(path: Path, end: int) -> str | None:
    """What is wrong with a tar file's end, of which `tarfile` itself says nothing."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(_PIECE)
        if len(rest) < tarfile.BLOCKSIZE:
            return "expected a whole tar file, got one that ends without its closing block."
        while rest:
            if rest.strip(b"\0"):
                return f"expected one whole tar file, got more after byte {end:,}: a damaged header, or another tar file behind it."
            rest = file.read(_PIECE)
    return None


def _text(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> str | None:
    file = archive.extractfile(entry)
    return None if file is None else file.read().decode("utf-8", "replace").strip() or None


def _hidden(name: PurePosixPath) -> bool:
    return any((part.startswith(".") and part not in {".", ".."}) or part == "__MACOSX" for part in name.parts)
