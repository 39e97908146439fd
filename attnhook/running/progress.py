"""A bar that shows how far a long run is and how long it will still take."""

import os
import shutil
import sys
from typing import Any


def progress_bar(total: int, *, shown: bool | None) -> Any:
    """A tqdm bar on stderr, counted in photos; None shows it on terminals only."""
    from tqdm import tqdm

    size: dict[str, Any] = {"dynamic_ncols": True}
    try:
        has_size = 0 not in os.get_terminal_size(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # no terminal
        has_size = True
    if not has_size:  # as in `script` and some CI: tqdm would find no room for a bar
        columns, lines = shutil.get_terminal_size()
        size = {"ncols": columns - 1, "nrows": lines}
    return tqdm(total=total, unit="photo", disable=None if shown is None else not shown, **size)
