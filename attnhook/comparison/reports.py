"""A comparison as a folder: one page to read, every number as data, pictures, and what made them."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from attnhook import __version__
from attnhook.comparison.comparisons import FIGURE_PHOTOS, Comparison, SharedArea
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.photographs import Failure, Photo
from attnhook.comparison.tables import Table, as_csv
from attnhook.errors import AttnhookError, ComparisonError
from attnhook.files import format_of, replacing
from attnhook.running.versions import library_versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_LONGEST = 640
"""Most pixels of the longer edge of a photo inside the page."""

FORMAT = "attnhook-comparison-1"
_STEPS = 65534
_MISSING = 65535
_QUALITY = 85


def save_report(comparison: Comparison, folder: Path, *, pictures: bool) -> Path:
    """Write everything, each file under a temporary name first; the manifest comes last."""
    from attnhook.pages.documents import report_html

    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    photos, lost = _photos(comparison)
    comparison = replace(comparison, failures=(*comparison.failures, *lost.values()))
    tables, depth = comparison.tables(), _depth_figure(comparison)
    metrics = {"tables": [table.plain() for table in tables]}
    written = {
        "report.html": report_html(page_content(comparison, photos, tables, depth)).encode(),
        "metrics.json": _json(metrics),
        "metrics.csv": as_csv(tables).encode(),
    }
    earlier = _listed(folder)
    (folder / "manifest.json").unlink(missing_ok=True)  # an earlier one would vouch for files that change now
    for name, content in written.items():
        _write(folder / name, content)
    names = [*written]
    if pictures:
        names += _overlays(comparison, folder, lost) + _figures(comparison, folder, lost, depth)
    for name in earlier.keys() - set(names):
        if _digest(folder / name) == earlier[name]:
            (folder / name).unlink()
    digests = {name: _digest(folder / name) for name in names}
    _write(folder / "manifest.json", _json(manifest(comparison) | {"files": digests}))
    return folder / "report.html"


def check_folder(folder: Path) -> None:
    """Refuse a folder whose manifest says that something else is in it."""
    found = format_of(folder)
    if found not in (None, FORMAT):
        raise ComparisonError(
            f"{folder} is of something else: expected an empty folder, or one of a comparison, got a manifest of format {found!r}. Choose "
            "another folder."
        )


def manifest(comparison: Comparison) -> dict[str, Any]:
    """What made the comparison: versions, models and photos by content, settings."""
    return {
        "format": FORMAT,
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


def page_content(
    comparison: Comparison, photos: Sequence[dict[str, Any]], tables: Sequence[Table], depth: "Figure | None"
) -> dict[str, Any]:
    """Everything that the page shows."""
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
        "tables": [table.plain() for table in tables if table.id != "depth"],
        "figures": [] if depth is None else [{"title": "Statistics over depth", "png": _base64(_png(depth, dpi=130))}],
        "photos": list(photos),
        "models": [{"name": name} for name in names],
        "views": [{"id": view.id, "label": view.label, "mass": view.mass} for view in comparison.views],
        "maps": list(_maps(comparison)),
        "reasons": list(_reasons(comparison)),
    }


def _maps(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for (model, photo), measurement in sorted(comparison.measurements.items()):
        for number, view in enumerate(comparison.views):
            if view.id in measurement.maps:
                yield {"view": number, "model": model, "photo": photo} | _map(measurement, view.id)


def _reasons(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Why maps are missing."""
    for model, photo in product(range(len(comparison.models)), range(len(comparison.photos))):
        measurement = comparison.measurements.get((model, photo))
        for number, view in enumerate(comparison.views):
            if measurement is None or view.id not in measurement.maps:
                yield {"view": number, "model": model, "photo": photo, "text": comparison.reason(model, photo, view)}


