"""What a comparison finds out about itself: models that are the same, and why the same weights may look at other places."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from attnhook.comparison.measurements import Measurement
from attnhook.options import Size
from attnhook.running.fingerprints import Fingerprint

SAME = 1e-6
"""Largest difference of two maps that are called the same: float32 kernels of two libraries differ by less."""

_ALL = 0.97
"""Part of the bytes that two models share from which on they are said to hold the same weights: position tables may be resampled."""

RESAMPLING = (
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


def make_notes(
    names: Sequence[str],
    fingerprints: Sequence[Fingerprint],
    measurements: "dict[tuple[int, int], Measurement]",
    trained: "Sequence[Size | None]",
    view: str,
) -> list[Note]:
    """Compare every two models' grids and maps number by number, and say who ran at another size than it was trained at."""
    resized = {model: ran for model in range(len(names)) if (ran := _other_grids(model, measurements, trained[model]))}
    notes = []
    for group in _same_weights(fingerprints):
        others = []
        for first, second in combinations(group, 2):
            both = _in_common(first, second, measurements, view)
            pair = f"{names[first]} and {names[second]}"
            if both and all(a.maps[view].shape == b.maps[view].shape and a.geometry == b.geometry for a, b in both):
                resampled = first in resized or second in resized
                notes.append(
                    _pair_note(pair, both, view, fingerprints[first], fingerprints[second], resampled=resampled)
                )
            elif both:
                others.append(pair)
        if others:
            notes.append(Note("info", f"The same weights at different sizes or crops: {'; '.join(others)}."))
    if resized:
        where = "; ".join(
            f"{names[model]} {_sizes([trained[model]])}, here {_sizes(grids)}" for model, grids in resized.items()
        )
        notes.append(Note("info", f"Ran on other grids than they were trained on: {where}. {RESAMPLING}"))
    return notes


def _same_weights(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Models by weights, groups of at least two."""
    groups: list[list[int]] = []
    for model, own in enumerate(fingerprints):
        group = next((one for one in groups if fingerprints[one[0]].shares_weights(own)), None)
        if group is None:
            groups.append([model])
        else:
            group.append(model)
    return [group for group in groups if len(group) > 1]


def _other_grids(model: int, measurements: "dict[tuple[int, int], Measurement]", trained: Size | None) -> list[Size]:
    own = [set(found.grids) for (m, _), found in measurements.items() if m == model]
    if trained is None or any(len(grids) > 1 for grids in own):  # grids of later stages are not that of the table
        return []
    return sorted(set[Size]().union(*own) - {trained})


def _sizes(grids: "Sequence[Size | None]") -> str:
    shown = ", ".join(f"{grid[0]} x {grid[1]}" for grid in grids[:3] if grid is not None)
    return f"{shown} and others" if len(grids) > 3 else shown


def _in_common(
    first: int, second: int, measurements: "dict[tuple[int, int], Measurement]", view: str
) -> list[tuple[Measurement, Measurement]]:
    photos = sorted({photo for model, photo in measurements if model == first and (second, photo) in measurements})
    pairs = [(measurements[first, photo], measurements[second, photo]) for photo in photos]
    return [(a, b) for a, b in pairs if view in a.maps and view in b.maps]


def _pair_note(
    pair: str,
    both: list[tuple[Measurement, Measurement]],
    view: str,
    first: Fingerprint,
    second: Fingerprint,
    *,
    resampled: bool,
) -> Note:
    apart = max(float((a.maps[view].values - b.maps[view].values).abs().max()) for a, b in both)
    if apart <= SAME:
        rows, columns = both[0][0].maps[view].grid
        photos = f"{len(both)} photo{'s' if len(both) > 1 else ''}"
        how = "are equal" if apart == 0 else f"differ by at most {apart:.1e}"
        return Note("ok", f"{pair} give the same maps: they {how} over {photos}, on a grid of {rows} x {columns}.")
    where = f"look at the same part of the photos on the same grid; their maps differ by up to {apart:.1e}"
    shared = first.shared(second)
    if shared < _ALL:
        return Note("info", f"{pair} share some {shared:.0%} of their weights and {where}.")
    reasons = ["positions were resampled, see below"] if resampled else []
    reasons += ["their preprocessing gives other pixels"] if first.preprocessing != second.preprocessing else []
    reason = "; ".join(reasons) or "their code or their settings differ"
    return Note("warning", f"{pair} hold the same weights and {where}: {reason}.")
