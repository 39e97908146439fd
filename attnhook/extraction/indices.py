"""The index: which photo is where. One Parquet file a shard while a run goes on, one for all at its end."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnhook.errors import ExtractionError
from attnhook.extraction.items import require
from attnhook.files import replacing
from attnhook.imaging.geometry import ImageGeometry

NAME = "index.parquet"
SHARDS = "shards"
BYTES = b"attnhook.bytes"
"""In a fragment's metadata: the size of its shard's tensors."""
LATE = 180.0
"""Seconds after which another machine's shard will not come any more: network file systems show new files late, by a minute and more."""
_TOGETHER = 16_384


def schema() -> Any:
    """The columns of an index."""
    arrow = require("pyarrow", "pyarrow")
    return arrow.schema(
        [
            ("key", arrow.string()),  # the photo's name in the source
            ("shard", arrow.int32()),
            ("group", arrow.int32()),  # which tensors of the shard; -1 for a photo that failed
            ("offset", arrow.int64()),  # where in those tensors
            ("mark", arrow.int64()),  # of the shard's photos, as its tensors' header says it, too
            ("grid", arrow.list_(arrow.int32())),  # rows and columns of patches, or null
            ("geometry", arrow.list_(arrow.float64())),  # what numbers_of gives
            ("digest", arrow.string()),  # SHA-256 of the photo's file
            ("label", arrow.string()),
            ("target", arrow.int64()),  # the class of class-specific methods
            ("error", arrow.string()),  # why there is nothing of this photo
            ("member", arrow.binary()),  # from here on: how the source finds the photo again
            ("container", arrow.int32()),
            ("number", arrow.int64()),
            ("size", arrow.int64()),
            ("stamp", arrow.int64()),
        ]
    )


def numbers_of(geometry: ImageGeometry) -> list[float]:
    """A geometry as twelve numbers: the sizes of image and input, scale, offset, and the valid box."""
    parts = (geometry.image_size, geometry.input_size, geometry.scale, geometry.offset, geometry.valid)
    return [float(number) for part in parts for number in part]


def geometry_of(numbers: list[float]) -> ImageGeometry:
    """Undo `numbers_of`."""
    a, b, c, d, e, f, g, h, *valid = numbers
    return ImageGeometry((int(a), int(b)), (int(c), int(d)), (e, f), (g, h), (valid[0], valid[1], valid[2], valid[3]))


def fragment_path(folder: Path, shard: int) -> Path:
    """Where a shard's part of the index stands."""
    return folder / SHARDS / f"{shard:06d}.parquet"


def tensors_path(folder: Path, shard: int) -> Path:
    """Where a shard's tensors stand."""
    return folder / SHARDS / f"{shard:06d}.safetensors"


def write_fragment(folder: Path, shard: int, rows: list[dict[str, Any]]) -> None:
    """Write a shard's part of the index: the last thing that is written of a shard, so that what has one is whole."""
    arrow, parquet = require("pyarrow", "pyarrow"), require("pyarrow.parquet", "pyarrow")
    tensors = tensors_path(folder, shard)
    size = _size(tensors)
    table = arrow.Table.from_pylist(rows, schema=schema().with_metadata({BYTES: str(size).encode()}))
    with replacing(fragment_path(folder, shard), durable=True) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def whole_fragment(folder: Path, shard: int) -> Any:
    """A shard's part of the index, if the shard is whole."""
    parquet = require("pyarrow.parquet", "pyarrow")
    path, tensors = fragment_path(folder, shard), tensors_path(folder, shard)
    if not path.exists():
        return None
    try:
        table = parquet.read_table(path, partitioning=None)
    except (OSError, ValueError):  # pyarrow's errors derive from these
        return None
    expected = int((table.schema.metadata or {}).get(BYTES, b"-1"))
    return table if _size(tensors) == expected else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def fragments(folder: Path) -> Iterator[Path]:
    """All parts of the index that are there, in the order of their shards."""
    yield from sorted((folder / SHARDS).glob("*.parquet"))


def merge_fragments(folder: Path, shards: dict[int, int]) -> tuple[int, int]:
    """Write the whole index, a few parts at a time."""
    arrow, parquet = require("pyarrow", "pyarrow"), require("pyarrow.parquet", "pyarrow")
    photos = failed = 0
    latest = time.monotonic() + LATE
    with (
        replacing(folder / NAME, durable=True) as temporary,
        parquet.ParquetWriter(os.fspath(temporary), schema(), compression="zstd") as writer,
    ):
        waiting: list[Any] = []
        for place, (shard, count) in enumerate(sorted(shards.items())):
            table = _arrived(folder, shard, count, latest)
            waiting.append(table.replace_schema_metadata(None))
            failed += len(table) - table.column("error").null_count
            photos += table.column("error").null_count
            if sum(map(len, waiting)) >= _TOGETHER or place == len(shards) - 1:
                writer.write_table(arrow.concat_tables(waiting))
                waiting.clear()
    return photos, failed


def _arrived(folder: Path, shard: int, count: int, latest: float) -> Any:
    """A shard's part of the index, that another machine may have written just now."""
    while (table := whole_fragment(folder, shard)) is None or len(table) != count:
        if time.monotonic() > latest:
            raise ExtractionError(
                f"the extraction is not whole: expected all shards in {folder / SHARDS}, got no shard {shard} of {count} photos. See that all "
                "machines write to the same folder, and run the same again."
            )
        time.sleep(0.1)
    return table
