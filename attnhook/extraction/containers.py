"""Photos in zip files, and in tar files as WebDataset writes them; each process keeps a few files open.

Nothing is unpacked to the disk, so no member can escape its archive.
"""

import os
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from attnhook.errors import ExtractionError, ImageError
from attnhook.extraction.items import Item, check_size
from attnhook.files import readable, readable_name
from attnhook.imaging.photo_files import PICTURE_SUFFIXES


class OpenFiles:
    """Keeps the most recently used files open: a data set may have more than a process may open.

    Each process opens its own, because a forked one would share the file position with its parent. Pickled without the files.
    """

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._files: OrderedDict[tuple[int, Hashable], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": OrderedDict()}

    def get(self, name: Hashable, open_file: Callable[[], Any]) -> Any:
        """Return an open file."""
        key = (os.getpid(), name)
        if key not in self._files:
            while len(self._files) >= self._limit:
                self._files.popitem(last=False)  # closed with its last reference
            self._files[key] = open_file()
        self._files.move_to_end(key)
        return self._files[key]


@dataclass
class ContainerSource(ABC):
    """Photos in archives or tables of one kind."""

    files: tuple[Path, ...]
    _open: OpenFiles = field(default_factory=OpenFiles, init=False, repr=False, compare=False)

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for path in self.files:
            if not path.is_file():
                raise ExtractionError(f"no photos: expected a file at {path}, got none. Check the path.")
        names = [path.name for path in self.files]
        if len(set(names)) < len(names):
            root = os.path.commonpath([path.parent for path in self.files])
            names = [path.relative_to(root).as_posix() for path in self.files]
        self._names = tuple(readable_name(os.fsencode(name)) for name in names)

    def description(self) -> dict[str, Any]:
        """Describe the source for the manifest."""
        return {"kind": self.kind, "files": [str(path) for path in self.files]}

    def items(self) -> Iterator[Item]:
        """List all photos."""
        for number, path in enumerate(self.files):
            try:
                yield from self._items(number, path)
            except ExtractionError:
                raise
            except Exception as error:  # damaged: every library has its own classes
                yield self._damaged(number, f"expected a whole {self.kind} file, got {error}.")

    @abstractmethod
    def _items(self, number: int, path: Path) -> Iterator[Item]:
        """The photos of one container."""

    def _key(self, number: int, name: str) -> str:
        return f"{self._names[number]}/{readable(name)}" if len(self.files) > 1 else readable(name)

    def _damaged(self, container: int, problem: str) -> Item:
        """An item for a container, or the rest of one, that cannot be read."""
        problem = f"{readable(problem)} Fetch it again."
        return Item(self._names[container], container=container, number=-1, problem=problem)


_LABEL_SUFFIX = ".cls"
_LONGEST_LABEL = 4096
_CHUNK = 2**20


class ZipSource(ContainerSource):
    """Pictures in zip files; the first folder of a member's path is its class."""

    kind = "zip"

    def _items(self, number: int, path: Path) -> Iterator[Item]:
        modified = path.stat().st_mtime_ns
        with zipfile.ZipFile(path) as archive:
            for place, entry in enumerate(archive.infolist()):
                name = PurePosixPath(entry.filename)
                if entry.is_dir() or name.suffix.lower() not in PICTURE_SUFFIXES or _hidden(name):
                    continue
                label = name.parts[0] if len(name.parts) > 1 else None
                key, stamp = self._key(number, entry.filename), modified ^ entry.CRC
                yield Item(key, b"", number, place, entry.file_size, stamp, label)

    def read(self, item: Item) -> bytes:
        """Read a photo's bytes."""
        archive = self._opened(item.container)
        entry = archive.infolist()[item.number]
        check_size(entry.file_size, item.key)
        try:
            return archive.read(entry)
        except Exception as error:  # damaged, encrypted, unsupported: each decompressor has its own classes
            raise ImageError(
                f"cannot read {item.key}: expected a whole member of a zip file, got {error}. Fetch it again."
            ) from error

    def _opened(self, number: int) -> zipfile.ZipFile:
        archive: zipfile.ZipFile = self._open.get(number, lambda: zipfile.ZipFile(self.files[number]))
        return archive


class TarSource(ContainerSource):
    """Pictures in uncompressed tar files. `NAME.cls` next to `NAME.jpg` holds its class (WebDataset); else the first folder is its class."""

    kind = "tar"

    def _items(self, number: int, path: Path) -> Iterator[Item]:
        sample, pictures, label, status = "", list[Item](), None, path.stat()
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
                        pictures.append(self._member(number, status, entry))
            except Exception:  # the pictures before the damage can be read
                yield from _labelled(pictures, label)
                raise
            yield from _labelled(pictures, label)
            problem = _end_problem(path, archive.offset)
        if problem is not None:
            yield self._damaged(number, problem)

    def _member(self, number: int, status: os.stat_result, entry: tarfile.TarInfo) -> Item:
        name = PurePosixPath(entry.name)
        problem = None
        if entry.islnk() or entry.issym():
            problem = f"expected a file's own bytes, got a link to {entry.linkname!r}."
        elif not entry.isreg() or entry.issparse():
            problem = "expected a plain file, got a sparse file or a device."
        elif entry.offset_data + entry.size > status.st_size:
            problem = "expected a whole member, got a tar file that is cut short. Fetch it again."
        folder = readable(name.parts[0]) if len(name.parts) > 1 else None
        key, stamp = self._key(number, entry.name), status.st_mtime_ns
        return Item(key, b"", number, entry.offset_data, entry.size, stamp, folder, problem=problem)

    def read(self, item: Item) -> bytes:
        """Read a photo's bytes."""
        check_size(item.size, item.key)
        with self.files[item.container].open("rb") as file:
            file.seek(item.number)
            return file.read(item.size)


def _labelled(pictures: list[Item], label: str | None) -> list[Item]:
    return pictures if label is None else [replace(item, label=label) for item in pictures]


def _end_problem(path: Path, end: int) -> str | None:
    """What is wrong after the last member, which `tarfile` does not report."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(_CHUNK)
        if len(rest) < tarfile.BLOCKSIZE:
            return "expected a whole tar file, got one that ends without its closing block."
        more = f"expected one whole tar file, got more after byte {end:,}: a damaged header, or another tar file."
        while rest:
            if rest.strip(b"\0"):
                return more
            rest = file.read(_CHUNK)
    return None


def _text(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> str | None:
    file = archive.extractfile(entry)
    return None if file is None else file.read().decode("utf-8", "replace").strip() or None


def _hidden(name: PurePosixPath) -> bool:
    return any((part.startswith(".") and part not in {".", ".."}) or part == "__MACOSX" for part in name.parts)
