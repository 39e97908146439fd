"""Where a monitor's scalars, pictures and texts go: the protocol of writers, and what happens when one fails."""

import hashlib
import importlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from attnhook.errors import MissingPackageError
from attnhook.imaging.encoded_pictures import encoded

JPEG_QUALITY = 85
_SAFE = re.compile(r"[\w-]([\w.-]*[\w-])?")


@runtime_checkable
class Writer(Protocol):
    """Somewhere to write. Tags are paths such as `attention/overlay/0`; a monitor writes a tag at most once per step.

    Tags hold names of modules, which may have any character but a dot, and the names in `also`: `safe_tag` makes file names of them.

    A writer opens its files at the first call, not when it is created: of several processes only the first one ever writes.
    """

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write finite numbers by tag."""

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Write an RGB picture."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""

    def close(self) -> None:
        """Finish; nothing is written after."""


class WriterGroup:
    """Several writers. One that fails is reported once, and stops neither the others nor the training."""

    def __init__(self, writers: Sequence[Writer], *, strict: bool = False) -> None:
        for writer in writers:
            if not isinstance(writer, Writer):
                raise TypeError(
                    f"cannot write to an object of type {type(writer).__name__}: expected a writer with scalars, image, text and close, such as "
                    "attnhook.DirectoryWriter or attnhook.TensorBoardWriter."
                )
        self._writers, self._strict = tuple(writers), strict
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self._writers)

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of every writer; the last argument is the step."""
        when = f"step {arguments[-1]}" if arguments else "closing"
        for writer in self._writers:
            try:
                getattr(writer, method)(*arguments)
            except Exception as error:
                if self._strict:
                    raise
                if id(writer) in self._reported:
                    continue
                self._reported.add(id(writer))
                warnings.warn(
                    f"{type(writer).__name__} could not write at {when}: {type(error).__name__}: {error}. Training goes on, later steps are "
                    "tried again, further failures of this writer are not reported. strict=True raises instead.",
                    stacklevel=2,
                )


def safe_tag(tag: str) -> str:
    """A tag that every tracker and file system accepts, and that stays below its folder.

    A part with other characters than letters, digits, `_`, `-` and dots inside gets `_` in their place, and a hash that tells it from others.
    """
    return "/".join(
        part if _SAFE.fullmatch(part) and len(part.encode()) <= 150 else _spelt(part) for part in tag.split("/")
    )


def _spelt(part: str) -> str:
    known_by = hashlib.sha256(part.encode(errors="backslashreplace")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9-]', '_', part)[:80]}-{known_by}"


def as_jpeg(picture: Image.Image) -> bytes:
    """The content of a JPEG file: a fifth of a PNG's bytes."""
    return encoded(picture.convert("RGB"), "JPEG", quality=JPEG_QUALITY)


def import_library(module: str, *, needed_by: str, extra: str) -> Any:
    """Import what a writer needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f'{needed_by} needs the package {extra}, got {error}. Run `pip install ".[{extra}]"` in a clone.'
        ) from None
