"""A comparison as a folder: a page to read, every number as data, pictures, and a manifest of what made them."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attnhook import __version__
from attnhook.comparison.dot_strips import MARKS, score_strips
from attnhook.comparison.findings import FIGURE_PHOTOS, Findings, map_of
from attnhook.comparison.measurements import MapKind
from attnhook.comparison.model_figures import as_jpeg, as_png, depth_figure, matrix_figure
from attnhook.comparison.photographs import Failure, Photo
from attnhook.comparison.sampling_grids import SamplingGrid
from attnhook.comparison.summary_tables import all_tables
from attnhook.comparison.tables import Table, as_csv
from attnhook.errors import AttnhookError, ComparisonError
from attnhook.files import check_format, readable, replacing
from attnhook.imaging.encoded_pictures import encoded
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.patch_maps import PatchMap
from attnhook.pages.documents import report_html
from attnhook.running.fingerprints import library_versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_LONGEST = 640
"""Longer edge, in pixels, of the largest photo inside the page."""

OVERLAY_LONGEST = 1024
"""Longer edge, in pixels, of the largest overlay beside it."""

OUTLINE_POINTS = 320
"""The most points along a photo's longer edge at which the outline of its object turns."""

FORMAT = "attnhook-comparison-1"
_STEPS = 65534
_MISSING = 65535
_QUALITY = 85
_PARTS = ("weights", "architecture", "preprocessing")


def save_report(findings: Findings, folder: Path, *, pictures: bool) -> Path:
    """Write everything, each file through a temporary one; the manifest comes last."""
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    photos, unreadable = _photos(findings)
    findings = replace(findings, failures=(*findings.failures, *unreadable.values()))
    tables = all_tables(findings)
    depth = depth_figure(findings) if any(table.id == "depth" for table in tables) else None
    written = {
        "report.html": report_html(page_content(findings, photos, tables, depth)).encode(),
        "metrics.json": _json({"tables": [table.plain() for table in tables]}),
        "metrics.csv": readable(as_csv(tables)).encode(),
    }
    earlier = _listed(folder)
    (folder / "manifest.json").unlink(missing_ok=True)  # an earlier one would vouch for files that change now
    digests = {}
    for name, content in chain(written.items(), _pictures(findings, unreadable, depth) if pictures else ()):
        _write(folder / name, content)
        digests[name] = hashlib.sha256(content).hexdigest()
    for name in earlier.keys() - digests.keys():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() == earlier[name]:
            (folder / name).unlink()
    _write(folder / "manifest.json", _json(manifest(findings) | {"files": digests}))
    return folder / "report.html"


def check_folder(folder: Path) -> None:
    """Refuse a folder whose manifest says that it holds something else."""
    check_format(folder, FORMAT, "of a comparison", ComparisonError)


def manifest(findings: Findings) -> dict[str, Any]:
    """What made the comparison: versions, models and photos by content, settings."""
    return {
        "format": FORMAT,
        "attnhook": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": library_versions(),
        "settings": findings.settings | {"views": [view.id for view in findings.views]},
        "models": [
            {"name": entry.name, "spec": entry.spec, "architecture": entry.architecture}
            | {f"{part}_sha256": getattr(entry.fingerprint, part) for part in _PARTS}
            for entry in findings.models
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
            for photo in findings.photos
        ],
        "failures": [vars(failure) for failure in findings.failures],
        "notes": [vars(note) for note in findings.notes],
    }


def page_content(
    findings: Findings, photos: Sequence[dict[str, Any]], tables: Sequence[Table], depth: "Figure | None"
) -> dict[str, Any]:
    """Everything that the page shows."""
    names = [entry.name for entry in findings.models]
    return {
        "title": f"Where {len(names)} models look: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}",
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "notes": [vars(note) for note in findings.notes],
        "failures": [
            {"model": one.model or "every model", "photo": one.photo, "error": f"{one.what}: {one.error}"}
            for one in findings.failures
        ],
        "tables": [table.plain() for table in tables if table.id != "depth"],  # that one is shown as a figure
        "figures": [{"title": "Statistics over depth", "png": _base64(as_png(depth, dpi=130))}] if depth else [],
        "photos": list(photos),
        "models": [{"name": name} for name in names],
        "views": [{"id": view.id, "label": view.full_label, "mass": view.mass} for view in findings.views],
        "strips": score_strips(findings),
        "marks": MARKS,
        "maps": _maps(findings),
        "reasons": list(_reasons(findings)),
    }


def _places(findings: Findings) -> Iterator[tuple[tuple[int, int, MapKind], dict[str, Any], Any]]:
    """Every model, photo and view; their indices; and what `map_of` finds there."""
    photos, models = range(len(findings.photos)), range(len(findings.models))
    for photo, model, (number, view) in product(photos, models, enumerate(findings.views)):
        place = {"view": number, "model": model, "photo": photo}
        yield (model, photo, view), place, map_of(findings, model, photo, view)


def _maps(findings: Findings) -> list[dict[str, Any]]:
    return [place | _map(*found) for _, place, found in _places(findings) if found is not None]


def _reasons(findings: Findings) -> Iterator[dict[str, Any]]:
    """Why maps are missing."""
    for where, place, found in _places(findings):
        if found is None:
            yield place | {"text": findings.reason(*where)}


