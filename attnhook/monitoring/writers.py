"""Where a monitor's scalars, pictures and texts go: the protocol of writers, and what happens when one fails."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image


@runtime_checkable
class Writer(Protocol):
    """Somewhere to write. Tags are paths such as `attention/overlay/0`; a tag and a step are written at most once by one monitor.

    A writer opens its files at the first call, not when it is made: of several processes only the first ever writes.
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
    """Several writers as one. One that fails is reported once and does not keep the others, or the training, from going on."""

    def __init__(self, writers: Sequence[Writer], *, strict: bool = False) -> None:
        for writer in writers:
            if not isinstance(writer, Writer):
                raise TypeError(
                    f"cannot write to a {type(writer).__name__}: expected a writer with scalars, image, text and close, such as "
                    "attnhook.DirectoryWriter or attnhook.TensorBoardWriter."
                )
        self._writers = tuple(writers)
        self._strict = strict
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self._writers)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write finite numbers by tag."""
        self._each(lambda writer: writer.scalars(values, step), step)

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Write a picture."""
        self._each(lambda writer: writer.image(tag, picture, step), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""
        self._each(lambda writer: writer.text(tag, text, step), step)

    def close(self) -> None:
        """Close all."""
        self._each(lambda writer: writer.close(), None)

    def _each(self, write: Callable[[Writer], Any], step: int | None) -> None:
        for writer in self._writers:
            try:
                write(writer)
            except Exception as error:
                if self._strict:
                    raise
                self._report(writer, error, step)

    def _report(self, writer: Writer, error: Exception, step: int | None) -> None:
        if id(writer) in self._reported:
            return
        self._reported.add(id(writer))
        when = "closing" if step is None else f"step {step}"
        warnings.warn(
            f"{type(writer).__name__} could not write at {when}: {type(error).__name__}: {error}. Training goes on, later steps are tried "
            "again, further failures of this writer are not reported. strict=True raises instead.",
            stacklevel=2,
        )
