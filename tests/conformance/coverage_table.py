"""From what the walks of `coverage_timm.py` and `coverage_transformers.py` found to the tables in docs/coverage.md.

    python -m tests.conformance.coverage_transformers --json transformers.json         # a few minutes
    python -m tests.conformance.coverage_timm --unique --max-parameters 1e8 --json timm.json  # the smallest architecture of each set of classes
    python -m tests.conformance.coverage_table transformers.json timm.json --page docs/coverage.md

Replaces what stands between `<!-- transformers -->` (or `<!-- timm -->`) and the next `<!-- end -->`; runs no model.
"""

import argparse
import collections
import json
import re
import sys
from pathlib import Path
from typing import Any

_READOUT = re.compile(r"readout (\w+)")
_ERROR = re.compile(r"worst ([\d.e+-]+)")
_OUTCOMES = {"skipped": "larger than the walk allowed"}
_WORDS = {
    "cls": "class token",
    "pool": "attention pooling",
    "mean": "mean over patches",
    "none": "none of these",
}


def family_of(library: str, name: str) -> str:
    """What results are grouped by: the family in transformers, the module in timm."""
    if library == "transformers":
        return name.partition("/")[0]
    import timm

    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def tables(found: dict[str, Any]) -> str:
    """Markdown for one walk.

    Args:
        found: What a walk wrote with `--json`.

    Returns:
        The tables, with their versions in front.
    """
    library = "transformers" if "transformers" in found else "timm"
    outcomes: dict[str, set[str]] = collections.defaultdict(set)
    readouts: dict[str, set[str]] = collections.defaultdict(set)
    reasons: dict[str, set[str]] = collections.defaultdict(set)
    worst = 0.0
    for name, (outcome, words) in found["results"].items():
        family = family_of(library, name)
        outcomes[family].add(outcome)
        if outcome == "exact":
            readouts[_READOUT.search(words)[1] if _READOUT.search(words) else "none"].add(family)
            worst = max([worst, *(float(error) for error in _ERROR.findall(words))])
        elif outcome == "refused":
            reasons[" ".join(words.split())].add(family)
    exact = {family for family, each in outcomes.items() if "exact" in each}
    counts = collections.Counter(outcome for outcome, _ in found["results"].values())
    unit = "classes" if library == "transformers" else "architectures"
    kind = "families" if library == "transformers" else "modules"
    found_words = ", ".join(f"{count} {_OUTCOMES.get(outcome, outcome)}" for outcome, count in counts.most_common())
    lines = [
        f"{library} {found[library]}, torch {found['torch']}: {len(found['results'])} {unit} in {len(outcomes)} {kind}; {found_words}. "
        f"Largest error of a row: {worst:.0e}.",
        "",
        f"| the head reads | {kind} with exact rows |",
        "|---|---|",
    ]
    lines += [f"| {_WORDS.get(key, key)} | {', '.join(sorted(names))} |" for key, names in sorted(readouts.items())]
    lines += ["", f"| refused; it has instead | {kind} |", "|---|---|"]
    lines += [
        f"| {reason} | {', '.join(sorted(names - exact))} |"
        for reason, names in sorted(reasons.items())
        if names - exact
    ]
    others = sorted(
        f"{family} ({', '.join(_OUTCOMES.get(outcome, outcome) for outcome in sorted(each - {'exact', 'refused'}))})"
        for family, each in outcomes.items()
        if each - {"exact", "refused"}
    )
    return "\n".join([*lines, "", f"With {unit} that are neither: {', '.join(others) or 'none'}."])


def placed(page: str, place: str, text: str) -> str:
    """The page with `text` between the marks of `place`."""
    begin, mark, rest = page.partition(f"<!-- {place} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not mark or not end:
        raise ValueError(f"no place for {place}: expected <!-- {place} --> and <!-- end --> in the page.")
    return f"{begin}{mark}\n{text}\n\n{end}{after}"


def main() -> int:
    """Put the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", nargs="+", type=Path, help="what the walks wrote")
    parser.add_argument("--page", type=Path, help="the page; without one, the tables are printed")
    options = parser.parse_args()
    for path in options.found:
        found = json.loads(path.read_text(encoding="utf-8"))
        if options.page is None:
            print(tables(found))
            continue
        library = "transformers" if "transformers" in found else "timm"
        page = options.page.read_text(encoding="utf-8")
        options.page.write_text(placed(page, library, tables(found)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
