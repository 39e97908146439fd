"""What a comparison notices about its models: which are the same, and why the same weights may look at different places."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from attnhook.comparison.measurements import Measurement
from attnhook.comparison.model_runs import ModelEntry
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Size

SAME = 1e-6
"""Largest difference of two maps that are called the same: float32 kernels of two libraries differ by less."""
_ALL = 0.97  # of their bytes: who shares so much has the same weights, for position tables may be resampled

RESAMPLING = (
    "timm resamples position embeddings with antialiasing, transformers and torchvision without. So away from its own size the same model "
    "gives different maps in two libraries (for DINOv2-small, class-token rows differ by up to 0.028). Neither is wrong; compare at the "
    "training size, or within one library."
)


@dataclass(frozen=True)
class Note:
    """One thing to know about a comparison."""

    level: str  # "ok", "warning" or "info"
    text: str


def make_notes(entries: Sequence[ModelEntry], measurements: Sequence[dict[int, Measurement]], view: str) -> list[Note]:
    """Compare models of the same weights, by photo, and name models that ran at another size than in training."""
    grids = [_other_grids(entry, own) for entry, own in zip(entries, measurements, strict=True)]
    notes = []
    for group in _same_weights(entries):
        others = []
        for first, second in combinations(group, 2):
            pairs = [(own, measurements[second].get(photo)) for photo, own in measurements[first].items()]
            both = [(a, b) for a, b in pairs if b is not None and view in a.maps and view in b.maps]
            if both and all(a.maps[view].shape == b.maps[view].shape and a.geometry == b.geometry for a, b in both):
                maps, resampled = [(a.maps[view], b.maps[view]) for a, b in both], bool(grids[first] or grids[second])
                notes.append(_pair_note(entries[first], entries[second], maps, resampled=resampled))
            elif both:
                others.append(f"{entries[first].name} and {entries[second].name}")
        if others:
            notes.append(Note("info", f"The same weights at different sizes or crops: {'; '.join(others)}."))
    resized = [
        f"{entry.name} {_sizes([entry.trained_grid])}, here {_sizes(own)}"
        for entry, own in zip(entries, grids, strict=True)
        if own and entry.trained_grid is not None
    ]
    if resized:
        notes.append(
            Note("info", f"Ran on grids other than those they were trained on: {'; '.join(resized)}. {RESAMPLING}")
        )
    return notes


def _same_weights(entries: Sequence[ModelEntry]) -> list[list[int]]:
    """Models by weights, groups of at least two."""
    groups: list[list[int]] = []
    for model, entry in enumerate(entries):
        like = (group for group in groups if entries[group[0]].fingerprint.shares_weights(entry.fingerprint))
        if (group := next(like, None)) is None:
            groups.append([model])
        else:
            group.append(model)
    return [group for group in groups if len(group) > 1]


def _other_grids(entry: ModelEntry, measurements: dict[int, Measurement]) -> list[Size]:
    """Grids that it ran on and was not trained on."""
    own = [set(found.grids) for found in measurements.values()]
    if entry.trained_grid is None or any(len(grids) > 1 for grids in own):  # positions are only of the first stage
        return []
    return sorted(set[Size]().union(*own) - {entry.trained_grid})


def _sizes(grids: Sequence[Size]) -> str:
    shown = ", ".join(f"{grid[0]} \u00d7 {grid[1]}" for grid in grids[:3])
    return f"{shown} and others" if len(grids) > 3 else shown


def _pair_note(
    first: ModelEntry, second: ModelEntry, both: list[tuple[PatchMap, PatchMap]], *, resampled: bool
) -> Note:
    pair = f"{first.name} and {second.name}"
    apart = max(float((a.values - b.values).abs().max()) for a, b in both)
    if apart <= SAME:
        rows, columns = both[0][0].grid
        photos = f"{len(both)} photo{'s' if len(both) > 1 else ''}"
        how = "are equal" if apart == 0 else f"differ by at most {apart:.1e}"
        return Note("ok", f"{pair} give the same maps: they {how} over {photos}, on a grid of {rows} \u00d7 {columns}.")
    where = f"look at the same part of the photos on the same grid; their maps differ by up to {apart:.1e}"
    shared = first.fingerprint.shared(second.fingerprint)
    if shared < _ALL:
        return Note("info", f"{pair} share some {shared:.0%} of their weights and {where}.")
    reasons = ["their position embeddings were resampled, see below"] if resampled else []
    if first.fingerprint.preprocessing != second.fingerprint.preprocessing:
        reasons.append("their preprocessing gives different pixels")
    reason = "; ".join(reasons) or "their code or settings differ"
    return Note("warning", f"{pair} have the same weights and {where}: {reason}.")