def _photos(comparison: Comparison) -> tuple[list[dict[str, Any]], dict[int, Failure]]:
    """All photos for the page, and those that can no longer be read: they have no picture."""
    entries, lost = [], {}
    for number, photo in enumerate(comparison.photos):
        try:
            jpeg = _jpeg(photo.read())
        except (AttnhookError, OSError) as error:  # gone or changed since the comparison began
            lost[number], jpeg = Failure(None, photo.name, "reading", str(error)), b""
        entries.append(_photo(photo, comparison.areas[number], jpeg))
    return entries, lost


def _jpeg(picture: Image.Image) -> bytes:
    picture.thumbnail((PICTURE_LONGEST, PICTURE_LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _photo(photo: Photo, area: SharedArea | None, jpeg: bytes) -> dict[str, Any]:
    return {
        "name": photo.name,
        "label": None if photo.label is None else str(photo.label),
        "width": photo.size[1],
        "height": photo.size[0],
        "jpeg": _base64(jpeg),
        "shared": 0.0 if area is None else area.part,
        "box": [0.0, 0.0, 0.0, 0.0] if area is None else list(area.box),
    }


def _map(measurement: Measurement, view: str) -> dict[str, Any]:
    """A map at 16 bits, with where it lies in the photo."""
    found, geometry = measurement.maps[view], measurement.geometry
    values = found.values.double()
    known = ~values.isnan()
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 0.0)
    steps = torch.nan_to_num((values - low) / ((high - low) or 1.0) * _STEPS).round().clamp(0, _STEPS).long()
    steps = torch.where(known, steps, _MISSING)
    return {
        "grid": list(values.shape),
        "scale": list(geometry.scale),
        "offset": list(geometry.offset),
        "valid": list(geometry.valid),
        "area": list(found.area_on(geometry)),
        "low": low,
        "high": high,
        "uniform": found.uniform,
        "data": _base64(steps.numpy().astype(np.dtype("<u2")).tobytes()),
    }


def _depth_figure(comparison: Comparison) -> "Figure | None":
    known = any(one.statistics for one in comparison.measurements.values())
    return comparison.depth_figure() if known else None


def _overlays(comparison: Comparison, folder: Path, lost: Container[int]) -> list[str]:
    """Overlays of every photo, model and view: names of the files."""
    names = []
    (folder / "overlays").mkdir(exist_ok=True)
    for number, photo in enumerate(comparison.photos):
        picture = None if number in lost else photo.read()
        for model, entry in enumerate(comparison.models):
            measurement = comparison.measurements.get((model, number))
            for view in comparison.views:
                if picture is None or measurement is None or view.id not in measurement.maps:
                    continue
                name = f"overlays/{number:03}-{_slug(photo.name)}--{model:02}-{_slug(entry.name)}--{_slug(view.id)}.png"
                drawn = measurement.maps[view.id].overlay(picture, measurement.geometry)
                buffer = io.BytesIO()
                drawn.save(buffer, format="PNG", compress_level=1)
                _write(folder / name, buffer.getvalue())
                names.append(name)
    return names


def _figures(comparison: Comparison, folder: Path, lost: Container[int], depth: "Figure | None") -> list[str]:
    """The figures: names of the files."""
    photos = [number for number in range(len(comparison.photos)) if number not in lost][:FIGURE_PHOTOS]
    drawn = {} if depth is None else {"depth.png": depth}
    if photos:
        drawn |= {
            f"photos-by-models--{_slug(v.id)}.png": comparison.figure(v.id, photos=photos) for v in comparison.views
        }
    for name, figure in drawn.items():
        _write(folder / name, _png(figure))
    return [*drawn]


def _png(figure: "Figure", **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **options)
    return buffer.getvalue()


def _listed(folder: Path) -> dict[str, str]:
    """The files that an earlier manifest lists, by name: their digests. None that lies elsewhere."""
    try:
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        return {
            str(name): digest
            for name, digest in files.items()
            if (folder / name).is_file() and (folder / name).resolve().is_relative_to(folder.resolve())
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
