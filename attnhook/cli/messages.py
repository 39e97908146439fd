"""What commands say and write: lines on stderr, JSON files."""

import json
import sys
from pathlib import Path
from typing import Any

from attnhook.files import replacing


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON under a temporary name, then rename.

    Args:
        content: What to write.
        path: The file.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def one_line(error: BaseException | str) -> str:
    """An error in one line.

    Args:
        error: The error, or its message.

    Returns:
        Its message, or its type if it has none.
    """
    return " ".join(str(error).split()) or type(error).__name__


def say(line: str) -> None:
    """Print a line on stderr, at once. Names of files come from anywhere: what would steer the terminal is shown as `�`.

    Args:
        line: The line.
    """
    print(
        "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line),
        file=sys.stderr,
        flush=True,
    )
