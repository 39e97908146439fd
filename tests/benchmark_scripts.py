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
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))
        for new in set(sys.modules) - before:
            if (BENCHMARKS / f"{new}.py").exists():
                del sys.modules[new]
