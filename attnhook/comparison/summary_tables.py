"""The numbers of a comparison as tables, for the report and for `metrics.json`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnhook.comparison.agreements import METRICS
from attnhook.comparison.findings import Findings, measurements_of
from attnhook.comparison.measurements import MapKind, Measurement
from attnhook.comparison.measuring import CURVES, STATISTICS
from attnhook.comparison.objects import CONTROLS, RANDOM_DRAWS, SCORES, ObjectScores
from attnhook.comparison.tables import Column, Table, estimate


def all_tables(findings: Findings) -> list[Table]:
    """Every table that the comparison has numbers for."""
    tables = [models_table(findings), agreement_table(findings, findings.views), photos_table(findings)]
    tables += [objects_table(findings), faithfulness_table(findings), depth_table(findings)]
    return [table for table in tables if table.rows]


def _statistics(over: str) -> list[Column]:
    means = f"mean over {over} and photos"
    return [Column(name, name.replace("_", " "), f"{words}; {means}") for name, words in STATISTICS.items()]


_MODEL_COLUMNS = (
    Column("model", "model"),
    Column("library", "library"),
    Column("architecture", "class", "the model's class"),
    Column("parameters", "parameters, M", "number of parameters, in millions", 1),
    Column(
        "input",
        "input, h \u00d7 w",
        "height \u00d7 width of the model's input in pixels, if it is the same for all photos",
    ),
    Column("grid", "grid, h \u00d7 w", "rows \u00d7 columns of patches"),
    Column("patch", "patch, px", "edge of a patch in input pixels", 1),
    Column("tokens", "tokens", "number of keys in the last block", 0),
    Column("readout", "readout", "the token whose attention is shown: the one that the model's head reads"),
    Column(
        "forward_ms",
        "forward, ms",
        "wall-clock time of one forward of one photo with capture: median and quartiles over photos; if there are photos without "
        "statistics, over these alone, because they capture less; cached measurements do not count",
        0,
    ),
    *_statistics("blocks, heads"),
)


def models_table(findings: Findings) -> Table:
    """One row per model."""
    rows: list[dict[str, Any]] = []
    for index, entry in enumerate(findings.models):
        own = measurements_of(findings, index)
        rows.append({"model": entry.name, "library": entry.library, "architecture": entry.architecture})
        rows[-1] |= {"parameters": entry.parameters / 1e6, **_sizes(own), "forward_ms": _times(own)}
        rows[-1] |= {name: _mean(own, name) for name in STATISTICS}
    columns = tuple(c for c in _MODEL_COLUMNS if c.key == "forward_ms" or any(row[c.key] is not None for row in rows))
    note = (
        "Statistics are means over all queries, with standard errors over photos. They describe attention, not quality."
    )
    return Table("models", "Models", note, columns, tuple(rows))


def _sizes(own: Sequence[Measurement]) -> dict[str, Any]:
    inputs = {one.geometry.input_size for one in own}
    grids = {one.grids[-1] for one in own if one.grids}
    patches = {(one.area or one.geometry.input_size)[0] / one.grids[-1][0] for one in own if one.grids}
    tokens = {one.tokens for one in own}
    return {
        "input": _shape(inputs),
        "grid": _shape(grids) if grids else None,
        "patch": patches.pop() if len(patches) == 1 else None,
        "tokens": tokens.pop() if len(tokens) == 1 else None,
        "readout": own[0].readout if own else None,
    }


def _shape(sizes: set[tuple[int, int]]) -> str:
    return " \u00d7 ".join(map(str, *sizes)) if len(sizes) == 1 else "depends on the photo"


def _times(own: Sequence[Measurement]) -> dict[str, Any] | None:
    timed = [(one.seconds * 1000, not one.statistics) for one in own if one.seconds is not None]
    times = [time for time, fast in timed if fast] or [time for time, _ in timed]
    if not times:
        return None
    low, median, high = np.percentile(times, [25, 50, 75]).tolist()
    return {"value": median, "low": low, "high": high, "n": len(times)}


def _mean(own: Sequence[Measurement], statistic: str) -> dict[str, Any] | None:
    found = estimate([float(one.statistics[statistic].nanmean()) for one in own if statistic in one.statistics])
    return found.plain() if found.n else None


def photos_table(findings: Findings) -> Table:
    """One row per photo: what all models saw of it."""
    rows = tuple(
        {
            "photo": photo.name,
            "size": f"{photo.size[0]} \u00d7 {photo.size[1]}",
            "models": sum(where[1] == index for where in findings.measurements),
            "shared": 0.0 if area is None else area.part,
        }
        for index, (photo, area) in enumerate(zip(findings.photos, findings.areas, strict=True))
    )
    shared = "share of the photo that all of these models saw; maps are compared there only"
    columns = (
        Column("photo", "photo"),
        Column("size", "size, h \u00d7 w", "height \u00d7 width in pixels"),
        Column("models", "models", "number of models that were measured on it", 0),
        Column("shared", "shared area", shared),
    )
    return Table("photos", "Photos", "Models crop photos differently.", columns, rows)


METRIC_WORDS = {
    "spearman": ("Spearman", "rank correlation of the two maps over the shared area; 1 is the same order"),
    "jensen_shannon": (
        "JS divergence",
        "Jensen-Shannon divergence of the two maps as distributions, in nats; 0 is the same, 0.693 is disjoint",
    ),
    "cosine": ("cosine", "cosine of the two maps as vectors; high for any two maps without negative values"),
}


def agreement_table(findings: Findings, views: Sequence[MapKind]) -> Table:
    """One row per pair of models and view."""
    names = [entry.name for entry in findings.models]
    rows: list[dict[str, Any]] = [
        {"view": view.id, "first": names[pair.first], "second": names[pair.second]}
        | {name: pair.values[name].plain() for name in METRICS}
        | {f"{name}_shuffled": pair.shuffled[name].plain() for name in METRICS}
        | {f"{name}_other_photo": pair.other_photo[name].plain() if pair.other_photo else None for name in METRICS}
        for view in views
        for pair in findings.agreements.get(view.id, ())
    ]
    columns = [Column("first", "model"), Column("second", "and model"), Column("view", "view")]
    for metric, (label, words) in METRIC_WORDS.items():
        crossed = "the same with the second model's map of another photo: what the models have in common on any photo"
        columns += [
            Column(metric, label, f"{words}; mean over photos with a 95 % bootstrap interval over photos", 2),
            Column(
                f"{metric}_shuffled", f"{label}, shuffled", "the same with the points of one map in random order", 2
            ),
            Column(f"{metric}_other_photo", f"{label}, other photo", crossed, 2),
        ]
    note = "Two maps that agree may both be wrong. Compare each number with its baselines."
    return Table("agreement", "Agreement between models", note, tuple(columns), tuple(rows))


SCORE_WORDS = {
    "pointing": ("pointing game", "share of the photos where the centre of the highest patch is on the object"),
    "energy": ("energy in mask", "share of the map's mass on the object"),
    "auroc": ("AUROC", "the map as a detector of the object's pixels; 0.5 is chance"),
    "iou": (
        "IoU at 60 % mass (weak)",
        "overlap of the object with the smallest region that holds 60 % of the mass; weak, because attention need not fill objects",
    ),
}


def objects_table(findings: Findings) -> Table:
    """One row per model, view and control, and one of the centre prior, which is the same for all."""
    rows = [
        _objects_row(scores, control, {"view": view, "model": findings.models[scores.model or 0].name})
        for view, found in findings.objects.items()
        for scores in found
        for control in CONTROLS
        if scores.estimates["energy"][control].n
    ]
    if rows and findings.centre_prior is not None:
        rows.append(_objects_row(findings.centre_prior, "centre_prior", {"view": None, "model": None}))
    maps = (
        "the model's map, or a control: the same model with its weights shuffled, random values on its patches (mean of "
        f"{RANDOM_DRAWS} draws), or a Gaussian in the middle of the photo"
    )
    area = "the object's share of what all models saw, with its standard error: what chance gives in pointing game and energy in mask"
    means = (
        f"mean over photos with a 95 % bootstrap interval; of random maps, the standard error over {RANDOM_DRAWS} draws"
    )
    columns = [Column("model", "model"), Column("map", "model or control", maps), Column("view", "view")]
    columns.append(Column("area", "object's area", area, 2))
    columns += [Column(name, label, f"{words}; {means}", 2) for name, (label, words) in SCORE_WORDS.items()]
    note = "Photographers centre objects, so compare each score with the centre prior, with random weights and with the object's area."
    return Table("objects", "Maps against masks", note, tuple(columns), tuple(rows))


def _objects_row(scores: ObjectScores, control: str, where: dict[str, Any]) -> dict[str, Any]:
    found = {name: scores.estimates[name][control].plain() for name in SCORES}
    return {**where, "map": control.replace("_", " "), "area": scores.area.plain(), **found}


CURVE_WORDS = {
    "deletion": "while the highest patches are removed; low if the model relied on them",
    "insertion": "while the highest patches are shown first; high if they suffice",
}


def faithfulness_table(findings: Findings) -> Table:
    """One row per model and view."""
    rows = [
        {"view": view, "model": findings.models[found.model].name}
        | {name: found.areas[name].plain() for name in CURVES}
        | {f"{name}_gain": found.gains[name].plain() for name in found.gains}
        for view, several in findings.faithful.items()
        for found in several
    ]
    columns = [Column("model", "model"), Column("view", "view")]
    for name, words in CURVE_WORDS.items():
        columns += [
            Column(name, name, f"area under the model's score {words}", 2),
            Column(f"random_{name}", f"{name}, random", "the same for a random map of the same grid", 2),
            Column(f"{name}_gain", f"{name}, gain", "distance from the random map, per photo; positive is better", 2),
        ]
    note = "Softmax probability of the class under each model. Removed patches become mid-grey, which no model was trained on."
    return Table("faithfulness", "Deletion and insertion", note, tuple(columns), tuple(rows))


def depth_table(findings: Findings) -> Table:
    """One row per model and block: statistics at relative depths."""
    rows = []
    for index, entry in enumerate(findings.models):
        own = measurements_of(findings, index)
        found = {name: _mean_over_photos(own, name) for name in STATISTICS}
        count = max((len(values) for values in found.values()), default=0)
        for block in range(count):
            means = {name: values[block] if values else None for name, values in found.items()}
            depth = (block + 1) / len(own[0].blocks)
            rows.append({"model": entry.name, "block": own[0].blocks[block], "depth": depth} | means)
    columns = [Column("model", "model"), Column("block", "block")]
    columns += [Column("depth", "relative depth", "1 is the last block"), *_statistics("heads")]
    note = "Blocks are listed by relative depth, so that models of different depth can be compared."
    return Table("depth", "Statistics over depth", note, tuple(columns), tuple(rows))


def _mean_over_photos(own: Sequence[Measurement], statistic: str) -> list[float | None]:
    """A statistic by block, mean over photos and heads; empty if the photos' blocks or heads differ in number."""
    tables: list[Tensor] = [one.statistics[statistic] for one in own if statistic in one.statistics]
    if len({table.shape for table in tables}) != 1:
        return []
    means: list[float] = torch.stack(tables).nanmean(dim=0).nanmean(dim=1).tolist()
    return [None if value != value else value for value in means]  # noqa: PLR0124 (NaN)
