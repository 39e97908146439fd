"""The index: which photo is where. One Parquet file per shard while a run goes on, one for all at its end."""

import os
import time
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
TIMEOUT = 180.0
"""Seconds to wait for another machine's shard: network file systems can show new files more than a minute late."""
_ROWS_PER_WRITE = 16_384


def schema() -> Any:
    """The columns of an index."""
    arrow = require("pyarrow")
    return arrow.schema(
        [
            ("key", arrow.string()),  # the photo's name in the source
            ("shard", arrow.int32()),
            ("group", arrow.int32()),  # which tensors of the shard; -1 for a photo that failed
            ("offset", arrow.int64()),  # the photo's entry in these tensors
            ("mark", arrow.int64()),  # identifies this writing of the shard, also in the header of its tensors
            ("grid", arrow.list_(arrow.int32())),  # rows and columns of patches, or null
            ("geometry", arrow.list_(arrow.float64())),  # as geometry_to_numbers returns it
            ("digest", arrow.string()),  # SHA-256 of the photo's file
            ("label", arrow.string()),
            ("target", arrow.int64()),  # the class of class-specific methods
            ("error", arrow.string()),  # why the photo failed
            ("member", arrow.binary()),  # from here on: how the source finds the photo again
            ("container", arrow.int32()),
            ("number", arrow.int64()),
            ("size", arrow.int64()),
            ("stamp", arrow.int64()),
        ]
    )


def geometry_to_numbers(geometry: ImageGeometry) -> list[float]:
    """A geometry as twelve numbers: the sizes of image and input, scale, offset, and the valid box."""
    parts = (geometry.image_size, geometry.input_size, geometry.scale, geometry.offset, geometry.valid)
    return [float(number) for part in parts for number in part]


def geometry_from_numbers(numbers: list[float]) -> ImageGeometry:
    """Undo `geometry_to_numbers`."""
    a, b, c, d, e, f, g, h, *valid = numbers
    return ImageGeometry((int(a), int(b)), (int(c), int(d)), (e, f), (g, h), (valid[0], valid[1], valid[2], valid[3]))


def fragment_path(folder: Path, shard: int) -> Path:
    """The file of a shard's part of the index."""
    return folder / SHARDS / f"{shard:06d}.parquet"


def tensors_path(folder: Path, shard: int) -> Path:
    """The file of a shard's tensors."""
    return folder / SHARDS / f"{shard:06d}.safetensors"


def fragments(folder: Path) -> list[Path]:
    """All parts of the index that are there, in the order of their shards."""
    return sorted((folder / SHARDS).glob("*.parquet"))


def write_fragment(folder: Path, shard: int, rows: list[dict[str, Any]]) -> None:
    """Write a shard's part of the index. It is the last file of a shard, so a shard that has one is whole."""
    size = _size(tensors_path(folder, shard))
    table = require("pyarrow").Table.from_pylist(rows, schema=schema().with_metadata({BYTES: str(size).encode()}))
    with replacing(fragment_path(folder, shard), durable=True) as temporary:
        require("pyarrow.parquet").write_table(table, temporary, compression="zstd")


def whole_fragment(folder: Path, shard: int) -> Any:
    """A shard's part of the index, or None if the shard is not whole."""
    path = fragment_path(folder, shard)
    if not path.exists():
        return None
    try:
        table = require("pyarrow.parquet").read_table(path, partitioning=None)
    except (OSError, ValueError):  # pyarrow's errors derive from these
        return None
    expected = int((table.schema.metadata or {}).get(BYTES, b"-1"))
    return table if _size(tensors_path(folder, shard)) == expected else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def merge_fragments(folder: Path, shards: dict[int, int]) -> tuple[int, int]:
    """Write the whole index, a few parts at a time, and return how many photos were extracted and how many failed."""
    photos = failed = 0
    deadline = time.monotonic() + TIMEOUT
    with (
        replacing(folder / NAME, durable=True) as temporary,
        require("pyarrow.parquet").ParquetWriter(os.fspath(temporary), schema(), compression="zstd") as writer,
    ):
        waiting: list[Any] = []
        for place, (shard, count) in enumerate(sorted(shards.items())):
            table = _wait_for_fragment(folder, shard, count, deadline)
            waiting.append(table.replace_schema_metadata(None))
            failed += len(table) - table.column("error").null_count
            photos += table.column("error").null_count
            if sum(map(len, waiting)) >= _ROWS_PER_WRITE or place == len(shards) - 1:
                writer.write_table(require("pyarrow").concat_tables(waiting))
                waiting.clear()
    return photos, failed


def _wait_for_fragment(folder: Path, shard: int, count: int, deadline: float) -> Any:
    while (table := whole_fragment(folder, shard)) is None or len(table) != count:
        if time.monotonic() > deadline:
            raise ExtractionError(
                f"the extraction is incomplete: expected all shards in {folder / SHARDS}, got no shard {shard} of {count} photos. Check that "
                "all "
                "machines write to the same folder, and run the same command again."
            )
        time.sleep(0.1)
    return table
