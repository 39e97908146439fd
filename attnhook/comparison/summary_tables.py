"""The numbers of a comparison as tables: what a report shows is what `metrics.json` holds."""

from collections.abc import Sequence
from typing import Any

import torch

from attnhook.comparison.agreements import METRICS
from attnhook.comparison.comparisons import Comparison
from attnhook.comparison.estimates import estimate
from attnhook.comparison.faithfulness import CURVES
from attnhook.comparison.map_kinds import View
from attnhook.comparison.measurements import Measurement, mean_over_photos
from attnhook.comparison.measuring import STATISTICS
from attnhook.comparison.objects import CONTROLS, SCORES
from attnhook.comparison.tables import Column, Table


def all_tables(comparison: Comparison) -> list[Table]:
    """Every table that the comparison has numbers for."""
    tables = [models_table(comparison), agreement_table(comparison, comparison.views), photos_table(comparison)]
    if any(comparison.objects.values()):
        tables.append(objects_table(comparison))
    if any(comparison.faithful.values()):
        tables.append(faithfulness_table(comparison))
    if any(one.statistics for one in comparison.measurements.values()):
        tables.append(depth_table(comparison))
    return [table for table in tables if table.rows]


# --- models -------------------------------------------------------------------------------------------------------------------------------

_MODEL_COLUMNS = (
    Column("model", "model"),
    Column("library", "library"),
    Column("architecture", "class", "the model's class"),
    Column("parameters", "parameters, M", "millions of parameters", 1),
    Column("input", "input", "height x width in pixels of what the model is fed, as far as the photos agree"),
    Column("grid", "grid", "patch rows x columns"),
    Column("patch", "patch, px", "edge of a patch in pixels of the input", 1),
    Column("tokens", "tokens", "keys of a row of the last block", 0),
    Column("readout", "readout", "whose row the maps are of: what the model's head reads"),
    Column(
        "forward_ms",
        "forward, ms",
        "median over photos and quartiles: one forward of one photo, capture included, wall clock; over the photos without statistics, which "
        "capture less, if there are any, and never over measurements from the cache",
        0,
    ),
    Column("relative_entropy", "entropy", f"{STATISTICS['relative_entropy']}; mean over blocks, heads and photos"),
    Column("distance", "distance", f"{STATISTICS['distance']}; mean over blocks, heads and photos"),
    Column("sink_mass", "sink mass", f"{STATISTICS['sink_mass']}; mean over blocks, heads and photos"),
    Column("patch_mass", "patch mass", f"{STATISTICS['patch_mass']}; mean over blocks, heads and photos"),
)


def models_table(comparison: Comparison) -> Table:
    """One row a model."""
    rows = []
    for index, entry in enumerate(comparison.models):
        own = [one for (model, _), one in sorted(comparison.measurements.items()) if model == index]
        rows.append(
            {
                "model": entry.name,
                "library": entry.library,
                "architecture": entry.architecture,
                "parameters": entry.parameters / 1e6,
                **_sizes(own),
                "forward_ms": _times(own),
                **{name: _mean(own, name) for name in STATISTICS},
            }
        )
    columns = tuple(c for c in _MODEL_COLUMNS if c.key == "forward_ms" or any(row[c.key] is not None for row in rows))
    note = (
        "Statistics are means over all queries, with standard errors over photos. They describe attention, not quality."
    )
    return Table("models", "Models", note, columns, tuple(rows))


def _sizes(own: Sequence[Measurement]) -> dict[str, Any]:
    inputs = sorted({one.geometry.input_size for one in own})
    grids = sorted({one.grids[-1] for one in own if one.grids})
    areas = {(one.area or one.geometry.input_size)[0] / one.grids[-1][0] for one in own if one.grids}
    tokens = {one.tokens for one in own}
    return {
        "input": _shape(inputs),
        "grid": _shape(grids) if grids else None,
        "patch": areas.pop() if len(areas) == 1 else None,
        "tokens": tokens.pop() if len(tokens) == 1 else None,
        "readout": own[0].readout if own else None,
    }


def _shape(sizes: Sequence[tuple[int, ...]]) -> str:
    return " \u00d7 ".join(map(str, sizes[0])) if len(sizes) == 1 else "depends on the photo"


