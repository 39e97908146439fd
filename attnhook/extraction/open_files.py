"""Archives and tables that are kept open: a few at a time, and each process its own."""

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnhook.extraction.items import readable_name

_AT_ONCE = 32
"""A data set may have more files than a process may hold open."""


class OpenFiles:
    """The files of a source that were read last, open.

    A forked process opens its own: where a file is at would be one for both. Pickled without its files.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": OrderedDict(), "_process": 0}

    def get(self, number: int, opener: Callable[[], Any]) -> Any:
        """One of the files."""
        if self._process != os.getpid():
            self._open, self._process = OrderedDict(), os.getpid()
        if number not in self._open:
            while len(self._open) >= _AT_ONCE:
                self._open.popitem(last=False)[1].close()
            self._open[number] = opener()
        self._open.move_to_end(number)
        return self._open[number]


def names_of(files: Sequence[Path]) -> tuple[str, ...]:
    """What photos of several files are called by."""
    names = [path.name for path in files]
    if len(set(names)) < len(names):
        above = os.path.commonpath([path.parent for path in files])
        names = [Path(os.path.relpath(path, above)).as_posix() for path in files]
    return tuple(readable_name(os.fsencode(name)) for name in names)
