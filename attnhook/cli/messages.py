"""The commands' messages on stderr."""

import sys


def one_line(error: BaseException | str) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def say(line: str) -> None:
    """Print a line on stderr. File names may hold control characters for the terminal, so those are shown as `�`."""
    print(
        "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line),
        file=sys.stderr,
        flush=True,
    )
