"""Photos in tables: Parquet files with image bytes, and `datasets.Dataset`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnhook.errors import ExtractionError, ImageError
from attnhook.workflows.extraction.items import Item, check_exists, read_file, require

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")
_LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")


@dataclass
class ParquetSource:
    """Rows of Parquet files; a column holds the bytes of an image file, or a struct of `bytes` and `path` as `datasets` writes it.

    Whole row groups go into the same shard, so each is read about once.

    Attributes:
        files: The files.
    """

    files: tuple[Path, ...]
    _open: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _group: tuple[Any, list[Any]] = field(
        default=(None, []), init=False, repr=False, compare=False
    )  # the last that was read

    kind = "parquet"

    def __post_init__(self) -> None:
        check_exists(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_open": {}, "_group": (None, [])}

    def description(self) -> dict[str, Any]:
        """What the manifest says."""
        return {"kind": self.kind, "files": [str(path) for path in self.files]}

    def items(self) -> Iterator[Item]:
        """All rows."""
        for number, path in enumerate(self.files):
            try:
                file = self._file(number)
            except Exception as error:  # pyarrow's own classes
                yield Item(
                    path.name, container=number, problem=f"expected a Parquet file, got {error}. Fetch it again."
                )
                continue
            labels = _column(file.schema_arrow.names, _LABEL_COLUMNS)
            stamp = path.stat().st_mtime_ns
            first = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                known = file.read_row_group(group, columns=[labels])[labels].to_pylist() if labels else [None] * count
                for row, label in enumerate(known, first):
                    text = None if label is None else str(label)
                    key = f"{path.name}/{row:07d}"
                    yield Item(key, b"", number, row, -1, stamp, text, group=f"{path.name}/{group}")
                first += count

    def read(self, item: Item) -> bytes:
        """The bytes of a photo."""
        file = self._file(item.container)
        group, first = 0, 0
        while item.number >= first + (count := file.metadata.row_group(group).num_rows):
            group, first = group + 1, first + count
        where = (item.container, group)
        if self._group[0] != where:
            column = _image_column(file.schema_arrow, self.files[item.container])
            self._group = (where, file.read_row_group(group, columns=[column])[column])
        return _bytes_of(self._group[1][item.number - first].as_py(), item.key, self.files[item.container].parent)

    def _file(self, number: int) -> Any:
        if number not in self._open:
            parquet = require("pyarrow.parquet", "pyarrow")
            self._open[number] = parquet.ParquetFile(self.files[number], memory_map=True)
        return self._open[number]


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
        chosen = self.dataset.select_columns([image, *([label] if label else [])])
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
            text = (
                None
                if value is None
                else names[value]
                if names and isinstance(value, int) and value >= 0
                else str(value)
            )
            yield Item(f"{row:09d}", number=row, label=text)

    def read(self, item: Item) -> bytes:
        """The bytes of a photo."""
        return _bytes_of(self._undecoded[item.number][self._names[0]], item.key, Path())


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
