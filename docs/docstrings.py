"""Docstrings say `Example:`, griffe knows `Examples:` only: without this, doctests would be set as prose."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the section while the site is built; the sources stay as they are."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
