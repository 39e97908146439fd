"""All photos of a source by shard, on disk: every process reads its own part, and none holds them all as Python objects."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from attnhook.errors import ExtractionError
from attnhook.extraction.items import Item, require
from attnhook.extraction.sources import Source
from attnhook.files import readable, replacing

_CHUNK = 50_000
_FIELDS = ("key", "member", "container", "number", "size", "stamp", "label", "problem")


@dataclass(frozen=True, eq=False)
class Listing:
    """The photos, sorted by shard, and within a shard by where they are. Pickled as its path: every process maps the file itself."""

    path: Path

    @cached_property
    def table(self) -> Any:
        """An Arrow table in mapped memory: the fields of an `Item`, and its shard."""
        arrow = require("pyarrow")
        with arrow.memory_map(os.fspath(self.path)) as file:
            return arrow.ipc.open_file(file).read_all()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def item(self, row: int) -> Item:
        """One photo."""
        return Item(**{name: self.table.column(name)[row].as_py() for name in _FIELDS})

    def shards(self) -> dict[int, range]:
        """The rows of every shard that is not empty, by its number."""
        numbers = self.table.column("shard").to_numpy()
        shards, starts = np.unique(numbers, return_index=True)
        ends = [*starts[1:], len(numbers)]
        return {int(shard): range(int(a), int(b)) for shard, a, b in zip(shards, starts, ends, strict=True)}


def write_listing(source: Source, path: Path, *, shard_size: int, shards: int | None = None) -> int:
    """List a source into a file, and return the number of shards.

    A photo's shard depends on its key alone (in Parquet files, on its row group): the hash modulo the number of shards.
    """
    arrow = require("pyarrow")
    chunks = [_chunk(arrow, items) for items in _batched(source.items())]
    if not chunks:
        raise no_photos(source)
    table = arrow.concat_tables(chunks)
    count = shards or -(-table.num_rows // shard_size)
    shard = (table.column("hash").to_numpy() % np.uint64(count)).astype(np.int32)
    table = table.drop_columns(["hash"]).append_column("shard", arrow.array(shard))
    order = ("shard", "container", "number", "key", "member")
    table = _with_unique_keys(arrow, table.sort_by([(name, "ascending") for name in order]))
    with (
        replacing(path) as temporary,
        arrow.OSFile(os.fspath(temporary), "wb") as file,
        arrow.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table.combine_chunks())
    return count


def no_photos(source: Source) -> ExtractionError:
    """The error for a source without photos."""
    found = source.description()
    places = [Path(found["root"], found.get("pattern", ""))] if "root" in found else found.get("files", [])
    where = ", ".join(readable(str(place)) for place in places)
    return ExtractionError(
        f"no photos: expected some in the {found.get('kind', 'source')} {where}, got none. Check the path and the files' suffixes."
    )


def _batched(items: Iterator[Item]) -> Iterator[list[Item]]:  # itertools.batched is of Python 3.12
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def _chunk(arrow: Any, items: list[Item]) -> Any:
    columns = {name: [getattr(item, name) for item in items] for name in _FIELDS}
    columns["hash"] = [_hash(item.group or item.key) for item in items]
    types = dict.fromkeys(columns, arrow.string()) | dict.fromkeys(("number", "size", "stamp"), arrow.int64())
    types |= {"member": arrow.binary(), "container": arrow.int32(), "hash": arrow.uint64()}
    return arrow.table({name: arrow.array(column, types[name]) for name, column in columns.items()})


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _with_unique_keys(arrow: Any, table: Any) -> Any:
    """Number keys that occur more than once, after `//`, which no file's path contains."""
    keys = table.column("key")
    if require("pyarrow.compute").count_distinct(keys).as_py() == len(keys):
        return table
    counts: Counter[str] = Counter()
    names = []
    for key in keys.to_pylist():
        counts[key] += 1
        names.append(key if counts[key] == 1 else f"{key}//{counts[key]}")
    return table.set_column(table.schema.get_field_index("key"), "key", arrow.array(names, arrow.string()))
