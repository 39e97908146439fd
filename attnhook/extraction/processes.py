"""How several processes share an extraction: they agree at its start, work alone, and meet again at its end."""

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from attnhook.errors import ExtractionError

_BUSY: set[str] = set()  # folders that threads of this process write to: locks of files are between processes
_BUSY_LOCK = threading.Lock()
_TIMEOUT = timedelta(days=365)  # processes wait for the slowest one, however long it takes
_JOINED = itertools.count()
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one run, and which of them this one is; `local` ones are those of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def on_first(self, work: Callable[[], _Result]) -> _Result:
        """Let the first process do something, and return its result in all; an error is raised in all."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:  # sent to the others, then raised
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: _Result = outcome[0]
        return result

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def share_of(self, shards: dict[int, range]) -> dict[int, range]:
        """This process's shards: dealt in turns, the largest first, so that shares differ by at most one shard."""
        by_size = sorted(shards, key=lambda number: (-len(shards[number]), number))
        return {shard: shards[shard] for shard in sorted(by_size[self.rank :: self.size])}


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the processes that `torchrun` started, if it did."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    joined = dist.is_available() and dist.is_initialized()
    if not joined and (size == 1 or "RANK" not in os.environ):
        yield ProcessGroup()
        return
    if not joined:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        store, rank, size = next(rendezvous("env://"))
        # Under a prefix of its own: torchrun's store still has the addresses of the group of an earlier extraction.
        own = PrefixStore(f"attnhook extraction {next(_JOINED)}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=_TIMEOUT)
    local_rank, local_size = (
        int(os.environ.get(name, n)) for name, n in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1"))
    )
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), local_rank, local_size)
    finally:
        if not joined:
            dist.destroy_process_group()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder. The lock is released with the process, however it ends."""
    own = os.path.realpath(folder)
    with _BUSY_LOCK:
        if own in _BUSY:
            raise ExtractionError(
                f"cannot write to {folder}: expected no other run there, got one in this process. Wait for it, or choose another folder."
            )
        _BUSY.add(own)
    try:
        with _lock(folder, ".lock", exclusive=True):
            with _lock(folder, ".writing", exclusive=True):
                pass
            yield
    finally:
        _BUSY.discard(own)


def writing(folder: Path) -> AbstractContextManager[None]:
    """Mark that this process, like the others of its run, writes to a folder."""
    return _lock(folder, ".writing", exclusive=False)


@contextmanager
def _lock(folder: Path, name: str, *, exclusive: bool) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    with (folder / name).open("a+", encoding="utf-8") as file:
        try:
            # Not flock: worker processes would inherit that lock.
            fcntl.lockf(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                raise ExtractionError(
                    f"cannot write to {folder}: expected no other run there, got one ({error.strerror}). Wait for it, or choose another folder."
                ) from error
            raise ExtractionError(
                f"cannot lock {folder}: expected a file system with locks, got {error.strerror}. Write to another one."
            ) from error
        yield
