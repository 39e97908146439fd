"""A comparison as a folder: one page to read, every number as data, pictures, and what made them."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnhook import __version__
from attnhook.files import replacing
from attnhook.imaging.overlays import overlay
from attnhook.workflows.comparison.comparisons import Comparison
from attnhook.workflows.comparison.measurements import Measurement
from attnhook.workflows.comparison.tables import as_csv
from attnhook.workflows.versions import library_versions

PICTURE_LONGEST = 640
"""Most pixels of the longer edge of a photo inside the page."""

_STEPS = 65534
_MISSING = 65535
_QUALITY = 85


def save_report(comparison: Comparison, folder: Path, *, pictures: bool) -> Path:
    """Write everything, each file under a temporary name first; the manifest comes last.

    Args:
        comparison: The comparison.
        folder: Where; made if need be.
        pictures: Whether to write PNGs.

    Returns:
        The path of the page.
    """
    from attnhook.workflows.comparison.pages import report_html

    folder.mkdir(parents=True, exist_ok=True)
    tables = comparison.tables()
    metrics = {"tables": [table.plain() for table in tables]}
    written = {
        "report.html": report_html(page_content(comparison)).encode(),
        "metrics.json": _json(metrics),
        "metrics.csv": as_csv(tables).encode(),
    }
    (folder / "manifest.json").unlink(missing_ok=True)  # an earlier one would vouch for files that change now
    for name, content in written.items():
        _write(folder / name, content)
    names = [*written, *(_pictures(comparison, folder) if pictures else ())]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    _write(folder / "manifest.json", _json(manifest(comparison) | {"files": digests}))
    return folder / "report.html"


def manifest(comparison: Comparison) -> dict[str, Any]:
    """What made the comparison: versions, models and photos by content, settings.

    Args:
        comparison: The comparison.

    Returns:
        Plain values.
    """
    return {
        "attnhook": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": library_versions(),
        "settings": comparison.settings | {"views": [view.id for view in comparison.views]},
        "models": [
            {
                "name": entry.name,
                "spec": entry.spec,
                "architecture": entry.architecture,
                "weights_sha256": entry.fingerprint.weights,
                "architecture_sha256": entry.fingerprint.architecture,
                "preprocessing_sha256": entry.fingerprint.preprocessing,
            }
            for entry in comparison.models
        ],
        "photos": [
            {
                "name": photo.name,
                "height": photo.size[0],
                "width": photo.size[1],
                "pixels_sha256": photo.digest,
                "label": None if photo.label is None else str(photo.label),
                "mask_sha256": photo.mask_digest(),
            }
            for photo in comparison.photos
        ],
        "failures": [vars(failure) for failure in comparison.failures],
        "notes": [vars(note) for note in comparison.notes],
    }


def page_content(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
        comparison: The comparison.

    Returns:
        Plain values, as `pages.report_html` takes them.
    """
    names = [entry.name for entry in comparison.models]
    return {
        "title": f"Where {len(names)} models look: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}",
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "notes": [vars(note) for note in comparison.notes],
        "failures": [
            {
                "model": failure.model or "every model",
                "photo": failure.photo,
                "error": f"{failure.what}: {failure.error}",
            }
            for failure in comparison.failures
        ],
        # Statistics block by block are shown as a figure.
        "tables": [table.plain() for table in comparison.tables() if table.id != "depth"],
        "figures": _figures(comparison),
        "photos": [_photo(comparison, number) for number in range(len(comparison.photos))],
        "models": [{"name": name} for name in names],
        "views": [{"id": view.id, "label": view.label, "mass": view.mass} for view in comparison.views],
        "maps": [
            {"view": number, "model": model, "photo": photo} | _map(measurement, view.id)
            for (model, photo), measurement in sorted(comparison.measurements.items())
            for number, view in enumerate(comparison.views)
            if view.id in measurement.maps
        ],
        "reasons": list(_reasons(comparison)),
    }


def _reasons(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Why maps are missing."""
    for model, photo in product(range(len(comparison.models)), range(len(comparison.photos))):
        measurement = comparison.measurements.get((model, photo))
        for number, view in enumerate(comparison.views):
            if measurement is None or view.id not in measurement.maps:
                yield {"view": number, "model": model, "photo": photo, "text": comparison.reason(model, photo, view)}


def _photo(comparison: Comparison, number: int) -> dict[str, Any]:
    photo, area = comparison.photos[number], comparison.areas[number]
    picture = photo.read()
    picture.thumbnail((PICTURE_LONGEST, PICTURE_LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY)
    return {
        "name": photo.name,
        "label": None if photo.label is None else str(photo.label),
        "width": photo.size[1],
        "height": photo.size[0],
        "jpeg": _base64(buffer.getvalue()),
        "shared": 0.0 if area is None else area.part,
        "box": [0.0, 0.0, 0.0, 0.0] if area is None else list(area.box),
    }


def _map(measurement: Measurement, view: str) -> dict[str, Any]:
    """A map at 16 bits, with where it lies in the photo."""
    values, geometry = measurement.maps[view].double(), measurement.geometry
    known = ~values.isnan()
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 0.0)
    steps = torch.nan_to_num((values - low) / ((high - low) or 1.0) * _STEPS).round().clamp(0, _STEPS).long()
    steps = torch.where(known, steps, _MISSING)
    return {
        "grid": list(values.shape),
        "scale": list(geometry.scale),
        "offset": list(geometry.offset),
        "valid": list(geometry.valid),
        "area": list(measurement.patch_area or geometry.input_size),
        "low": low,
        "high": high,
        "uniform": measurement.uniform(view),
        "data": _base64(steps.numpy().astype(np.dtype("<u2")).tobytes()),
    }


def _figures(comparison: Comparison) -> list[dict[str, str]]:
    """Figures that the page shows as pictures."""
    if not any(one.statistics for one in comparison.measurements.values()):
        return []
    buffer = io.BytesIO()
    comparison.depth_figure().savefig(buffer, format="png", dpi=130)
    return [{"title": "Statistics over depth", "png": _base64(buffer.getvalue())}]


def _pictures(comparison: Comparison, folder: Path) -> list[str]:
    """Overlays of every photo, model and view, and the figures: names of the files."""
    names = []
    (folder / "overlays").mkdir(exist_ok=True)
    for number, photo in enumerate(comparison.photos):
        picture = photo.read()
        for model, entry in enumerate(comparison.models):
            measurement = comparison.measurements.get((model, number))
            for view in comparison.views if measurement is not None else ():
                if measurement is None or view.id not in measurement.maps:
                    continue
                name = f"overlays/{number:03}-{_slug(photo.name)}--{model:02}-{_slug(entry.name)}--{_slug(view.id)}.png"
                drawn = overlay(picture, measurement.heatmap(measurement.maps[view.id]))
                _write(folder / name, _png(drawn))
                names.append(name)
    for view in comparison.views:
        name = f"photos-by-models--{_slug(view.id)}.png"
        _write(folder / name, _figure(comparison.figure(view.id)))
        names.append(name)
    if _figures(comparison):
        _write(folder / "depth.png", _figure(comparison.depth_figure()))
        names.append("depth.png")
    return names


def _figure(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _slug(name: str) -> str:
    """A name that any file system takes; files are told apart by their numbers."""
    return re.sub(r"[^A-Za-z0-9_.@-]+", "_", name).strip("._")[:60] or "unnamed"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
