"""Writes TensorBoard event files, through the writer that PyTorch brings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnhook.errors import MissingPackageError


class TensorBoardWriter:
    """TensorBoard: scalars, images and texts under their tags.

    Args:
        log_dir: Where event files go, or a `SummaryWriter` of your own, which stays open on `close`.

    Raises:
        MissingPackageError: If TensorBoard is not installed.
    """

    def __init__(self, log_dir: Any) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                f"TensorBoardWriter needs TensorBoard: expected the package tensorboard, got {error}. "
                "Install it: pip install 'attnhook[tensorboard]'."
            ) from None
        self._make = SummaryWriter
        self._given = not isinstance(log_dir, str | Path)
        self._log_dir = log_dir
        self._open: Any = log_dir if self._given else None

    @property
    def _writer(self) -> Any:
        if self._open is None:
            self._open = self._make(str(self._log_dir))
        return self._open

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
        if self._open is not None and not self._given:
            self._open.close()
            self._open = None
