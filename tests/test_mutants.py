"""The lines that `break_lines` breaks: really broken, one at a time, always the same ones, and enough of them."""

import ast
from dataclasses import replace

import pytest

from tests.break_lines import ALIKE, GUARDS, SUITES, chosen, pytest_arguments
from tests.broken_trees import ROOT
from tests.mutants import Guard, all_mutants, mutants_of

SOURCE = '''\
def area(size: tuple[int, int] = (1, 2), closed: bool = True) -> int:
    """At least 1."""
    if size[0] < 1 and not closed:
        raise ValueError(f"bad {size[0] + 1}")
    size[1:].clear()
    return max(-size[0] * size[1], 0.5)
'''
WRONG = {
    "def area(size: tuple[int, int] = (2, 2), closed: bool = True) -> int:",
    "def area(size: tuple[int, int] = (1, 3), closed: bool = True) -> int:",
    "def area(size: tuple[int, int] = (1, 2), closed: bool = False) -> int:",
    "    if (size[0] < 1 or not closed):",
    "    if (not (size[0] < 1 and (not closed))):",
    "    if (size[0] <= 1) and not closed:",
    "    if size[1] < 1 and not closed:",
    "    if size[0] < 2 and not closed:",
    "    if size[0] < 1 and (closed):",
    "    pass",
    "    size[:].clear()",
    "    size[2:].clear()",
    "    return min(-size[0] * size[1], 0.5)",
    "    return max((-size[0] / size[1]), 0.5)",
    "    return max((size[0]) * size[1], 0.5)",
    "    return max(-size[1] * size[1], 0.5)",
    "    return max(-size[0] * size[2], 0.5)",
    "    return max(-size[0] * size[1], 1.0)",
}


def test_every_kind_of_mistake_is_made_and_words_are_left_alone() -> None:
    mutants = all_mutants(SOURCE, "area.py")
    assert {mutant.broken for mutant in mutants} == WRONG
    assert len(mutants) == len(WRONG)


def test_each_is_one_line_that_python_can_read() -> None:
    mutants = chosen([])
    assert len(mutants) >= 60
    for mutant in mutants:
        source = (ROOT / "attnhook" / mutant.file).read_text()
        broken = mutant.applied(source)
        ast.parse(broken)
        pairs = zip(source.splitlines(), broken.splitlines(), strict=True)
        assert [number for number, (one, other) in enumerate(pairs, 1) if one != other] == [mutant.number]


def test_the_choice_depends_on_the_seed_and_not_on_other_lines() -> None:
    lines = [mutant.broken for mutant in mutants_of(SOURCE, "area.py", 3)]
    below = "def f() -> None:\n    return\n\n\n" + SOURCE
    assert [mutant.broken for mutant in mutants_of(below, "area.py", 3)] == lines
    assert any([m.broken for m in mutants_of(SOURCE, "area.py", 3, seed)] != lines for seed in (1, 2, 3))
    assert len(mutants_of(SOURCE, "area.py", 99)) == 4  # one a line


@pytest.mark.parametrize("file", SUITES)
def test_files_and_their_tests_exist(file: str) -> None:
    assert (ROOT / "attnhook" / file).exists()
    assert all((ROOT / "tests" / name).exists() for name in SUITES[file].split())


def test_survivors_that_are_excused_are_still_made() -> None:
    assert set(ALIKE) <= {mutant.broken.strip() for mutant in chosen([])}


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.trap)
def test_every_guard_is_where_it_is_broken(guard: Guard) -> None:
    source = (ROOT / "attnhook" / guard.file).read_text()
    assert ast.unparse(ast.parse(source)) != guard.applied(source)
    assert (ROOT / pytest_arguments(guard.tests)[0].partition("::")[0]).exists()


@pytest.mark.parametrize(
    "kind, word, expected",
    [
        ("condition", "closed", "if False:"),
        ("choice", "size", "if True:"),
        ("operand", "closed", "if size[0] < 1:"),
        ("statement", "clear", "    pass\n"),
        ("name", "max", "return min("),
        ("result", "", "-> int:\n    return min"),
    ],
)
def test_a_guard_is_taken_out_of_its_function(kind: str, word: str, expected: str) -> None:
    guard = Guard("a trap", "area.py", "area", kind, word, "test_area.py", instead="min")
    assert expected in guard.applied(SOURCE)
    with pytest.raises(LookupError, match="there is no volume"):
        replace(guard, function="volume").applied(SOURCE)


def test_a_guard_that_is_gone_is_an_error() -> None:
    with pytest.raises(LookupError, match="area has no condition that mentions 'depth'"):
        Guard("a trap", "area.py", "area", "condition", "depth", "test_area.py").applied(SOURCE)
