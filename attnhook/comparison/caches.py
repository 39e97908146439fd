"""Measurements on disk by what they are of, so that a second run is quick and an interrupted one goes on where it stopped."""

from dataclasses import dataclass
from pathlib import Path

import torch

from attnhook import __version__
from attnhook.comparison.map_kinds import View
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.photographs import Photo
from attnhook.running.fingerprints import Fingerprint, digest
from attnhook.running.versions import library_versions

FORMAT = 5
"""Raised whenever a measurement of the same content may come out differently."""


@dataclass(frozen=True)
class MeasurementCache:
    """A folder of measurements.

    Attributes:
        folder: Where; made when something is kept. None keeps nothing.
    """

    folder: Path | None

    def path(
        self, model: Fingerprint | None, photo: Photo, views: tuple[View, ...], settings: tuple[object, ...]
    ) -> Path | None:
        """Where a measurement stands: by the content of model and photo, what was asked, and the versions of what computed it."""
        if self.folder is None or model is None or model.hooked:
            return None
        asked = [(view.method, view.depth) for view in views]
        where = digest(
            [
                FORMAT,
                __version__,
                library_versions(),
                model.key,
                photo.digest,
                asked,
                settings,
                torch.get_default_dtype(),
            ]
        )
        return self.folder / where[:2] / f"{where}.safetensors"

    @staticmethod
    def get(path: Path | None) -> Measurement | None:
        """A measurement, if there is a whole one."""
        return None if path is None else Measurement.load(path)

    @staticmethod
    def keep(path: Path | None, measurement: Measurement) -> None:
        """Write a measurement."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            measurement.save(path)
