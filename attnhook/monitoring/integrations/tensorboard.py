"""Writes TensorBoard event files, through `torch.utils.tensorboard`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnhook.monitoring.writers import Writer, import_library


class TensorBoardWriter:
    """TensorBoard: scalars, images and texts under their tags.

    Args:
        log_dir: Where event files go, or your own `SummaryWriter`, which `close` leaves open.

    Raises:
        MissingPackageError: If TensorBoard is not installed.
    """

    def __init__(self, log_dir: Any) -> None:
        self._library = import_library("torch.utils.tensorboard", needed_by="TensorBoardWriter", extra="tensorboard")
        self._log_dir, self._is_own = log_dir, isinstance(log_dir, str | Path)
        self._summary_writer: Any = None if self._is_own else log_dir

    @property
    def _writer(self) -> Any:
        if self._summary_writer is None:
            self._summary_writer = self._library.SummaryWriter(str(self._log_dir))
        return self._summary_writer

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers and flush them to disk."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Write a picture and flush it to disk."""
        self._writer.add_image(tag, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text and flush it to disk."""
        self._writer.add_text(tag, text, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files that this writer opened."""
        if self._summary_writer is not None and self._is_own:
            self._summary_writer.close()
            self._summary_writer = None


def as_writers(writers: Any) -> list[Any]:
    """One writer or several, where a `SummaryWriter` counts as one; refuses None, which would log nothing."""
    if writers is None:
        raise ValueError(
            "the monitor would log nothing: expected writers, got none. Pass writers=TensorBoardWriter('runs/1') or DirectoryWriter('log'), or "
            "writers=() if the values that step returns are enough."
        )
    several = writers if isinstance(writers, Sequence) else [writers]
    return [
        TensorBoardWriter(one) if hasattr(one, "add_scalar") and not isinstance(one, Writer) else one for one in several
    ]
