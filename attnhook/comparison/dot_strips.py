"""The scores of a comparison as strips of dots: a row per model or pair, with its controls on the same axis."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from attnhook.comparison.agreements import METRICS
from attnhook.comparison.findings import Findings
from attnhook.comparison.measurements import MapKind
from attnhook.comparison.objects import RANDOM_DRAWS, SCORES
from attnhook.comparison.summary_tables import CURVE_WORDS, METRIC_WORDS, SCORE_WORDS
from attnhook.comparison.tables import Estimate

MARKS = {
    "model": "the model's own map",
    "pair": "two models' maps of the same photo",
    "random_weights": "the same model with its weights shuffled",
    "random_map": f"random values on the same patches (mean of {RANDOM_DRAWS} draws)",
    "centre_prior": "a Gaussian in the middle of the photo",
    "chance": "what a map that ignores the photo scores on average",
    "shuffled": "the same values at random points",
    "other_photo": "the first model's map, and the second model's map of another photo",
    "random": "a random map of the same grid",
}
"""Every kind of mark, in words."""

_CHANCE_IS_AREA = ("pointing", "energy")
_ROUNDING = 1e-6
_NORMAL = 1.96  # standard errors on either side hold 95 % of a normal distribution


def score_strips(findings: Findings) -> list[dict[str, Any]]:
    """All scores of all views, each with a title, an explanation, the ends of its axis, and rows of marks."""
    strips = []
    for number, view in enumerate(findings.views):
        for made in (_objects(findings, view), _agreements(findings, view), _curves(findings, view)):
            strips += [{"view": number, **strip, **_axis(strip["rows"])} for strip in made]
    return strips


def _objects(findings: Findings, view: MapKind) -> Iterator[dict[str, Any]]:
    prior = findings.centre_prior
    for name in SCORES:
        title, words = SCORE_WORDS[name]
        rows = [
            _row(findings.models[scores.model or 0].name, {k: v for k, v in scores.estimates[name].items() if v.n})
            for scores in findings.objects.get(view.id, ())
        ]
        if not any(row["marks"] for row in rows) or prior is None:
            continue
        rows.append(_row("centre prior", {"centre_prior": prior.estimates[name]["centre_prior"]}, guide=True))
        if name in _CHANCE_IS_AREA:
            rows.append(_row("object's area", {"chance": Estimate(prior.area.value, prior.area.n)}, guide=True))
        elif name == "auroc":
            rows.append(_row("chance", {"chance": Estimate(0.5, prior.area.n)}, guide=True))
        yield {"group": "Maps against masks", "title": title, "help": words, "rows": rows}


def _agreements(findings: Findings, view: MapKind) -> Iterator[dict[str, Any]]:
    pairs = findings.agreements.get(view.id, ())
    for name in METRICS if pairs else ():
        title, words = METRIC_WORDS[name]
        rows = []
        for pair in pairs:
            marks = {"pair": pair.values[name], "shuffled": pair.shuffled[name]}
            marks |= {"other_photo": pair.other_photo[name]} if pair.other_photo else {}
            rows.append(_row(f"{findings.models[pair.first].name} and {findings.models[pair.second].name}", marks))
        yield {"group": "Agreement between models", "title": title, "help": words, "rows": rows}


def _curves(findings: Findings, view: MapKind) -> Iterator[dict[str, Any]]:
    several = findings.faithful.get(view.id, ())
    for name, words in CURVE_WORDS.items() if several else ():
        rows = [
            _row(findings.models[one.model].name, {"model": one.areas[name], "random": one.areas[f"random_{name}"]})
            for one in several
        ]
        yield {
            "group": "Deletion and insertion",
            "title": name,
            "help": f"area under the model's score {words}",
            "rows": rows,
        }


def _row(name: str, estimates: dict[str, Estimate], *, guide: bool = False) -> dict[str, Any]:
    """One row; a guide's value is drawn through all rows."""
    marks = [{"kind": kind, "n": one.n, **_ends(one)} for kind, one in estimates.items() if one.value is not None]
    return {"name": name, "guide": guide, "marks": marks}


def _ends(one: Estimate) -> dict[str, float | None]:
    """A value and its 95 % interval: the bootstrap's, else from its standard error."""
    low, high = one.low, one.high
    if low is None and one.value is not None and one.error is not None:
        low, high = one.value - _NORMAL * one.error, one.value + _NORMAL * one.error
    return {"value": one.value, "low": low, "high": high}


def _axis(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ends in whole steps between ticks: from 0, or below if a value is, to all of them."""
    marks = [mark for row in rows for mark in row["marks"]]
    known = [value for mark in marks for value in (mark["value"], mark["low"], mark["high"]) if value is not None]
    least, most = min(0.0, *known), max(0.1, *known)
    step = 0.2 if most - least > 0.5 else 0.1
    return {
        "low": step * math.floor(least / step + _ROUNDING),
        "high": step * math.ceil(most / step - _ROUNDING),
        "step": step,
    }
