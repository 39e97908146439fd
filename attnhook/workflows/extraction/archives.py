"""Photos in archives: zip, and tar as WebDataset writes it. Nothing is unpacked to the disk, so no name in an archive can lead out of it."""

import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from attnhook.errors import ImageError
from attnhook.workflows.extraction.items import PICTURE_SUFFIXES, Item, check_exists, check_size, readable_name

_LABEL_SUFFIX = ".cls"
_LONGEST_LABEL = 4096


@dataclass
class _Archives:
    """Archives of one kind.

    Attributes:
        files: The archives.
    """

    files: tuple[Path, ...]
    _open: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # of this process

    kind = ""

    def __post_init__(self) -> None:
        check_exists(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_open": {}}

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
                    path.name,
                    container=number,
                    problem=f"expected a whole {self.kind} file, got {error}. Fetch it again.",
                )

    def _items(self, number: int, path: Path) -> Iterator[Item]:
        raise NotImplementedError

    def _key(self, number: int, name: str) -> str:
        return f"{self.files[number].name}/{name}" if len(self.files) > 1 else name


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
                key = readable_name(entry.filename.encode("utf-8", "surrogateescape"))
                yield Item(self._key(number, key), b"", number, place, entry.file_size, stamp ^ entry.CRC, label)

    def read(self, item: Item) -> bytes:
        """The bytes of a photo."""
        archive = self._open.get(item.container)
        if archive is None:
            archive = self._open[item.container] = zipfile.ZipFile(self.files[item.container])
        entry = archive.infolist()[item.number]
        check_size(entry.file_size, item.key)
        try:
            content: bytes = archive.read(entry)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:  # damaged, encrypted, odd
            raise ImageError(f"cannot read {item.key}: expected a whole member of a zip file, got {error}.") from error
        return content


class TarSource(_Archives):
    """Pictures in uncompressed tar files; a member `NAME.cls` beside `NAME.jpg` is its class (WebDataset), else the folder above it."""

    kind = "tar"

    def _items(self, number: int, path: Path) -> Iterator[Item]:
        stamp, whole = path.stat().st_mtime_ns, path.stat().st_size
        sample, pictures, label = "", list[Item](), None
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                archive.members = []  # type: ignore[attr-defined] # or it keeps all of them
                name = PurePosixPath(entry.name)
                if not entry.isreg() or _hidden(name):
                    continue
                base = str(name.parent / name.name.partition(".")[0])
                if base != sample:
                    yield from _labelled(pictures, label)
                    sample, pictures, label = base, [], None
                if name.suffix == _LABEL_SUFFIX and entry.size <= _LONGEST_LABEL:
                    label = _text(archive, entry)
                elif name.suffix.lower() in PICTURE_SUFFIXES:
                    cut = entry.offset_data + entry.size > whole
                    problem = (
                        "expected a whole member, got a tar file that is cut short. Fetch it again." if cut else None
                    )
                    folder = name.parts[0] if len(name.parts) > 1 else None
                    key = self._key(number, readable_name(entry.name.encode("utf-8", "surrogateescape")))
                    place = entry.offset_data
                    pictures.append(Item(key, b"", number, place, entry.size, stamp, folder, problem=problem))
            end = archive.offset
        yield from _labelled(pictures, label)
        if whole < end + tarfile.BLOCKSIZE:  # tarfile itself is silent about that
            cut_short = "expected a whole tar file, got one that ends without its closing block. Fetch it again."
            yield Item(path.name, container=number, number=end, problem=cut_short)

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


def _text(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> str | None:
    file = archive.extractfile(entry)
    return None if file is None else file.read().decode("utf-8", "replace").strip() or None


def _hidden(name: PurePosixPath) -> bool:
    return any((part.startswith(".") and part not in {".", ".."}) or part == "__MACOSX" for part in name.parts)
