"""Small photos on disk, in every kind of source, and what an extraction's files hold."""

import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def photo_bytes(number: int, kind: str = "PNG") -> bytes:
    """A photo of its own size and colours."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((80 + number % 7, 72 + number % 5), Image.Resampling.BILINEAR).save(file, kind)
    return file.getvalue()


def photo_names(count: int) -> list[str]:
    return [f"{'cats' if i % 2 else 'dogs'}/{i:03d}.png" for i in range(count)]


def make_folder(root: Path, count: int) -> Path:
    """A tree of two classes."""
    for i, name in enumerate(photo_names(count)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(photo_bytes(i))
    return root


def make_zip(path: Path, count: int) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(photo_names(count)):
            archive.writestr(name, photo_bytes(i))
    return path


def make_tar(path: Path, count: int) -> Path:
    """As WebDataset: `000.png` and `000.cls` beside each other."""
    with tarfile.open(path, "w") as archive:
        for i in range(count):
            add_member(archive, f"{i:03d}.png", photo_bytes(i))
            add_member(archive, f"{i:03d}.cls", str(i % 2).encode())
    return path


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that is not hidden."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rows_in(item, number):
    """The rows of the block with this number among those of an item, in the order of the numbers in their names."""
    names = [name for name in item if name.startswith("rows.")]
    names.sort(key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    return item[names[number]]
