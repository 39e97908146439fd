"""A bar that says how far a long run is and how long it will still take."""

import os
import shutil
import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """A bar on stderr, counted in photos."""

    def __init__(self, total: int, *, shown: bool | None) -> None:
        self._total, self._disable = total, None if shown is None else not shown
        self._bar: Any = None

    def __enter__(self) -> Self:
        from tqdm import tqdm

        self._bar = tqdm(total=self._total, unit="photo", disable=self._disable, **_width())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def begin(self, name: str) -> None:
        """Say what is being done."""
        self._bar.set_description(name)

    def advance(self, count: int = 1) -> None:
        """More are done."""
        self._bar.update(count)

    def reach(self, count: int) -> None:
        """So many are done, or never will be."""
        self._bar.update(count - self._bar.n)


def _width() -> dict[str, Any]:
    """As wide as the terminal, followed while it changes; fixed where it has no size (`script`, some CI), which would leave no room."""
    try:
        sized = 0 not in os.get_terminal_size(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # no terminal: tqdm's own default
        sized = True
    if sized:
        return {"dynamic_ncols": True}
    columns, lines = shutil.get_terminal_size()
    return {"ncols": columns - 1, "nrows": lines}
