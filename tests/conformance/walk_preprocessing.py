"""Walks every preprocessing of the installed libraries, and checks the geometry of each against markers in photos of six sizes.

    python -m tests.conformance.walk_preprocessing [--options 20] [--only NAME] [--sizes 0,3] [--part 0/2]

Prints a table and how many were followed, refused, wrong or crashed. Errors that a preprocessing raises itself, such as a limit on aspect
ratios, are counted separately.
"""

import argparse
import collections
import sys
import time
import warnings
import zlib

import numpy as np
from PIL import Image

from attnhook.errors import GeometryError
from attnhook.imaging.calling import run
from attnhook.imaging.geometry import ImageGeometry
from tests.conformance.markers import misplaced
from tests.conformance.preprocessings import all_cases

SIZES = [(480, 640), (333, 500), (90, 1200), (1200, 90), (61, 40), (2000, 3000)]


def outcome(case, size, option):
    """The outcome of one preprocessing at one size: (word, detail)."""
    seed = zlib.crc32(f"{case.name} {size} {option}".encode())
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (*size, 3), np.uint8))
    try:
        preprocess = case.make(rng if option else None)
        run(preprocess, noise)
    except GeometryError as error:
        return "no pixels", str(error)
    except Exception as error:
        return "own error", f"{type(error).__name__}: {error}"
    try:
        each = ImageGeometry.of_each(preprocess, size)
    except GeometryError as error:
        return "refused", str(error)
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}"
    try:
        wrong, compared = misplaced(preprocess, size, each, rng, patch=case.patch, mirrors=case.mirrors)
    except Exception as error:
        return "crashed", f"in the oracle: {type(error).__name__}: {error}"
    if wrong:
        return "wrong", wrong
    return ("followed", "") if compared else ("not compared", "")


def walk(cases, options, sizes):
    """Yields (case, option, size, word, detail)."""
    for case in cases:
        for size in sizes:
            yield case, 0, size, *outcome(case, size, 0)
        for option in range(1, options + 1):
            size = SIZES[(option - 1) % len(SIZES)]
            yield case, option, size, *outcome(case, size, option)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--options", type=int, default=0, help="random settings per preprocessing, each at one of the six sizes in turn"
    )
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument(
        "--sizes", default="0,1,2,3,4,5", help="which of the six sizes at default settings, by number; empty for none"
    )
    parser.add_argument("--part", default="0/1", help="every n-th case, such as 0/2")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    try:
        import transformers

        transformers.logging.set_verbosity_error()
    except ImportError:
        pass
    first, every = map(int, chosen.part.split("/"))
    cases = [case for case in all_cases() if chosen.only.lower() in case.name.lower()][first::every]
    total, by_case = collections.Counter(), collections.defaultdict(collections.Counter)
    began, name = time.time(), None
    for case, option, size, word, detail in walk(
        cases, chosen.options, [SIZES[int(number)] for number in chosen.sizes.split(",") if number]
    ):
        total[word] += 1
        by_case[case.name][word] += 1
        if name not in (None, case.name):
            print(f"{name:45s} {dict(by_case[name])}", flush=True)
        name = case.name
        if word not in {"followed", "own error"}:
            print(f"  {word}: {case.name} option {option} {size}: {detail[:400]}", flush=True)
        elif word == "own error" and option == 0:
            print(f"  {word}: {case.name} {size}: {detail[:90]}", flush=True)
    if name is None:
        parser.error(f"no preprocessing is called {chosen.only!r}")
    print(f"{name:45s} {dict(by_case[name])}")
    refused = [name for name, words in by_case.items() if words["refused"] and not words["followed"]]
    partly = [name for name, words in by_case.items() if words["refused"] and words["followed"]]
    never = [name for name, words in by_case.items() if not words["followed"] and not words["refused"]]
    print(f"\n{len(by_case)} preprocessings, {sum(total.values())} cases in {time.time() - began:.0f} s: {dict(total)}")
    print(
        f"refused always: {refused}\nrefused at some sizes or settings: {partly}\nneither followed nor refused: {never}"
    )
    return 1 if total["wrong"] or total["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
