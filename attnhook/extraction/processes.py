"""How several processes share an extraction: they agree at its start, work alone, and meet again at its end."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from attnhook.errors import ExtractionError

_LONG = timedelta(days=365)
"""Processes wait for the slowest, however long that takes."""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Team:
    """The processes of one run.

    Attributes:
        rank: Which of them this one is.
        size: How many there are.
        local_rank: Which of those of this machine.
        local_size: How many on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def first_does(self, work: Callable[[], _Result]) -> _Result:
        """Let one process do something, and tell all what came out; what it raises, all raise."""
        if self.size == 1:
            return work()
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = work()
            except Exception as error:  # told to the others, then raised again
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        result: _Result = told[0]
        return result

    def share_of(self, shards: dict[int, range]) -> dict[int, range]:
        """This process's part of the work: largest shards first, each to whoever has least."""
        loads = [0] * self.size
        own = []
        for shard in sorted(shards, key=lambda number: (-len(shards[number]), number)):
            rank = loads.index(min(loads))
            loads[rank] += len(shards[shard])
            own += [shard] if rank == self.rank else []
        return {shard: shards[shard] for shard in sorted(own)}


@contextmanager
def team() -> Iterator[Team]:
    """Join the processes that `torchrun` started, if it did."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    joined = dist.is_available() and dist.is_initialized()
    if not joined and (size == 1 or "RANK" not in os.environ):
        yield Team()
        return
    if not joined:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_LONG)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    finally:
        if not joined:
            dist.destroy_process_group()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; the lock goes with the process, however that ends."""
    with _lock(folder, ".lock", alone=True):
        with _lock(folder, ".writing", alone=True):
            pass
        yield


def writing(folder: Path) -> AbstractContextManager[None]:
    """Say that this process writes to a folder, beside the others of its run."""
    return _lock(folder, ".writing", alone=False)


@contextmanager
def _lock(folder: Path, name: str, *, alone: bool) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    with (folder / name).open("a+", encoding="utf-8") as file:
        try:
            # Not flock: worker processes would keep that one.
            fcntl.lockf(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise ExtractionError(
                    f"cannot lock {folder}: expected a file system with locks, got {error.strerror}. Write to another one."
                ) from error
            raise ExtractionError(
                f"cannot write to {folder}: expected no other run there, got one ({error.strerror}). Wait for it, or write to another folder."
            ) from error
        yield
