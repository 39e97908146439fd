"""Writes TensorBoard event files, through `torch.utils.tensorboard`."""

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnhook.monitoring.writers import as_jpeg, import_library, safe_tag

_LOGGER = logging.getLogger("attnhook")


class TensorBoardWriter:
    """TensorBoard: scalars, images (as JPEG) and texts under their tags.

    By default TensorBoard shows only 10 images of each tag, chosen at random. Start it with
    `tensorboard --logdir runs --samples_per_plugin images=1000` to see up to 1,000. A warning says so once per process, at the first image.

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
            self._writer.add_scalar(safe_tag(tag), value, step)
        self._writer.flush()

    def image(self, tag: str, picture: Image.Image, step: int) -> None:
        """Write a picture and flush it to disk."""
        writer, rgb = self._writer, picture.convert("RGB")
        _say_how_to_see_all()
        file = getattr(writer, "file_writer", None)
        if isinstance(writer, self._library.SummaryWriter) and file is not None:
            file.add_summary(_summary(safe_tag(tag), rgb), step)
        else:  # of another library, or closed
            writer.add_image(safe_tag(tag), np.asarray(rgb), step, dataformats="HWC")
        writer.flush()

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text and flush it to disk."""
        self._writer.add_text(safe_tag(tag), text, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files that this writer opened."""
        if self._summary_writer is not None and self._is_own:
            self._summary_writer.close()
            self._summary_writer = None


def _summary(tag: str, picture: Image.Image) -> Any:
    """A picture as JPEG; `SummaryWriter.add_image` would encode it as a PNG, which is five times as large."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    size = {"height": picture.height, "width": picture.width, "colorspace": 3}
    image = Summary.Image(encoded_image_string=as_jpeg(picture), **size)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


@cache
def _say_how_to_see_all() -> None:
    _LOGGER.warning(
        "by default, TensorBoard shows only 10 images of each tag. To see every logged step, start it with --samples_per_plugin images=1000."
    )
