"""The examples in the docstrings run."""

import doctest
import pkgutil
from importlib import import_module

import pytest

from attnhook import imaging

NAMES = sorted(module.name for module in pkgutil.iter_modules(imaging.__path__))


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    module = import_module(f"attnhook.imaging.{name}")
    assert doctest.testmod(module).failed == 0
