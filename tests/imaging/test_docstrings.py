"""The examples in the docstrings run."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["images", "rounding", "preprocessing", "geometry", "heatmaps", "overlays", "figures"])
def test_examples(name):
    module = import_module(f"attnhook.imaging.{name}")
    assert doctest.testmod(module).failed == 0
