"""Writes into a plain directory: `scalars.jsonl`, `texts.jsonl`, and pictures as JPEG. Needs no library and no viewer."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from attnhook.files import replacing
from attnhook.monitoring.writers import as_jpeg, safe_tag


class DirectoryWriter:
    r"""A directory with one line of JSON per step, and one picture per tag and step: `attention/overlay/0/step-00000100.jpg`.

    Lines are on disk before `scalars` returns; a line that could not be written whole is removed. Pictures appear whole or not at all. A
    resumed run appends; where it repeats a step, the later line is valid. Lines hold tags as they are, folders their `safe_tag`.

    Args:
        directory: Where; created when something is written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = DirectoryWriter(folder)
        ...     writer.scalars({"attention/alarms/dead_heads": 0.0}, 100)
        ...     (Path(folder) / "scalars.jsonl").read_text()
        '{"step": 100, "attention/alarms/dead_heads": 0.0}\\n'
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Append a line to `scalars.jsonl`."""
        self._append("scalars.jsonl", {"step": step, **values})

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Write a JPEG."""
        path = self.directory / safe_tag(tag) / f"step-{step:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(as_jpeg(picture))

    def text(self, tag: str, text: str, step: int) -> None:
        """Append a line to `texts.jsonl`."""
        self._append("texts.jsonl", {"step": step, "tag": tag, "text": text})

    def close(self) -> None:
        """Nothing is open between calls."""

    def to_html(self, path: str | Path | None = None, *, steps: int = 100) -> str:
        """Make one self-contained page of what is in the directory: a slider over the steps, pictures, and curves of the main numbers.

        It works on a directory that another process wrote, or is still writing. The pictures are in the page, a third larger than as files.

        Args:
            path: Where to write it; None only returns it.
            steps: Show the pictures of at most this many steps, evenly spread over the run.

        Returns:
            The HTML.

        Raises:
            FileNotFoundError: If there is no log in the directory.
            ValueError: If `steps` is below 2.
        """
        from attnhook.monitoring.log_folders import page_of
        from attnhook.pages.documents import save_viewer

        page = page_of(self.directory, most=steps)
        if path is not None:
            save_viewer(page, path)
        return page

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(entry) + "\n").encode()
        with _opened(self.directory / name) as file:
            start = file.seek(0, os.SEEK_END)
            if start and not _ends_line(file, start):
                line = b"\n" + line
            try:
                _write_whole(file, line)
            except OSError:
                file.truncate(start)
                raise


def _opened(path: Path) -> Any:
    """Open a file to append to it: itself, not what a link at its name leads to."""
    if path.is_symlink():
        raise OSError(
            f"cannot append to {path}: expected a file, got a link, which in a shared folder may lead anywhere. Remove it, or link the folder."
        )
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "a+b", buffering=0)


def _ends_line(file: Any, end: int) -> bool:
    """Whether a file ends with its last line; one that a killed process left may not."""
    file.seek(end - 1)
    return bool(file.read(1) == b"\n")


def _write_whole(file: Any, line: bytes) -> None:
    written = file.write(line)
    if written != len(line):
        raise OSError(f"a line was not written whole: expected {len(line)} bytes, got {written}. Is the disk full?")
    os.fsync(file.fileno())
