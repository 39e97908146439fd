"""Writing beside the model: a thread that encodes what was seen and writes each shard once its last photo is in."""

import threading
from pathlib import Path
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Self

import torch

from attnhook.extraction.batch_results import Seen
from attnhook.extraction.batches import Batch
from attnhook.extraction.listings import Listing
from attnhook.extraction.settings import Settings
from attnhook.extraction.shards import ShardWriter
from attnhook.imaging.model_inputs import ModelInputs

_AHEAD = 4
"""Batches that may wait to be written; more would fill the memory where the disk is slower than the model."""


class WritingThread:
    """Writes what it is given, in order; its error is raised where the next batch is given, or at the end."""

    def __init__(self, folder: Path, listing: Listing, settings: Settings, shards: dict[int, range]) -> None:
        self._folder, self._listing, self._settings, self._shards = folder, listing, settings, shards
        self._waiting: Queue[tuple[Batch, list[Seen]] | None] = Queue(_AHEAD)
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="attnhook extraction", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandoned = error is not None
        if self._abandoned:
            self._drop_waiting()
        self._put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def give(self, batch: Batch, seen: list[Seen]) -> None:
        """Hand a batch over; waits while too many are waiting."""
        nothing = ModelInputs(torch.empty(0))
        groups = [(places, nothing) for places, _ in batch.groups]  # the pixels' memory is free now
        self._put((Batch(batch.shard, batch.photos, groups), seen))
        self._raise()

    def _put(self, what: tuple[Batch, list[Seen]] | None) -> None:
        while self._thread.is_alive():
            try:
                self._waiting.put(what, timeout=1.0)
            except Full:
                continue
            return

    def _drop_waiting(self) -> None:
        while True:
            try:
                self._waiting.get_nowait()
            except Empty:
                return

    def _raise(self) -> None:
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # no name for it here: the error holds this frame

    def _run(self) -> None:
        try:
            with torch.no_grad():
                self._write_all()
        except BaseException as error:  # raised again where the batches come from
            self._error = error

    def _write_all(self) -> None:
        shard: ShardWriter | None = None
        while (given := self._waiting.get()) is not None and not self._abandoned:
            batch, seen = given
            if shard is None or shard.shard != batch.shard:
                shard = ShardWriter(self._folder, batch.shard, self._listing, self._settings)
            shard.add(batch, seen)
            if len(shard) == len(self._shards[batch.shard]):
                shard.write()
                shard = None
