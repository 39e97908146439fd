"""Benchmarks as modules, for tests of what they check."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """A script, imported as Python does when it runs it: with its folder first on sys.path. Nothing of it stays behind."""
    before = set(sys.modules)
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")}
    others = {stem: sys.modules.pop(stem) for stem in scripts & before}  # `coverage`, where that measures the tests
    sys.path.insert(0, str(BENCHMARKS))
    try:
        script = importlib.import_module(name)
        sys.modules.update(others)
        yield script
    finally:
        sys.modules.update(others)
        sys.path.remove(str(BENCHMARKS))
        for new in set(sys.modules) - before:
            if (BENCHMARKS / f"{new}.py").exists():
                del sys.modules[new]
