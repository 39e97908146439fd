"""What commands say: lines on stderr."""

import sys


def one_line(error: BaseException | str) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def say(line: str) -> None:
    """Print a line on stderr, at once. Names of files come from anywhere: what would steer the terminal is shown as `�`."""
    print(
        "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in line),
        file=sys.stderr,
        flush=True,
    )
