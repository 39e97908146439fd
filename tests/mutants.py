"""Lines of a source file, each with one small thing wrong: what `break_lines` breaks to see that tests notice.

Chosen by the syntax tree, not by hand: comparisons, arithmetic, constants, `and` and `or`, `not` and signs, bounds of slices, conditions turned
round, least for largest, calls for their effect left out. Docstrings, annotations, decorators and the words of errors are left alone.
"""

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor", "amax": "amin"}
_NAMES |= {
    "amin": "amax",
    "maximum": "minimum",
    "minimum": "maximum",
    "clamp_min": "clamp_max",
    "clamp_min_": "clamp_max_",
}
_NOT_CODE = (ast.Raise, ast.JoinedStr, ast.Assert)


@dataclass(frozen=True)
class Mutant:
    """One wrong line.

    Attributes:
        file: In `attnhook/`.
        number: The line's number, from 1.
        line: The line as it is.
        broken: The line as it is then.
    """

    file: str
    number: int
    line: str
    broken: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.line.strip()}  ->  {self.broken.strip()}"

    def applied(self, source: str) -> str:
        """The file's text with this line."""
        lines = source.splitlines(keepends=True)
        lines[self.number - 1] = f"{self.broken}\n"
        return "".join(lines)


def mutants_of(source: str, file: str, count: int, seed: int = 0) -> list[Mutant]:
    """Choose some mutants of a file.

    Args:
        source: Its text.
        file: Its name.
        count: How many.
        seed: Of the choice. Lines elsewhere in the file do not change which are chosen.

    Returns:
        The mutants, in the file's order, no two of one line.
    """

    def lot(mutant: Mutant) -> str:
        return hashlib.sha256(f"{seed} {mutant.line} {mutant.broken}".encode()).hexdigest()

    chosen: dict[int, Mutant] = {}
    for mutant in sorted(all_mutants(source, file), key=lot):
        if len(chosen) < count:
            chosen.setdefault(mutant.number, mutant)
    return [chosen[number] for number in sorted(chosen)]


def all_mutants(source: str, file: str) -> list[Mutant]:
    """Every mutant of a file.

    Args:
        source: Its text.
        file: Its name.

    Returns:
        The mutants; what stands in several lines is left alone.
    """
    lines, found = source.splitlines(), []
    for node, replacement in _changes(ast.parse(source)):
        if node.lineno != node.end_lineno:
            continue
        raw = lines[node.lineno - 1].encode()
        broken = raw[: node.col_offset] + replacement.encode() + raw[node.end_col_offset :]
        found.append(Mutant(file, node.lineno, raw.decode(), broken.decode()))
    return found


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Nodes and what replaces them, from the top down."""
    yield from _own_changes(node)
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, _NOT_CODE):
                yield from _changes(child)


def _own_changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    match node:
        case ast.Compare(ops=[op, *more]):
            yield node, _with(node, ops=[_COMPARISONS[type(op)](), *more])
        case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
            yield node, _with(node, op=_ARITHMETIC[type(op)]())
        case ast.BoolOp(op=op):
            yield node, _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() | int() | float() as value):
            yield node, str(_other(value))
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield test, f"(not ({ast.unparse(test)}))"
        case ast.Slice(lower=ast.expr(), upper=upper):
            yield node, f":{'' if upper is None else ast.unparse(upper)}"
        case ast.Slice(upper=ast.expr()):
            yield node, ":"
        case ast.Name(id=name) if name in _NAMES:
            yield node, _NAMES[name]
        case ast.Attribute(value=value, attr=name) if name in _NAMES:
            yield node, f"{ast.unparse(value)}.{_NAMES[name]}"
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield node, "pass"


def _with(node: ast.expr, **fields: object) -> str:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return f"({ast.unparse(changed)})"


def _other(value: float) -> float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) or value == 0 else value * 2


@dataclass(frozen=True)
class Guard:
    """A guard of the library, found in the syntax tree, that can be taken out.

    Attributes:
        trap: What it guards against.
        file: In `attnhook/`.
        function: The function that holds it, with its class: `"AttentionCapture._open"`.
        kind: What is changed, the first that mentions `word`: a `"condition"` is never met, a `"choice"` always; an `"operand"` of `and`, `or`,
            an `"argument"` of a call and a `"statement"` are left out; a `"name"` becomes `instead`; with `"result"` the function only returns
            `instead`.
        word: A name, attribute, keyword or constant.
        tests: What must fail without it, below `tests/`.
        instead: An expression.
    """

    trap: str
    file: str
    function: str
    kind: str
    word: str
    tests: str
    instead: str = "None"

    def __str__(self) -> str:
        return f"{self.file}: {self.trap}"

    def applied(self, source: str) -> str:
        """The file's text without it; `LookupError` if it is not there."""
        tree = ast.parse(source)
        breaker = _Breaker(self)
        breaker.visit(_function(tree, self.function))
        if not breaker.done:
            raise LookupError(f"{self.file}: {self.function} has no {self.kind} that mentions {self.word!r}")
        return ast.unparse(ast.fix_missing_locations(tree))


def _function(tree: ast.Module, path: str) -> ast.FunctionDef:
    scope: ast.AST = tree
    for name in path.split("."):
        found = (node for node in ast.walk(scope) if isinstance(node, ast.FunctionDef | ast.ClassDef))
        scope = next((node for node in found if node.name == name), None)
        if scope is None:
            raise LookupError(f"there is no {path}")
    return scope


class _Breaker(ast.NodeTransformer):
    def __init__(self, guard: Guard) -> None:
        self.guard, self.done = guard, False

    def visit(self, node: ast.AST) -> ast.AST:
        if self.done:
            return node
        self.done = self._break(node)
        if self.done:
            return ast.Pass() if self.guard.kind == "statement" else self._replaced(node)
        return self.generic_visit(node)

    def _mentioned(self, node: ast.AST) -> bool:
        found = {getattr(one, field, None) for one in ast.walk(node) for field in ("id", "attr", "arg", "value")}
        return self.guard.word in {word for word in found if isinstance(word, str)}

    def _replaced(self, node: ast.AST) -> ast.AST:
        return ast.parse(self.guard.instead, mode="eval").body if self.guard.kind == "name" else node

    def _break(self, node: ast.AST) -> bool:
        """Change a node in place, if it is of the kind; whether it is."""
        match self.guard.kind, node:
            case ("condition" | "choice") as kind, (ast.If(test=test) | ast.IfExp(test=test)) if self._mentioned(test):
                node.test = ast.Constant(kind == "choice")
            case "operand", ast.BoolOp(values=values) if any(map(self._mentioned, values)):
                values.remove(next(filter(self._mentioned, values)))
            case "argument", ast.Call(keywords=keywords) if self.guard.word in {keyword.arg for keyword in keywords}:
                node.keywords = [keyword for keyword in keywords if keyword.arg != self.guard.word]
            case "statement", (ast.Expr(value=ast.Call()) | ast.Assign()) if self._mentioned(node):
                pass
            case "name", ast.Name(id=self.guard.word):
                pass
            case "result", ast.FunctionDef():
                node.body = [ast.Return(ast.parse(self.guard.instead, mode="eval").body)]
            case _:
                return False
        return True
