"""`benchmarks/overlay.py` checks what it times."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("timing", "overhead_cases", "overlay")


@pytest.fixture(scope="module")
def script():
    """The script, imported as Python does when it runs it: with its folder first on sys.path."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("overlay")
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in set(MODULES) - before:
            sys.modules.pop(name, None)


def test_every_way_is_timed(script) -> None:
    found = script.measure(script.Case(None), repeats=1)
    assert set(found) == set(script.Case(None).candidates())
    assert all(milliseconds > 0 for milliseconds, _ in found.values())
    assert found[script.BASE][1].median == 1.0


def test_wrong_pictures_are_noticed(script) -> None:
    case = script.Case(None)
    photo = np.asarray(case.photo)
    with pytest.raises(script.CheckError, match="stand out"):
        case.check("the photo", photo)
    with pytest.raises(script.CheckError, match="expected a picture"):
        case.check("turned", photo.transpose(1, 0, 2))
    with pytest.raises(script.CheckError, match="stand out"):
        case.check("upside down", case.colormapped()[::-1])
