"""Every public name with its signature, as text: what users rely on. Read off the source, so that Python's and torch's versions do not show.

python -m tests.public_api           # what it is now
python -m tests.public_api --write   # and keep it, when it is meant to change
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from attnhook import _deprecated
from attnhook.names import homes_of

_NOT_CALLED = ("__post_init__", "__repr__", "__str__")
SNAPSHOT = Path(__file__).parent / "public_api.txt"


def public_api() -> str:
    """All of it, a name and its members a paragraph, in alphabetical order."""
    homes = homes_of("attnhook").items()
    found = {name: described(importlib.import_module(home), name, "attnhook") for name, home in homes}
    errors = importlib.import_module("attnhook.errors")
    kinds = [name for name, value in vars(errors).items() if isinstance(value, type)]
    found |= {f"errors.{name}": described(errors, name, "attnhook.errors") for name in kinds}
    return "\n\n".join("\n".join(found[name]) for name in sorted(found)) + "\n"


def described(module: ModuleType, name: str, where: str) -> list[str]:
    """The lines of one name: its own, then its public members indented."""
    value, path = getattr(module, name), f"{where}.{name}"
    if inspect.isfunction(value):
        return [f"{path}{signature(definition(value))}"]
    if not inspect.isclass(value):
        return [f"{path}: {type(value).__name__} of {', '.join(sorted(value))}"]
    bases = [base.__name__ for base in value.__bases__ if base is not object]
    head = f"{path}({', '.join(bases)})" if bases else path
    decorators = [ast.unparse(one) for one in definition(value).decorator_list if not of_old_names(one)]
    return [f"class {head}", *(f"    @{one}" for one in decorators), *(f"    {line}" for line in members(value))]


def members(kind: type) -> list[str]:
    """Fields, properties and methods, inherited ones of this package with them: the nearest definition of each counts."""
    found: dict[str, list[str]] = {}
    for owner in kind.__mro__:
        if owner.__module__.partition(".")[0] == "attnhook":
            own: dict[str, list[str]] = {}
            for name, line in own_members(definition(owner)):
                own.setdefault(name, []).append(line)
            found = own | found if owner is not kind else own
    return [line for lines in found.values() for line in lines]


def own_members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """What the body of a class defines for everyone."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if not statement.target.id.startswith("_"):
                yield statement.target.id, ast.unparse(statement)
        elif isinstance(statement, ast.FunctionDef):
            name = statement.name
            if not name.startswith("_") or (name.endswith("__") and name not in _NOT_CALLED):
                kinds = "".join(f"@{ast.unparse(one)} " for one in statement.decorator_list)
                yield name, f"{kinds}{name}{signature(statement)}"


def definition(value: object) -> ast.FunctionDef | ast.ClassDef:
    """The source of a function or class."""
    name = value.__name__
    tree = ast.parse(Path(inspect.getfile(inspect.unwrap(value))).read_text())
    (node,) = [one for one in tree.body if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == name]
    return node


def of_old_names(decorator: ast.expr) -> bool:
    """Whether a decorator keeps names of an earlier version, which nobody is to write any more."""
    name = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(name, ast.Name) and hasattr(_deprecated, name.id)


def signature(node: ast.FunctionDef) -> str:
    """Arguments and result."""
    result = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    return f"({ast.unparse(node.args)}){result}"


def main() -> None:
    text = public_api()
    if sys.argv[1:] == ["--write"]:
        SNAPSHOT.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
