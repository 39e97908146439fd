"""The photos of a comparison: named, identified by content, and read again whenever they are needed."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnhook.comparison.objects import MaskSource, ObjectMask, is_box, read_mask
from attnhook.errors import AttnhookError
from attnhook.files import readable
from attnhook.imaging.images import ImageSource, each_image, read_image
from attnhook.options import Size


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo that could be read."""

    name: str
    source: ImageSource
    size: Size  # height and width, upright
    digest: str  # SHA-256 of its RGB pixels
    label: str | int | None = None  # the class that it shows, by name or index
    mask: MaskSource | None = None

    def read(self) -> Image.Image:
        """Read it."""
        picture = read_image(self.source)
        if _digest(picture) != self.digest:
            raise OSError(
                f"{self.name} has changed since the comparison began: expected the same pixels. Compare again."
            )
        return picture

    def object_mask(self) -> ObjectMask | None:
        """Where the object is; None without a mask."""
        return None if self.mask is None else read_mask(self.mask, self.size, self.name)

    def mask_digest(self) -> str | None:
        """SHA-256 of the mask's pixels; None without a mask, or if it can no longer be read."""
        try:
            mask = self.object_mask()
        except (AttnhookError, OSError):
            mask = None
        if mask is None:
            return None
        return hashlib.sha256(torch.stack([mask.inside, mask.ignored]).numpy().tobytes()).hexdigest()


MEASURING = "measuring"
"""What failed if a model has no measurement of a photo."""


@dataclass(frozen=True)
class Failure:
    """Something that could not be done, while the rest continued."""

    model: str | None  # its name; None if it concerns a photo alone
    photo: str | None  # its name; None if it concerns a model alone
    what: str  # was attempted
    error: str


def read_photos(
    images: "ImageSource | Iterable[ImageSource]",
    masks: "Sequence[MaskSource | None] | None" = None,
    labels: "Sequence[str | int | None] | None" = None,
) -> tuple[tuple[Photo, ...], tuple[Failure, ...]]:
    """Read all photos once, for their size and content."""
    sources = each_image(images)
    if not sources:
        raise ValueError(
            "nothing to compare on: expected at least one photo, got none. Pass a path, a PIL image, an array, or a list of them."
        )
    masks, labels = _one_each("mask", masks, len(sources)), _one_each("label", labels, len(sources))
    names = photo_names(sources)
    photos, failures = [], []
    for number, (name, source) in enumerate(zip(names, sources, strict=True)):
        try:
            picture = read_image(source)
            mask = None if masks is None else masks[number]
            label = None if labels is None else _plain(labels[number])
            photo = Photo(name, source, (picture.height, picture.width), _digest(picture), label, mask)
            photo.object_mask()
        except (AttnhookError, OSError) as error:
            failures.append(Failure(None, name, "reading", str(error)))
        else:
            photos.append(photo)
    return tuple(photos), tuple(failures)


def _one_each(what: str, given: Any, count: int) -> Any:
    """Check that there are as many as photos; a single one goes with a single photo."""
    alone = isinstance(given, str | Path | int | Image.Image) or is_box(given)
    if alone and count == 1:
        return [given]
    if given is not None and (alone or len(given) != count):
        if count == 1 and getattr(given, "ndim", 0) >= 2:
            return [given]
        got = repr(given) if alone else len(given)
        raise ValueError(f"expected one {what} per photo (None for those without), {count} in a list, got {got}.")
    return given


def _plain(label: Any) -> Any:
    """The index of a class as a Python number, also from arrays and tensors."""
    return label.item() if isinstance(label, np.generic | torch.Tensor) and label.ndim == 0 else label


def _digest(picture: Image.Image) -> str:
    content = hashlib.sha256(f"{picture.width} {picture.height} ".encode())
    content.update(np.asarray(picture).data)
    return content.hexdigest()


def photo_names(sources: Sequence[Any]) -> list[str]:
    """A name for each photo, all different: the file's, with its folder where two files are called the same."""
    paths = [Path(readable(str(source))) if isinstance(source, str | Path) else None for source in sources]
    short = [f"photo {number}" if path is None else path.name for number, path in enumerate(paths)]
    for _ in range(2):  # with the folder; the same file twice gets its number
        counted = Counter(short)
        short = [
            name if counted[name] == 1 else str(path) if path and name == path.name else f"{name} ({number})"
            for number, (name, path) in enumerate(zip(short, paths, strict=True))
        ]
    return short
