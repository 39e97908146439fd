"""All photos of a source by shard, on disk: every process reads its own part, and none holds them all as Python objects."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from attnhook.errors import ExtractionError
from attnhook.extraction.items import Item, require
from attnhook.extraction.sources import Source
from attnhook.files import replacing

_CHUNK = 50_000
_FIELDS = ("key", "member", "container", "number", "size", "stamp", "label", "problem")


@dataclass(frozen=True, eq=False)
class Listing:
    """The photos, sorted by shard, and inside a shard by where they are.

    Attributes:
        table: An Arrow table in mapped memory: what an `Item` says, and its shard.
    """

    table: Any

    @classmethod
    def read(cls, path: Path) -> "Listing":
        """Map a listing into memory."""
        arrow = require("pyarrow", "pyarrow")
        with arrow.memory_map(os.fspath(path)) as file:
            return cls(arrow.ipc.open_file(file).read_all())

    def __len__(self) -> int:
        count: int = self.table.num_rows
        return count

    def item(self, row: int) -> Item:
        """One photo."""
        return Item(**{name: self.table.column(name)[row].as_py() for name in _FIELDS})

    def shards(self) -> dict[int, range]:
        """The rows of every shard that has any, by its number."""
        numbers = self.table.column("shard").to_numpy()
        found, first = np.unique(numbers, return_index=True)
        ends = [*first[1:].tolist(), len(numbers)]
        return {int(shard): range(int(a), b) for shard, a, b in zip(found, first, ends, strict=True)}


def write_listing(source: Source, path: Path, *, shard_size: int, shards: int | None = None) -> int:
    """List a source into a file.

    A photo's shard is the hash of its key (of its row group, in Parquet files) modulo the number of shards: the same whatever else the source
    holds, and however many processes there are.
    """
    arrow = require("pyarrow", "pyarrow")
    chunks = [_chunk(arrow, items) for items in _batched(source.items())]
    if not chunks:
        raise ExtractionError(
            f"no photos: expected some in {source.description()}, got none. Check the path and the files' suffixes."
        )
    table = arrow.concat_tables(chunks)
    count = shards or -(-table.num_rows // shard_size)
    shard = (table.column("hash").to_numpy() % np.uint64(count)).astype(np.int32)
    table = table.drop_columns(["hash"]).append_column("shard", arrow.array(shard))
    order = [("shard", "ascending"), ("container", "ascending"), ("number", "ascending"), ("key", "ascending")]
    order.append(("member", "ascending"))
    table = _unique(arrow, table.sort_by(order))
    with (
        replacing(path) as temporary,
        arrow.OSFile(os.fspath(temporary), "wb") as file,
        arrow.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table.combine_chunks())
    return count


def _batched(items: Iterator[Item]) -> Iterator[list[Item]]:
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def _chunk(arrow: Any, items: list[Item]) -> Any:
    columns = {name: [getattr(item, name) for item in items] for name in _FIELDS}
    columns["hash"] = [_hash(item.group or item.key) for item in items]
    kinds = {"member": arrow.binary(), "container": arrow.int32(), "number": arrow.int64(), "size": arrow.int64()}
    kinds |= {"stamp": arrow.int64(), "hash": arrow.uint64()}
    return arrow.table({name: arrow.array(column, kinds.get(name, arrow.string())) for name, column in columns.items()})


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _unique(arrow: Any, table: Any) -> Any:
    """Names that stand there twice get a number; `//` is in no path of a file."""
    keys = table.column("key")
    compute = require("pyarrow.compute", "pyarrow")
    if compute.count_distinct(keys).as_py() == len(keys):
        return table
    seen: Counter[str] = Counter()
    names = []
    for key in keys.to_pylist():
        seen[key] += 1
        names.append(key if seen[key] == 1 else f"{key}//{seen[key]}")
    return table.set_column(table.schema.get_field_index("key"), "key", arrow.array(names, arrow.string()))
