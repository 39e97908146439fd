"""Photos in tables: Parquet files with image bytes, and `datasets.Dataset`."""

import json
import logging
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from attnhook.errors import ExtractionError, ImageError
from attnhook.extraction.containers import ContainerSource, OpenFiles
from attnhook.extraction.items import Item, check_size, outside, read_file, require
from attnhook.files import readable

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
_LOGGER = logging.getLogger("attnhook")
ROWS_TOGETHER = 512
"""Rows of one row group that go into the same shard. A row group may hold a million rows, and a killed run loses whole shards."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are the photos and their labels: the same rule for Parquet files and `datasets`.

    Columns that `datasets` declares as images are the candidates, without them those that hold bytes. One with a usual name is taken first.
    """

    image: str
    label: str | None
    classes: list[str] | None = None  # the labels' names, where labels are numbers
    declared: bool = False  # whether the images' column is declared as such
    others: tuple[str, ...] = ()  # columns that `column=` could choose instead
    without: tuple[str, ...] = ()  # columns with a usual name, but no images

    @classmethod
    def of(cls, schema: Any, wanted: str | None, where: str) -> "Columns":
        """Choose the columns of an Arrow schema."""
        types = require("pyarrow").types
        features = _features(schema)
        declared = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
        held = [field.name for field in schema if _holds_bytes(types, field.type)]
        images = declared or held
        named = [wanted] if wanted is not None else [name for name in _IMAGE_COLUMNS if name in images]
        if not images:
            raise ExtractionError(
                f"no photos in {where}: expected a column of images or their bytes, got only {', '.join(schema.names) or 'no columns'}. Store "
                "the bytes of each image file as binary."
            )
        if not set(named) <= {*declared, *held} or not (named or len(images) == 1):
            got = "several" if wanted is None else repr(wanted)
            raise ExtractionError(
                f"no photos in {where}: expected one of the columns {', '.join(images)}, got {got}. Choose with column=."
            )
        image = (named or images)[0]
        plain = [name for name in _LABEL_COLUMNS if name in schema.names and _is_plain(types, schema.field(name).type)]
        label = plain[0] if plain else None
        classes = features.get(label, {}).get("names")
        others = tuple(name for name in images if name != image and wanted is None)
        usual = [] if wanted is not None or named else [name for name in _IMAGE_COLUMNS if name in schema.names]
        return cls(image, label, classes if isinstance(classes, list) else None, image in declared, others, (*usual,))

    def say_choice(self, where: str) -> None:
        """Say which column was taken, where there is a choice."""
        if self.without:
            _LOGGER.warning(
                "%s: using column %r for the photos; found no images in %s.", where, self.image, ", ".join(self.without)
            )
        if self.others:
            _LOGGER.warning(
                "%s: using column %r for the photos; pass column= to use another: %s.",
                where,
                self.image,
                ", ".join(self.others),
            )


def _features(schema: Any) -> dict[Any, dict[str, Any]]:
    """What `datasets` wrote about its columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):  # not written by datasets
        return {}


def _holds_bytes(types: Any, kind: Any) -> bool:
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind)
    return bool(is_bytes or (types.is_struct(kind) and kind.get_field_index("bytes") >= 0))


def _is_plain(types: Any, kind: Any) -> bool:
    """Whether a value is a text or a number, which may be a label."""
    if types.is_dictionary(kind):
        return _is_plain(types, kind.value_type)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
    return bool(is_text or types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind))


@dataclass
class ParquetSource(ContainerSource):
    """Rows of Parquet files. A column holds the bytes of an image file, or a struct of `bytes` and `path` as `datasets` writes it.

    A row group is read as a whole and kept until a row of another one is wanted, so neighbouring rows go into the same shard.
    """

    column: str | None = None  # of the photos; None follows the rule of `Columns`
    _last_group: OpenFiles = field(default_factory=lambda: OpenFiles(limit=1), init=False, repr=False, compare=False)
    _said: bool = field(default=False, init=False, repr=False, compare=False)

    kind = "parquet"

    def description(self) -> dict[str, Any]:
        """Describe the source for the manifest."""
        return super().description() | ({} if self.column is None else {"column": self.column})

    def _items(self, number: int, path: Path) -> Iterator[Item]:
        table, name, stamp = self._table(number), self._names[number], path.stat().st_mtime_ns
        if not self._said:
            table.columns.say_choice(str(path))
            self._said = True
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
        images = self._last_group.get((item.container, group), lambda: table.column(group, table.columns.image))
        value = images[item.number - table.starts[group]].as_py()
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            if problem := outside(path.parent, value["path"]):
                raise ImageError(f"cannot read {item.key}: {problem}")
            return read_file(path.parent / value["path"])
        return _bytes_of(value, item.key)

    def _table(self, number: int) -> "_Table":
        table: _Table = self._open.get(number, lambda: _Table(self.files[number], self.column))
        return table


class _Table:
    """An open Parquet file; `starts` holds the first row of every row group, and the number of rows."""

    def __init__(self, path: Path, column: str | None) -> None:
        self.file = require("pyarrow.parquet").ParquetFile(path, memory_map=True)
        counts = (self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups))
        self.starts = list(accumulate(counts, initial=0))
        self.columns = Columns.of(self.file.schema_arrow, column, readable(str(path)))

    def column(self, group: int, name: str) -> Any:
        """Read a column of a row group."""
        return self.file.read_row_group(group, columns=[name]).column(0)

    def labels(self, group: int) -> list[str | None]:
        """Read the labels of a row group, as class names if `datasets` stored them in the file."""
        name = self.columns.label
        if name is None:
            return [None] * (self.starts[group + 1] - self.starts[group])
        return [_label(value, self.columns.classes) for value in self.column(group, name).to_pylist()]


class DatasetSource:
    """A `datasets.Dataset` with an image column, whose rows are read undecoded."""

    kind = "datasets"

    def __init__(self, dataset: Any, column: str | None = None) -> None:
        datasets = require("datasets")
        if not isinstance(dataset, datasets.Dataset):
            raise ExtractionError(
                f"no photos: expected a datasets.Dataset, got {type(dataset).__name__}. Choose one split, and load it without streaming."
            )
        self.dataset = dataset
        self._columns = found = Columns.of(dataset.features.arrow_schema, column, "the data set")
        found.say_choice("the data set")
        columns = dataset.with_format(None).select_columns(list(filter(None, (found.image, found.label))))
        self._undecoded = columns.cast_column(found.image, datasets.Image(decode=False)) if found.declared else columns

    def description(self) -> dict[str, Any]:
        """Describe the source for the manifest."""
        rows = {"fingerprint": self.dataset._fingerprint, "rows": len(self.dataset)}
        return {"kind": self.kind, **rows, "column": self._columns.image}

    def items(self) -> Iterator[Item]:
        """List all rows."""
        name = self._columns.label
        for row, value in enumerate(self._undecoded[name] if name else [None] * len(self.dataset)):
            yield Item(f"{row:09d}", number=row, label=_label(value, self._columns.classes))

    def read(self, item: Item) -> bytes:
        """Read a photo's bytes."""
        value = self._undecoded[item.number][self._columns.image]
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            return read_file(Path(value["path"]))  # the data set is the user's own, made in this process
        return _bytes_of(value, item.key)


def _label(value: Any, classes: Any) -> str | None:
    if value is None:
        return None
    named = classes is not None and isinstance(value, int) and 0 <= value < len(classes)
    return readable(str(classes[value] if named else value))


def _bytes_of(value: Any, key: str) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ImageError(f"cannot read {key}: expected the bytes of an image file, got {type(value).__name__}.")
    check_size(len(value), key)
    return value
