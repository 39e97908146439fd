"""Photos on their way to the model: read, hashed, decoded and preprocessed in worker processes, a batch at a time."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attnhook.errors import AttnhookError, ExtractionError
from attnhook.extraction.indices import geometry_to_numbers
from attnhook.extraction.items import Item
from attnhook.extraction.listings import Listing
from attnhook.extraction.sources import Source
from attnhook.files import readable
from attnhook.imaging.images import read_image
from attnhook.imaging.model_inputs import ModelInputs, batch_key, batched, each_tensor
from attnhook.imaging.prepared import prepare

_TIMEOUT = 1800  # seconds to wait for a batch: a worker that runs out of shared memory hangs without a word
# How the messages of torch and multiprocessing begin.
_WORKER_DIED = ("DataLoader ", "received 0 items of ancillary data")


@dataclass(slots=True)
class Batch:
    """Some photos of one shard, in its order."""

    shard: int
    photos: list[dict[str, Any]]  # their rows of the index, as far as they are known
    # The model's inputs of those that could be read, a group per size, each with their positions in `photos`.
    groups: list[tuple[list[int], ModelInputs]] = field(default_factory=list)

    def pin_memory(self) -> "Batch":
        """Called by `DataLoader`, so that a GPU can fetch the pixels while it computes."""
        self.groups = [(places, each_tensor(inputs, Tensor.pin_memory)) for places, inputs in self.groups]
        return self


@dataclass
class PhotoBatches(Dataset[Batch]):
    """Batches by the rows of a listing: all that a worker process needs, which does not include the model."""

    source: Source
    listing: Listing
    preprocess: Any  # turns a photo into the model's input

    def __getitem__(self, shard_and_rows: tuple[int, Sequence[int]]) -> Batch:
        """Read photos."""
        shard, rows = shard_and_rows
        photos = []
        by_size: dict[tuple[Any, ...], dict[int, ModelInputs]] = {}
        for place, row in enumerate(rows):
            item = self.listing.item(row)
            photos.append(asdict(item) | {"shard": shard, "group": -1, "offset": -1, "digest": None, "error": None})
            inputs = self._read(item, photos[-1])
            if inputs is not None:
                by_size.setdefault(batch_key(inputs), {})[place] = inputs
        groups = [(list(places), batched(list(places.values()))) for places in by_size.values()]
        return Batch(shard, photos, groups)

    def _read(self, item: Item, photo: dict[str, Any]) -> ModelInputs | None:
        if item.problem is not None:
            photo["error"] = f"cannot read {item.key}: {item.problem}"
            return None
        try:
            content = self.source.read(item)
            photo["digest"] = hashlib.sha256(content).hexdigest()
            prepared = prepare(self.preprocess, read_image(content))
        except Exception as error:  # one photo must not end a run of millions
            message = readable(" ".join(str(error).split()))
            is_own = isinstance(error, AttnhookError) and message
            photo["error"] = message if is_own else f"{type(error).__name__}: {message}"
            return None
        photo["geometry"] = geometry_to_numbers(prepared.geometry)
        return prepared.inputs


def load_batches(
    batches: PhotoBatches, shards: dict[int, range], *, batch_size: int, num_workers: int, pinned: bool
) -> "DataLoader[Batch]":
    """Read batches ahead in worker processes. No batch spans two shards, so that a photo's batch depends on its shard alone."""
    starts = [(shard, first) for shard, rows in shards.items() for first in range(0, len(rows), batch_size)]
    order = [(shard, shards[shard][first : first + batch_size]) for shard, first in starts]
    return DataLoader(
        batches,
        batch_size=None,
        sampler=order,
        num_workers=num_workers,
        pin_memory=pinned,
        collate_fn=_identity,
        timeout=_TIMEOUT if num_workers else 0,
        generator=torch.Generator(),  # otherwise torch draws a number from the global one
    )


def _identity(batch: Any) -> Any:
    return batch


@contextmanager
def explained_worker_deaths() -> Iterator[None]:
    """Say what to do where a worker process dies: torch raises that in whatever line the main thread is at."""
    try:
        try:
            yield
        except (ConnectionError, EOFError) as error:  # torch's own error may still come, in any of these lines
            raise _worker_died(error) from error
    except RuntimeError as error:
        if not str(error).startswith(_WORKER_DIED):
            raise
        raise _worker_died(error) from error


def _worker_died(error: Exception) -> ExtractionError:
    got = str(error) or "a message that was cut off"
    return ExtractionError(
        f"cannot read more photos: expected worker processes that stay alive, got {got}. If memory is short, take fewer workers or a smaller "
        "batch; then run extract again."
    )
