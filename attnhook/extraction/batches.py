"""Photos on their way to the model: read, hashed, decoded and preprocessed in worker processes, a batch at a time."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attnhook.errors import AttnhookError, ExtractionError
from attnhook.extraction.items import Item, readable
from attnhook.extraction.listings import Listing
from attnhook.extraction.sources import Source
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.images import read_image
from attnhook.imaging.model_inputs import ModelInputs, batch_key, batched, each_tensor
from attnhook.imaging.prepared import prepare

_STUCK = 1800
"""Seconds after which a batch will not come any more: a worker that finds no shared memory says nothing, and would be waited for for ever."""


@dataclass(slots=True)
class ReadPhoto:
    """A photo after reading.

    Attributes:
        row: Its row in the listing.
        digest: SHA-256 of its file's bytes; empty if it could not be read.
        geometry: Where the model looks in it, or None.
        problem: Why there are no pixels of it, or None.
    """

    row: int
    digest: str = ""
    geometry: ImageGeometry | None = None
    problem: str | None = None


@dataclass(slots=True)
class Batch:
    """Some photos of one shard.

    Attributes:
        shard: The shard.
        photos: The photos, in the shard's order.
        groups: What the model is fed for those that could be read, by size, each with the places of its photos in `photos`.
    """

    shard: int
    photos: list[ReadPhoto]
    groups: list[tuple[list[int], ModelInputs]] = field(default_factory=list)

    def pin_memory(self) -> "Batch":
        """What `DataLoader` calls so that a GPU can fetch the pixels while it computes."""
        self.groups = [(places, each_tensor(inputs, Tensor.pin_memory)) for places, inputs in self.groups]
        return self


@dataclass
class PhotoBatches(Dataset[Batch]):
    """Batches by the rows of a listing; what a worker process needs, and no model.

    Attributes:
        source: The photos.
        path: The listing's file; every process maps it itself.
        preprocess: What turns a photo into what the model is fed.
    """

    source: Source
    path: Path
    preprocess: Any
    _listing: Listing | None = field(default=None, init=False, repr=False)
    _process: int = field(default=0, init=False, repr=False)

    def __getitem__(self, chosen: tuple[int, Sequence[int]]) -> Batch:
        """Read photos."""
        if self._listing is None or self._process != os.getpid():
            self._listing, self._process = Listing.read(self.path), os.getpid()
        shard, rows = chosen
        read = [self._read(self._listing.item(row), row) for row in rows]
        by_size: dict[tuple[Any, ...], dict[int, ModelInputs]] = {}
        for place, (_, inputs) in enumerate(read):
            if inputs is not None:
                by_size.setdefault(batch_key(inputs), {})[place] = inputs
        groups = [(list(places), batched(list(places.values()))) for places in by_size.values()]
        return Batch(shard, [photo for photo, _ in read], groups)

    def _read(self, item: Item, row: int) -> tuple[ReadPhoto, ModelInputs | None]:
        photo = ReadPhoto(row)
        if item.problem is not None:
            photo.problem = f"cannot read {item.key}: {item.problem}"
            return photo, None
        try:
            content = self.source.read(item)
            photo.digest = hashlib.sha256(content).hexdigest()
            prepared = prepare(self.preprocess, read_image(content))
        except Exception as error:  # one photo must not end a run of millions
            photo.problem = _reason(error)
            return photo, None
        photo.geometry = prepared.geometry
        return photo, prepared.inputs


def _reason(error: Exception) -> str:
    said = readable(" ".join(str(error).split()))
    return said if isinstance(error, AttnhookError) and said else f"{type(error).__name__}: {said}"


def batches_of(shards: dict[int, range], batch_size: int) -> Iterator[tuple[int, range]]:
    """The rows of every batch. No batch spans two shards, so that a photo's batch depends on its shard alone."""
    for shard, rows in shards.items():
        for first in range(rows.start, rows.stop, batch_size):
            yield shard, range(first, min(first + batch_size, rows.stop))


def load_batches(
    batches: PhotoBatches, shards: dict[int, range], *, batch_size: int, num_workers: int, pinned: bool
) -> "DataLoader[Batch]":
    """Read batches ahead in worker processes."""
    order = list(batches_of(shards, batch_size))
    return DataLoader(
        batches,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        pin_memory=pinned,
        collate_fn=_as_is,
        timeout=_STUCK if num_workers else 0,
        generator=torch.Generator(),  # its own: else a number is drawn from everyone's
    )


_WORKER_DIED = ("DataLoader ", "received 0 items of ancillary data")  # how torch and multiprocessing begin to say it


@contextmanager
def living_workers() -> Iterator[None]:
    """Say what to do where a worker process dies: torch raises that in whatever line the main thread is at."""
    try:
        try:
            yield
        except (ConnectionError, EOFError) as error:  # torch's own word may still come, in any of these lines
            raise _dead(error) from error
    except RuntimeError as error:
        if not str(error).startswith(_WORKER_DIED):
            raise
        raise _dead(error) from error


def _dead(error: Exception) -> ExtractionError:
    said = str(error) or "a message that was cut off"
    return ExtractionError(
        f"photos can be read no further: expected worker processes that live, got {said}. If memory is short, take fewer workers or a "
        "smaller batch; then run the same again."
    )


def _as_is(batch: Any) -> Any:
    return batch