def _photos(findings: Findings) -> tuple[list[dict[str, Any]], dict[int, Failure]]:
    """All photos for the page, and those that can no longer be read: they have no picture."""
    entries, unreadable = [], {}
    for number, (photo, area) in enumerate(zip(findings.photos, findings.areas, strict=True)):
        try:
            picture = photo.read()
            picture.thumbnail((PICTURE_LONGEST, PICTURE_LONGEST), Image.Resampling.LANCZOS)
            jpeg = encoded(picture, "JPEG", quality=_QUALITY)
        except (AttnhookError, OSError) as error:  # gone or changed since the comparison began
            unreadable[number], jpeg = Failure(None, photo.name, "reading", str(error)), b""
        entries.append(
            {
                "name": photo.name,
                "label": None if photo.label is None else str(photo.label),
                "width": photo.size[1],
                "height": photo.size[0],
                "jpeg": _base64(jpeg),
                "shared": 0.0 if area is None else area.part,
                "box": [0.0, 0.0, 0.0, 0.0] if area is None else list(area.box),
                "outline": _outline(photo),
            }
        )
    return entries, unreadable


def _outline(photo: Photo) -> dict[str, Any] | None:
    """The edges between the object and the rest, as the path of an SVG in units of a grid over the photo; None without a mask."""
    try:
        mask = photo.object_mask()
    except (AttnhookError, OSError):  # among the failures already
        mask = None
    if mask is None:
        return None
    inside = SamplingGrid.of_photo(photo.size, OUTLINE_POINTS).nearest(mask.inside).numpy()
    across = [f"M{start} {row + 1}h{length}" for row, start, length in _runs(inside[1:] != inside[:-1])]
    down = [f"M{column + 1} {start}v{length}" for column, start, length in _runs((inside[:, 1:] != inside[:, :-1]).T)]
    return {"size": list(inside.shape), "path": "".join([*across, *down])}


def _runs(edges: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Unbroken runs in each line: its number, where it begins, and how long it is."""
    turns = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    begins, ends = np.argwhere(turns == 1).tolist(), np.argwhere(turns == -1).tolist()
    for (line, begin), (_, end) in zip(begins, ends, strict=True):
        yield line, begin, end - begin


def _peak(found: PatchMap, geometry: ImageGeometry) -> list[float] | None:
    """The centre of the highest patch that shows some of the photo, as y and x in photo pixels; None if all are equal."""
    shown, centres = [], []
    for axis, (count, length) in enumerate(zip(found.grid, found.area_on(geometry), strict=True)):
        steps = (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) * length / count
        centres.append(found.overlap.start[axis] + steps)
        shown.append((centres[axis] >= geometry.valid[axis]) & (centres[axis] <= geometry.valid[axis + 2]))
    values = found.values.double().masked_fill(~(shown[0][:, None] & shown[1]), math.nan)
    known = values[~values.isnan()]
    if not known.numel() or known.min() == known.max():
        return None
    row, column = divmod(int(values.nan_to_num(-math.inf).argmax()), found.grid[1])
    return [float(at) for at in geometry.to_image(centres[0][row], centres[1][column])]


def _map(found: PatchMap, geometry: ImageGeometry) -> dict[str, Any]:
    """A map at 16 bits, and where it is in the photo."""
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
        "start": list(found.overlap.start),
        "reach": list(found.overlap.reach),
        "low": low,
        "high": high,
        "uniform": found.uniform,
        "peak": _peak(found, geometry),
        "data": _base64(steps.numpy().astype(np.dtype("<u2")).tobytes()),
    }


def _pictures(findings: Findings, unreadable: Container[int], depth: "Figure | None") -> Iterator[tuple[str, bytes]]:
    """Names and contents of the pictures: an overlay of every photo, model and view, then the figures."""

    @lru_cache(maxsize=1)  # one photo in memory at a time
    def read(photo: int) -> Image.Image:
        picture = findings.photos[photo].read()
        picture.thumbnail((OVERLAY_LONGEST, OVERLAY_LONGEST), Image.Resampling.LANCZOS)
        return picture

    for (model, photo, view), _, found in _places(findings):
        if found is not None and photo not in unreadable:
            words = [_slug(findings.photos[photo].name), _slug(findings.models[model].name), _slug(view.id)]
            shown, (patch_map, geometry) = read(photo), found
            overlay = patch_map.overlay(shown, geometry.with_photo_size((shown.height, shown.width)))
            name = f"overlays/{photo:03}-{words[0]}--{model:02}-{words[1]}--{words[2]}.jpg"
            yield name, encoded(overlay, "JPEG", quality=_QUALITY)
    if depth is not None:
        yield "depth.png", as_png(depth)
    photos = [number for number in range(len(findings.photos)) if number not in unreadable][:FIGURE_PHOTOS]
    for view in findings.views if photos else ():
        yield f"photos-by-models--{_slug(view.id)}.jpg", as_jpeg(matrix_figure(findings, view, photos))


def _listed(folder: Path) -> dict[str, str]:
    """Digests of the files in the folder that an earlier manifest lists, by name."""
    try:
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        return {
            str(name): digest
            for name, digest in files.items()
            if (folder / name).is_file() and (folder / name).resolve().is_relative_to(folder.resolve())
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _slug(name: str) -> str:
    """A name that any file system accepts; numbers tell the files apart."""
    return re.sub(r"[^A-Za-z0-9_.@-]+", "_", name).strip("._")[:60] or "unnamed"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
