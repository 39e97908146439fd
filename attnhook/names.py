"""Public names that are imported when they are first used. The stub `__init__.pyi`, made for type checkers, also tells Python where they are."""

import pkgutil
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def homes_of(package: str) -> dict[str, str]:
    """The module that defines each public name of a package."""
    stub = pkgutil.get_data(package, "__init__.pyi") or b""
    return {name: home for home, name in re.findall(r"^from (\S+) import (\w+) as \2$", stub.decode(), re.MULTILINE)}


def lazy_names(package: str) -> tuple[list[str], Callable[[str], Any]]:
    """The public names of a package, and its `__getattr__`."""
    homes = homes_of(package)

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return list(homes), load
