"""Photos in zip files, and in tar files as WebDataset writes them. Nothing is unpacked to the disk, so no member can escape the archive."""

import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from attnhook.errors import ImageError
from attnhook.extraction.containers import ContainerSource
from attnhook.extraction.items import PICTURE_SUFFIXES, Item, check_size, readable

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
