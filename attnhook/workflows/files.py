"""Files that are whole or not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, mark: str = "") -> Iterator[Path]:
    """Write to a temporary name, which takes the file's place once all is written.

    Args:
        path: The file's path.
        mark: Part of the temporary name, where several processes may write the same file.

    Yields:
        The path to write to, in the same folder; removed if writing fails.

    Example:
        >>> with replacing(Path("numbers.txt")) as temporary:  # doctest: +SKIP
        ...     temporary.write_text("1 2 3")
    """
    temporary = path.with_name(f"{path.name}{mark}.partial")
    temporary.unlink(missing_ok=True)  # a link that somebody left there would be followed
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
