"""Files that hold many photos, archives and tables: a few are open at a time, in each process its own."""

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from attnhook.errors import ExtractionError
from attnhook.extraction.items import Item, readable, readable_name


class OpenFiles:
    """Keeps the most recently used files open: a data set may have more than a process may open.

    Each process opens its own, because a forked one would share the file position with its parent. Pickled without the files.
    """

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._files: OrderedDict[tuple[int, Hashable], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": OrderedDict()}

    def get(self, name: Hashable, open_file: Callable[[], Any]) -> Any:
        """Return an open file."""
        key = (os.getpid(), name)
        if key not in self._files:
            while len(self._files) >= self._limit:
                self._files.popitem(last=False)  # closed with its last reference
            self._files[key] = open_file()
        self._files.move_to_end(key)
        return self._files[key]


@dataclass
class ContainerSource(ABC):
    """Photos in archives or tables of one kind."""

    files: tuple[Path, ...]
    _open: OpenFiles = field(default_factory=OpenFiles, init=False, repr=False, compare=False)

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for path in self.files:
            if not path.is_file():
                raise ExtractionError(f"no photos: expected a file at {path}, got none. Check the path.")
        names = [path.name for path in self.files]
        if len(set(names)) < len(names):
            root = os.path.commonpath([path.parent for path in self.files])
            names = [path.relative_to(root).as_posix() for path in self.files]
        self._names = tuple(readable_name(os.fsencode(name)) for name in names)

    def description(self) -> dict[str, Any]:
        """Describe the source for the manifest."""
        return {"kind": self.kind, "files": [str(path) for path in self.files]}

    def items(self) -> Iterator[Item]:
        """List all photos."""
        for number, path in enumerate(self.files):
            try:
                yield from self._items(number, path)
            except Exception as error:  # damaged: every library has its own classes
                yield self._damaged(number, f"expected a whole {self.kind} file, got {error}.")

    @abstractmethod
    def _items(self, number: int, path: Path) -> Iterator[Item]:
        """The photos of one container."""

    def _key(self, number: int, name: str) -> str:
        return f"{self._names[number]}/{readable(name)}" if len(self.files) > 1 else readable(name)

    def _damaged(self, container: int, problem: str) -> Item:
        """An item for a container, or the rest of one, that cannot be read."""
        problem = f"{readable(problem)} Fetch it again."
        return Item(self._names[container], container=container, number=-1, problem=problem)
