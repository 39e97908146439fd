"""Photos in tables: Parquet files with image bytes, and `datasets.Dataset`."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from attnhook.errors import ExtractionError, ImageError
from attnhook.extraction.items import Item, check_exists, read_file, readable, require
from attnhook.extraction.open_files import OpenFiles, names_of

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")
TOGETHER = 512
"""Rows of one row group that go into the same shard: a row group may hold a million, and a shard is what a kill loses."""
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")


@dataclass
class ParquetSource:
    """Rows of Parquet files; a column holds the bytes of an image file, or a struct of `bytes` and `path` as `datasets` writes it.

    Rows of a row group that stand together go into the same shard: such a group is read as a whole, and kept until another is wanted.

    Attributes:
        files: The files.
    """

    files: tuple[Path, ...]
    _open: OpenFiles = field(default_factory=OpenFiles, init=False, repr=False, compare=False)
    _group: tuple[Any, Any] = field(default=(None, None), init=False, repr=False, compare=False)  # the last one read

    kind = "parquet"

    def __post_init__(self) -> None:
        check_exists(self.files)
        self._names = names_of(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_group": (None, None)}

    def description(self) -> dict[str, Any]:
        """What the manifest says."""
        return {"kind": self.kind, "files": [str(path) for path in self.files]}

    def items(self) -> Iterator[Item]:
        """All rows."""
        for number in range(len(self.files)):
            try:
                table = self._table(number)
            except Exception as error:  # pyarrow's own classes
                problem = f"expected a Parquet file, got {readable(str(error))}. Fetch it again."
                yield Item(self._names[number], container=number, number=-1, problem=problem)
                continue
            for group in range(len(table.starts) - 1):
                yield from self._rows(number, table, group)

    def _rows(self, number: int, table: "_Table", group: int) -> Iterator[Item]:
        name, first, last = self._names[number], table.starts[group], table.starts[group + 1]
        stamp = self.files[number].stat().st_mtime_ns
        problem = None
        try:
            labels = table.labels(group)
        except Exception as error:  # as above
            labels = [None] * (last - first)
            problem = f"expected whole labels in its row group, got {readable(str(error))}. Fetch the file again."
        for row, label in enumerate(labels, first):
            together = f"{name}/{group}/{(row - first) // TOGETHER}"
            yield Item(f"{name}/{row:07d}", b"", number, row, -1, stamp, label, group=together, problem=problem)

    def read(self, item: Item) -> bytes:
        """The bytes of a photo."""
        table = self._table(item.container)
        group = bisect_right(table.starts, item.number) - 1
        where = (item.container, group)
        if self._group[0] != where:
            column = _image_column(table.file.schema_arrow, self.files[item.container])
            self._group = (where, table.file.read_row_group(group, columns=[column]).column(0))
        value = self._group[1][item.number - table.starts[group]].as_py()
        return _bytes_of(value, item.key, self.files[item.container].parent)

    def _table(self, number: int) -> "_Table":
        table: _Table = self._open.get(number, lambda: _Table.open(self.files[number]))
        return table


@dataclass(frozen=True)
class _Table:
    """An open Parquet file.

    Attributes:
        file: The file.
        starts: The first row of every row group, and the number of rows.
    """

    file: Any
    starts: list[int]

    @classmethod
    def open(cls, path: Path) -> "_Table":
        """Open a file."""
        file = require("pyarrow.parquet", "pyarrow").ParquetFile(path, memory_map=True)
        counts = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
        return cls(file, list(accumulate(counts, initial=0)))

    def labels(self, group: int) -> list[str | None]:
        """The labels of a row group, None for each row if there are none; by their names, where `datasets` left these in the file."""
        schema = self.file.schema_arrow
        column = _column(schema.names, _LABEL_COLUMNS)
        if column is None:
            return [None] * (self.starts[group + 1] - self.starts[group])
        try:
            known = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
        except (KeyError, TypeError, ValueError):  # other writers'
            known = None
        values = self.file.read_row_group(group, columns=[column]).column(0).to_pylist()
        return [_label(value, known) for value in values]

    def close(self) -> None:
        """Close it."""
        self.file.close()


@dataclass
class DatasetSource:
    """A `datasets.Dataset` with an image column; its rows are read undecoded.

    Attributes:
        dataset: The data set.
    """

    dataset: Any
    _undecoded: Any = field(default=None, init=False, repr=False, compare=False)
    _names: tuple[str, str | None] = field(default=("", None), init=False, repr=False, compare=False)

    kind = "datasets"

    def __post_init__(self) -> None:
        datasets = require("datasets", "datasets")
        if not isinstance(self.dataset, datasets.Dataset):
            raise ExtractionError(
                f"no photos: expected a datasets.Dataset, got {type(self.dataset).__name__}. Choose one split, and load it without streaming."
            )
        features = self.dataset.features
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        image = images[0] if images else _column(list(features), _IMAGE_COLUMNS)
        if image is None:
            raise ExtractionError(f"no photos: expected a column of datasets.Image, got {', '.join(features)}.")
        label = _column(list(features), _LABEL_COLUMNS)
        chosen = self.dataset.with_format(None).select_columns([image, *([label] if label else [])])
        self._undecoded = chosen.cast_column(image, datasets.Image(decode=False)) if images else chosen
        self._names = (image, label)

    def description(self) -> dict[str, Any]:
        """What the manifest says."""
        return {"kind": self.kind, "fingerprint": self.dataset._fingerprint, "rows": len(self.dataset)}

    def items(self) -> Iterator[Item]:
        """All rows."""
        label = self._names[1]
        names = getattr(self.dataset.features.get(label), "names", None) if label else None
        known = self._undecoded[label] if label else [None] * len(self.dataset)
        for row, value in enumerate(known):
            yield Item(f"{row:09d}", number=row, label=_label(value, names))

    def read(self, item: Item) -> bytes:
        """The bytes of a photo."""
        return _bytes_of(self._undecoded[item.number][self._names[0]], item.key, Path())


def _label(value: Any, names: Any) -> str | None:
    if value is None:
        return None
    named = isinstance(names, list) and isinstance(value, int) and 0 <= value < len(names)
    return readable(str(names[value] if named else value))


def _column(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _image_column(schema: Any, path: Path) -> str:
    name = _column(schema.names, _IMAGE_COLUMNS)
    if name is None:
        types = require("pyarrow", "pyarrow").types
        holds = [field.name for field in schema if types.is_struct(field.type) or types.is_binary(field.type)]
        name = holds[0] if len(holds) == 1 else None
    if name is None:
        raise ImageError(
            f"no images in {path}: expected a column named {' or '.join(_IMAGE_COLUMNS)}, got {schema.names}."
        )
    return str(name)


def _bytes_of(value: Any, key: str, folder: Path) -> bytes:
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return read_file(folder / value["path"])
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ImageError(f"cannot read {key}: expected the bytes of an image file, got {type(value).__name__}.")
    return value