def _times(own: Sequence[Measurement]) -> dict[str, Any] | None:
    timed = [(one.seconds * 1000, bool(one.statistics)) for one in own if one.seconds is not None]
    if not timed:
        return None
    few = [time for time, statistics in timed if not statistics]
    times = torch.tensor(few or [time for time, _ in timed], dtype=torch.float64)
    low, median, high = torch.quantile(times, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return {"value": median, "low": low, "high": high, "n": len(times)}


def _mean(own: Sequence[Measurement], statistic: str) -> dict[str, Any] | None:
    values = [float(one.statistics[statistic].nanmean()) for one in own if statistic in one.statistics]
    found = estimate(values)
    return found.plain() if found.n else None


def photos_table(comparison: Comparison) -> Table:
    """One row a photo: what all models saw of it."""
    rows = []
    for index, photo in enumerate(comparison.photos):
        area = comparison.areas[index]
        models = sum(where[1] == index for where in comparison.measurements)
        size = f"{photo.size[0]} \u00d7 {photo.size[1]}"
        rows.append({"photo": photo.name, "size": size, "models": models, "shared": 0.0 if area is None else area.part})
    columns = (
        Column("photo", "photo"),
        Column("size", "size", "height x width in pixels"),
        Column("models", "models", "how many models were measured on it", 0),
        Column("shared", "shared area", "part of the photo that all of them saw: comparisons are over that part alone"),
    )
    return Table("photos", "Photos", "Models crop photos differently.", columns, tuple(rows))


# --- agreement ----------------------------------------------------------------------------------------------------------------------------

_METRIC_WORDS = {
    "spearman": ("Spearman", "rank correlation of the two maps over the shared area: 1 is the same order"),
    "jensen_shannon": (
        "JS divergence",
        "Jensen-Shannon divergence of the two maps as distributions, in nats: 0 is the same, 0.693 disjoint",
    ),
    "cosine": ("cosine", "cosine of the two maps as vectors; high for any two maps without negative values"),
}


def agreement_table(comparison: Comparison, views: Sequence[View]) -> Table:
    """One row a pair of models and a view."""
    names = [entry.name for entry in comparison.models]
    rows = []
    for view in views:
        for pair in comparison.agreements.get(view.id, ()):
            row: dict[str, Any] = {"view": view.id, "first": names[pair.first], "second": names[pair.second]}
            for metric in METRICS:
                row[metric] = pair.values[metric].plain()
                row[f"{metric}_shuffled"] = pair.shuffled[metric].plain()
                other = pair.other_photo.get(metric)
                row[f"{metric}_other_photo"] = None if other is None else other.plain()
            rows.append(row)
    columns = [Column("view", "map"), Column("first", "model"), Column("second", "and model")]
    for metric in METRICS:
        label, words = _METRIC_WORDS[metric]
        columns += [
            Column(metric, label, f"{words}; mean over photos with a 95 % bootstrap interval over photos"),
            Column(f"{metric}_shuffled", f"{label}, shuffled", "the same with the points of one map in a random order"),
            Column(
                f"{metric}_other_photo",
                f"{label}, other photo",
                "the same with the other model's map of another photo: what their habits share",
            ),
        ]
    note = "Agreement of two maps makes neither right. Read each number beside its baselines."
    return Table("agreement", "Agreement between models", note, tuple(columns), tuple(rows))


# --- scores -------------------------------------------------------------------------------------------------------------------------------

_SCORE_WORDS = {
    "pointing": ("pointing game", "part of the photos where the centre of the highest patch lies on the object"),
    "energy": ("energy in mask", "part of the map's mass on the object"),
    "auroc": ("AUROC", "the map as a detector of the object's pixels: 0.5 is chance"),
    "iou": (
        "IoU at 60 % mass (weak)",
        "overlap of the object with the smallest region of 60 % of the mass; weak, because attention need not fill objects",
    ),
}


def objects_table(comparison: Comparison) -> Table:
    """One row a model, a view and a control."""
    rows = [
        {"view": view, "model": comparison.models[scores.model].name, "map": control.replace("_", " ")}
        | {name: scores.estimates[name][control].plain() for name in SCORES}
        for view, found in comparison.objects.items()
        for scores in found
        for control in CONTROLS
        if scores.estimates["energy"][control].n
    ]
    columns = [
        Column("view", "maps"),
        Column("model", "model"),
        Column(
            "map",
            "map",
            "the model's, or a control: the same architecture with random weights, a Gaussian in the middle, random patches",
        ),
        *(
            Column(name, label, f"{words}; mean over photos and its standard error")
            for name, (label, words) in _SCORE_WORDS.items()
        ),
    ]
    note = "Photographers centre objects: a score counts only by its distance from the centre prior and from random weights."
    return Table("objects", "Maps against masks", note, tuple(columns), tuple(rows))


def faithfulness_table(comparison: Comparison) -> Table:
    """One row a model and a view."""
    rows = [
        {"view": view, "model": comparison.models[found.model].name}
        | {name: found.areas[name].plain() for name in CURVES}
        | {f"{name}_gain": found.gains[name].plain() for name in found.gains}
        for view, several in comparison.faithful.items()
        for found in several
    ]
    columns = (
        Column("view", "maps"),
        Column("model", "model"),
        Column(
            "deletion",
            "deletion",
            "area under the score as the highest patches are taken away: low says that the model relied on them",
        ),
        Column("random_deletion", "deletion, random", "the same for a random map of the same grid"),
        Column(
            "deletion_gain", "deletion, gain", "random less the map's, photo by photo; positive is better than random"
        ),
        Column("insertion", "insertion", "area under the score as the highest patches are shown first: high is good"),
        Column("random_insertion", "insertion, random", "the same for a random map"),
        Column(
            "insertion_gain", "insertion, gain", "the map's less random, photo by photo; positive is better than random"
        ),
    )
    note = "Each model's own softmax probability of the class; patches become mid-grey, an image that no model was trained on."
    return Table("faithfulness", "Deletion and insertion", note, columns, tuple(rows))


def depth_table(comparison: Comparison) -> Table:
    """One row a model and a block: statistics at relative depths."""
    rows = []
    for index, entry in enumerate(comparison.models):
        own = [one for (model, _), one in sorted(comparison.measurements.items()) if model == index]
        found = {name: mean_over_photos(own, name) for name in STATISTICS}
        first = next((table for table in found.values() if table is not None), None)
        for block in range(0 if first is None else len(first)):
            row: dict[str, Any] = {
                "model": entry.name,
                "block": own[0].blocks[block],
                "depth": (block + 1) / len(own[0].blocks),
            }
            for name, table in found.items():
                value = float("nan") if table is None else float(table[block].nanmean())
                row[name] = None if value != value else value  # noqa: PLR0124 (NaN)
            rows.append(row)
    columns = (
        Column("model", "model"),
        Column("block", "block"),
        Column("depth", "relative depth", "of the block: 1 is the last"),
        *(
            Column(name, name.replace("_", " "), f"{words}; mean over heads and photos")
            for name, words in STATISTICS.items()
        ),
    )
    return Table(
        "depth",
        "Statistics over depth",
        "Blocks of different models stand at their relative depth.",
        columns,
        tuple(rows),
    )
