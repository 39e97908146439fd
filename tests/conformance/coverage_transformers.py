"""Walk every vision class of the installed transformers: rows exact, refused with the reason, wrong, or crashed.

    python -m tests.conformance.coverage_transformers --json transformers.json   # all, a few minutes
    python -m tests.conformance.coverage_transformers --match 'swin*'

Models are tiny, weights random and drawn so that attention is far from uniform. The truth is that of `coverage_timm.py`: every softmax of the
same forward, and the operands of every fused call, spelt out in float64. A family is exact where one of its classes is and none is worse. `not
run` is a class whose tiny model could not be built or run without attnhook; it says nothing about it.
"""

import argparse
import collections
import fnmatch
import json
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import transformers

from attnhook import AttentionCapture
from attnhook.errors import UnsupportedModelError
from tests.conformance import transformers_families
from tests.conformance.coverage_timm import examine
from tests.conformance.transformers_inputs import REVIEWED

_ORDER = ("crashed", "wrong", "missed", "exact", "refused", "not run")


def one(kind: type) -> tuple[str, str]:
    """Outcome and details of a class."""
    try:
        model, inputs = transformers_families.build(kind)
    except Exception as error:
        return _unrun(kind, error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, words, missed = examine(model, inputs)
    except Exception as error:
        return "crashed", _words(error)
    unknown = sorted({name for name, place in missed if not REVIEWED.search(f"{place}/{name}")})
    return (
        ("missed", f"{unknown} softmaxes were not captured and are not on the reviewed list; {words}")
        if unknown
        else (outcome, words)
    )


def _unrun(kind: type, problem: Exception) -> tuple[str, str]:
    """Outcome of a class without inputs that fit: a refusal needs none."""
    try:
        AttentionCapture(transformers_families.bare(kind), rows="all")
    except UnsupportedModelError as error:
        return "refused", str(error).split("got ")[-1].split(". There")[0][:90]
    except Exception:
        return "not run", _words(problem)
    return "not run", _words(problem)


def _words(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]} ({Path(where.filename).name}:{where.lineno})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="*", help="of families, or family/Class")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results: dict[str, tuple[str, str]] = {}
    for family, kinds in transformers_families.families().items():
        for kind in kinds:
            name = f"{family}/{kind.__name__}"
            if fnmatch.fnmatch(family, options.match) or fnmatch.fnmatch(name, options.match):
                start = time.time()
                results[name] = one(kind)
                print(f"{name:60} {results[name][0]:8} {results[name][1]} [{time.time() - start:.0f} s]", flush=True)
    worst: dict[str, str] = {}
    for name, (outcome, _) in results.items():
        family = name.partition("/")[0]
        worst[family] = min(worst.get(family, outcome), outcome, key=_ORDER.index)
    classes = collections.Counter(outcome for outcome, _ in results.values())
    families = collections.Counter(worst.values())
    print(f"classes {dict(classes)}\nfamilies {dict(families)}")
    if options.json:
        versions = {module.__name__: module.__version__ for module in (transformers, torch)}
        options.json.write_text(json.dumps({**versions, "families": worst, "results": results}, indent=1))
    return int(any(classes[bad] for bad in ("crashed", "wrong", "missed")))


if __name__ == "__main__":
    sys.exit(main())
