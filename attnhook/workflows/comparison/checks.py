"""What a comparison finds out about itself: models that are the same, and why the same weights may look at other places."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import nn

from attnhook.options import Size
from attnhook.workflows.comparison.fingerprints import Fingerprint
from attnhook.workflows.comparison.measurements import Measurement

SAME = 1e-6
"""Largest difference of two maps that are called the same: float32 kernels of two libraries differ by less."""

_MOST_SPECIAL = 9
"""Most tokens in a table of positions that are no patches: a class token, a distillation token, registers."""

_RESAMPLING = (
    "timm resamples position embeddings with antialiasing, transformers and torchvision without, so away from its own size the same model "
    "gives different maps in two libraries (measured for DINOv2-small: class-token rows differ by up to 0.028). Neither is wrong; compare "
    "at the size of the training, or in one library."
)


@dataclass(frozen=True)
class Note:
    """One thing to know about a comparison.

    Attributes:
        level: `"ok"`, `"warning"` or `"info"`.
        text: In words.
    """

    level: str
    text: str


def trained_grid(model: nn.Module) -> Size | None:
    """The patch grid that a model's table of positions was made for.

    Args:
        model: The model.

    Returns:
        Rows and columns; None if there is no such table, or it tells no square grid.
    """
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(config, dict) and config.get("input_size") and isinstance(patch, tuple):
        return config["input_size"][1] // patch[0], config["input_size"][2] // patch[1]
    for name, parameter in model.named_parameters():
        if ("pos_embed" in name or "position_embedding" in name) and parameter.dim() in (2, 3):
            for special in range(_MOST_SPECIAL + 1):
                edge = math.isqrt(max(parameter.shape[-2] - special, 0))
                if edge > 1 and edge * edge == parameter.shape[-2] - special:
                    return edge, edge
    return None


def pair_notes(
    names: Sequence[str],
    fingerprints: Sequence[Fingerprint],
    measurements: "dict[tuple[int, int], Measurement]",
    trained: "Sequence[Size | None]",
    view: str,
) -> list[Note]:
    """Compare every two models' grids and maps number by number.

    Args:
        names: The models.
        fingerprints: Their contents.
        measurements: By model and photo.
        trained: The grids that they were trained with, where that is known.
        view: Whose maps are compared.

    Returns:
        A note for each pair with the same weights or the same maps.
    """
    notes = []
    for first, second in combinations(range(len(names)), 2):
        both = _in_common(first, second, measurements, view)
        if not both:
            continue
        shared = fingerprints[first].shares_weights(fingerprints[second])
        off = any(trained[model] not in (None, tuple(both[0][0].maps[view].shape)) for model in (first, second))
        notes += _pair_note(f"{names[first]} and {names[second]}", both, view, shared=shared, off=off)
    return notes


def _in_common(
    first: int, second: int, measurements: "dict[tuple[int, int], Measurement]", view: str
) -> list[tuple[Measurement, Measurement]]:
    photos = sorted({photo for model, photo in measurements if model == first and (second, photo) in measurements})
    pairs = [(measurements[first, photo], measurements[second, photo]) for photo in photos]
    return [(a, b) for a, b in pairs if view in a.maps and view in b.maps]


def _pair_note(
    title: str, both: list[tuple[Measurement, Measurement]], view: str, *, shared: bool, off: bool
) -> list[Note]:
    if not all(a.maps[view].shape == b.maps[view].shape and a.geometry == b.geometry for a, b in both):
        differ = f"{title} hold the same weights, and see these photos at different sizes or crops."
        return [Note("info", differ)] if shared else []
    apart = max(float((a.maps[view] - b.maps[view]).abs().max()) for a, b in both)
    rows, columns = both[0][0].maps[view].shape
    if apart <= SAME:
        photos = f"{len(both)} photo{'s' if len(both) > 1 else ''}"
        how = "are equal" if apart == 0 else f"differ by at most {apart:.1e}"
        return [Note("ok", f"{title} give the same maps: they {how} over {photos}, on a grid of {rows} x {columns}.")]
    if not shared:
        return []
    reason = _RESAMPLING if off else "Their code or their settings differ."
    same = f"{title} hold the same weights and see the same pixels on the same grid, and yet their maps differ by up to {apart:.1e}."
    return [Note("warning", f"{same} {reason}")]


def size_notes(
    names: Sequence[str], measurements: "dict[tuple[int, int], Measurement]", trained: "Sequence[Size | None]"
) -> list[Note]:
    """Say which models ran at another size than they were trained at.

    Args:
        names: The models.
        measurements: By model and photo.
        trained: The grids that they were trained with, where that is known.

    Returns:
        A note each.
    """
    notes = []
    for model, (name, grid) in enumerate(zip(names, trained, strict=True)):
        ran = {
            tuple(one.depths[max(one.depths)].shape)
            for (m, _), one in measurements.items()
            if m == model and one.depths
        }
        other = sorted(ran - {grid})
        if grid is None or not other:
            continue
        sizes = ", ".join(f"{h} x {w}" for h, w in other[:3])
        ran_on = f"{name} was trained on a grid of {grid[0]} x {grid[1]} patches and ran on {sizes}: its library resampled its positions."
        notes.append(Note("info", f"{ran_on} {_RESAMPLING}"))
    return notes
