"""The texts in the source, as far as they are fixed: what changes is cut out."""

import ast
from functools import cache
from pathlib import Path

import attnhook

GAP = "\0"


@cache
def source_texts() -> tuple[str, ...]:
    """Every string of the library, with `GAP` where something is put in; strings put in by name, such as `{what}`, stay gaps."""
    found = []
    for path in sorted(Path(attnhook.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def is_in_the_source(message: str) -> bool:
    """Whether one text of the source has the words of `message` in their order; `…` stands for anything."""
    words = [part.strip() for part in message.split("…") if part.strip()]
    for text in source_texts():
        rest = text
        for part in words:
            _, there, rest = rest.partition(part)
            if not there:
                break
        else:
            return True
    return False
