"""Photos in tables: Parquet files with image bytes, and `datasets.Dataset`."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from attnhook.errors import ExtractionError, ImageError
from attnhook.extraction.containers import ContainerSource, OpenFiles
from attnhook.extraction.items import Item, read_file, readable, require

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
ROWS_TOGETHER = 512
"""Rows of one row group that go into the same shard. A row group may hold a million rows, and a killed run loses whole shards."""


@dataclass
class ParquetSource(ContainerSource):
    """Rows of Parquet files. A column holds the bytes of an image file, or a struct of `bytes` and `path` as `datasets` writes it.

    A row group is read as a whole and kept until a row of another one is wanted, so neighbouring rows go into the same shard.
    """

    _last_group: OpenFiles = field(default_factory=lambda: OpenFiles(limit=1), init=False, repr=False, compare=False)

    kind = "parquet"

    def _items(self, number: int, path: Path) -> Iterator[Item]:
        table, name, stamp = self._table(number), self._names[number], path.stat().st_mtime_ns
        for group, (first, end) in enumerate(pairwise(table.starts)):
            problem = None
            try:
                labels = table.labels(group)
            except Exception as error:  # pyarrow's own classes
                labels = [None] * (end - first)
                problem = f"expected whole labels in its row group, got {readable(str(error))}. Fetch the file again."
            for row, label in enumerate(labels, first):
                together = f"{name}/{group}/{(row - first) // ROWS_TOGETHER}"
                yield Item(f"{name}/{row:07d}", b"", number, row, -1, stamp, label, group=together, problem=problem)

    def read(self, item: Item) -> bytes:
        """Read a photo's bytes."""
        table, path = self._table(item.container), self.files[item.container]
        group = bisect_right(table.starts, item.number) - 1
        images = self._last_group.get(
            (item.container, group), lambda: table.column(group, _image_column(table.file.schema_arrow, path))
        )
        return _bytes_of(images[item.number - table.starts[group]].as_py(), item.key, path.parent)

    def _table(self, number: int) -> "_Table":
        table: _Table = self._open.get(number, lambda: _Table(self.files[number]))
        return table


class _Table:
    """An open Parquet file; `starts` holds the first row of every row group, and the number of rows."""

    def __init__(self, path: Path) -> None:
        self.file = require("pyarrow.parquet").ParquetFile(path, memory_map=True)
        counts = (self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups))
        self.starts = list(accumulate(counts, initial=0))

    def column(self, group: int, name: str) -> Any:
        """Read a column of a row group."""
        return self.file.read_row_group(group, columns=[name]).column(0)

    def labels(self, group: int) -> list[str | None]:
        """Read the labels of a row group, as class names if `datasets` stored them in the file."""
        schema = self.file.schema_arrow
        name = _first_of(_LABEL_COLUMNS, schema.names)
        if name is None:
            return [None] * (self.starts[group + 1] - self.starts[group])
        try:
            classes = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][name]["names"]
        except (KeyError, TypeError, ValueError):  # not written by datasets
            classes = None
        return [_label(value, classes) for value in self.column(group, name).to_pylist()]


class DatasetSource:
    """A `datasets.Dataset` with an image column, whose rows are read undecoded."""

    kind = "datasets"

    def __init__(self, dataset: Any) -> None:
        datasets = require("datasets")
        if not isinstance(dataset, datasets.Dataset):
            raise ExtractionError(
                f"no photos: expected a datasets.Dataset, got {type(dataset).__name__}. Choose one split, and load it without streaming."
            )
        images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        image = images[0] if images else _first_of(_IMAGE_COLUMNS, dataset.features)
        if image is None:
            raise ExtractionError(f"no photos: expected a column of datasets.Image, got {', '.join(dataset.features)}.")
        self.dataset, self._image = dataset, image
        self._label = _first_of(_LABEL_COLUMNS, dataset.features)
        columns = dataset.with_format(None).select_columns([image, *([self._label] if self._label else [])])
        self._undecoded = columns.cast_column(image, datasets.Image(decode=False)) if images else columns

    def description(self) -> dict[str, Any]:
        """Describe the source for the manifest."""
        return {"kind": self.kind, "fingerprint": self.dataset._fingerprint, "rows": len(self.dataset)}

    def items(self) -> Iterator[Item]:
        """List all rows."""
        labels = self._undecoded[self._label] if self._label else [None] * len(self.dataset)
        classes = getattr(self.dataset.features.get(self._label), "names", None)
        for row, value in enumerate(labels):
            yield Item(f"{row:09d}", number=row, label=_label(value, classes))

    def read(self, item: Item) -> bytes:
        """Read a photo's bytes."""
        return _bytes_of(self._undecoded[item.number][self._image], item.key, Path())


def _label(value: Any, classes: Any) -> str | None:
    if value is None:
        return None
    named = isinstance(classes, list) and isinstance(value, int) and 0 <= value < len(classes)
    return readable(str(classes[value] if named else value))


def _first_of(wanted: tuple[str, ...], names: Any) -> str | None:
    return next((name for name in wanted if name in names), None)


def _image_column(schema: Any, path: Path) -> str:
    name = _first_of(_IMAGE_COLUMNS, schema.names)
    if name is None:
        types = require("pyarrow").types
        binary = [field.name for field in schema if types.is_struct(field.type) or types.is_binary(field.type)]
        if len(binary) != 1:
            raise ImageError(
                f"no images in {path}: expected a column named {' or '.join(_IMAGE_COLUMNS)}, got {schema.names}."
            )
        name = str(binary[0])
    return name


def _bytes_of(value: Any, key: str, folder: Path) -> bytes:
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return read_file(folder / value["path"])
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ImageError(f"cannot read {key}: expected the bytes of an image file, got {type(value).__name__}.")
    return value
