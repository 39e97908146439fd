"""Docstrings of public names are complete: every argument, what comes back, and examples that run."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import attnhook


def described(docstring: str, section: str) -> set[str]:
    """Names that a section of a docstring describes: `name: ...`, `name, other: ...`, `*args: ...`."""
    found = re.search(rf"^{section}:\n((?:[ ]+.*\n|\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    lines = re.findall(r"^ {4}([*\w, ]+):", found[1], re.MULTILINE) if found else []
    return {name.strip(" *") for line in lines for name in line.split(",")}


def arguments_of(function: Callable[..., Any]) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name != "self" and not name.startswith("_")}


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in attnhook.__all__:
        value = getattr(attnhook, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for attribute, member in vars(value).items():
                inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                if inspect.isfunction(inner) and not attribute.startswith("_") and inner.__doc__:
                    yield f"{name}.{attribute}", inner


FUNCTIONS = dict(public_functions())
CLASSES = {
    name: value
    for name in attnhook.__all__
    if inspect.isclass(value := getattr(attnhook, name)) and not issubclass(value, BaseException)
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_and_results_are_described(name: str) -> None:
    function = FUNCTIONS[name]
    documented = function.__doc__ or ""
    if "." in name and "\n" not in documented.strip():
        return  # a method of which one line says it all
    missing = arguments_of(function) - {"cls"} - described(documented, "Args")
    assert not missing, f"{name}: not described: {sorted(missing)}"
    if function.__annotations__.get("return") not in (None, "None", type(None)):
        assert re.search("^ +(Returns|Yields):$", documented, re.MULTILINE), f"{name}: does not say what it returns"


@pytest.mark.parametrize("name", CLASSES)
def test_constructors_are_described(name: str) -> None:
    kind = CLASSES[name]
    documented = kind.__doc__ or ""
    if dataclasses.is_dataclass(kind):
        wanted = {field.name for field in dataclasses.fields(kind) if not field.name.startswith("_") and field.init}
    elif "__init__" in vars(kind):
        wanted = arguments_of(kind.__init__)
    else:
        return
    missing = wanted - described(documented, "Args") - described(documented, "Attributes")
    assert not missing, f"{name}: not described: {sorted(missing)}"


def test_what_is_not_described_is_noticed() -> None:
    documented = "Do it.\n\n    Args:\n        first, second: Two.\n        *rest: More.\n\n    Returns:\n        A number.\n    "
    assert described(documented, "Args") == {"first", "second", "rest"}
    assert described(documented, "Raises") == set()
