"""Public names that are imported when they are first used. The stub `__init__.pyi`, made for type checkers, also tells Python where they are."""

import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def homes_of(package: str) -> dict[str, str]:
    """The module that defines each public name of a package."""
    stub = pkgutil.get_data(package, "__init__.pyi") or b""
    return {name: home for home, name in re.findall(r"^from (\S+) import (\w+) as \2$", stub.decode(), re.MULTILINE)}


def lazy_names(package: str, replaced: Mapping[str, str] | None = None) -> tuple[list[str], Callable[[str], Any]]:
    """The public names of a package, and its `__getattr__`; `replaced` says what to write in place of names that are gone."""
    homes, gone = homes_of(package), replaced or {}

    def load(name: str) -> Any:
        if name in gone:  # no AttributeError, of which `from package import name` would say nothing
            raise ImportError(f"{package}.{name} was removed in attnhook 0.2. Write {gone[name]}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return list(homes), load
