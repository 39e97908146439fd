"""Breaks lines of the core one at a time, chosen by the syntax tree, and sees how many of them tests notice.

    python -m tests.break_lines                        # all, about an hour on one core
    python -m tests.break_lines capture/layout.py      # of some files
    python -m tests.break_lines --list                 # what would be broken

A copy of the tree is broken, never the tree itself; its tests have to pass before. Exit status 1 if fewer than nine in ten are noticed, or a
survivor is not in `ALIKE`, where it is said why nobody can notice it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.broken_trees import ROOT, broken_verdict, check_whole, copied_tree, load_libraries
from tests.mutants import Mutant, mutants_of

A_FILE = 6
"""How many lines of each file are broken."""

ENOUGH = 0.9
MARKS = "not slow and not gpu"

_CALLS = (
    "capture/test_session.py capture/test_calls.py capture/test_fast_path.py capture/test_families.py capture/test_conditions.py "
    "capture/test_errors.py capture/test_invariants.py capture/test_gradients.py capture/test_records.py capture/test_notebook.py "
    "capture/test_traceable.py"
)
_MATRICES = "capture/test_matrix_properties.py capture/test_softmax_matrix.py capture/test_matrix_products.py capture/test_nan_keys.py"
SUITES = {
    "capture/layout.py": "capture/test_layout.py capture/test_layout_properties.py capture/test_errors.py",
    "capture/softmax_matrix.py": f"{_MATRICES} capture/test_calls.py capture/test_copied_maps.py",
    "capture/operands.py": (
        f"{_MATRICES} capture/test_calls.py capture/test_copied_maps.py capture/test_invariants.py capture/test_session.py"
    ),
    "capture/chunked_softmax.py": _MATRICES,
    "capture/recording.py": _CALLS,
    "capture/fast_path.py": _CALLS,
    "capture/forward_records.py": _CALLS,
    "capture/scopes.py": _CALLS + " capture/test_contexts.py capture/test_neighbours.py",
    "capture/records.py": f"capture/test_records.py capture/test_notebook.py {_CALLS}",
    "imaging/geometry.py": "imaging/test_geometry_properties.py imaging/test_geometry.py",
    "imaging/heatmaps.py": "imaging/test_heatmaps.py imaging/test_heatmap_properties.py",
    "imaging/overlays.py": "imaging/test_overlays.py imaging/test_figures.py",
    "attribution/raw_maps.py": "attribution/test_raw_maps.py attribution/test_precisions.py attribution/test_rollouts.py",
    "attribution/rollouts.py": "attribution/test_rollouts.py attribution/test_precisions.py",
    "attribution/gradients.py": "attribution/test_gradients.py",
    "attribution/statistics.py": "attribution/test_statistics.py attribution/test_precisions.py",
    "attribution/row_measures.py": "attribution/test_statistics.py attribution/test_precisions.py",
}
"""The files that are broken and the tests of their rooms that are run, the likeliest first."""

ALIKE = {
    "ones = torch.ones((), dtype=torch.float64, device=self.device).expand(batch, 1, 2, queries)": "of two equal sums one is read",
    "if query.dim() != key.dim() or query.dim() < 3 or query.shape[:] == key.shape[:-2]:": "what is alike is expanded to its own shape",
    "if (end + begin) == 1:": "one row of weight 1 goes the way of several, and gives the same",
    "row, token = row + relevant_rows(block, slice(token, token + 2))[:, :, 0].mean(dim=1), None": "of two rows the first is read",
    "if pixels.shape[-3:] == (height, width):": "what has no border gets one of no pixels",
}
"""Broken lines that behave as the whole ones do, and why."""


def chosen(files: list[str]) -> list[Mutant]:
    """The lines that are broken, in order."""
    names = files or [*SUITES]
    return [m for file in names for m in mutants_of((ROOT / "attnhook" / file).read_text(), file, A_FILE)]


def verdict(mutant: Mutant, tree: Path) -> str:
    """`"noticed"`, `"alike"`, `"UNNOTICED"`, or what went wrong."""
    file = tree / "attnhook" / mutant.file
    tests = [f"tests/{name}" for name in SUITES[mutant.file].split()]
    check_whole(tuple(tests), tree, MARKS)
    found = broken_verdict(file, mutant.applied(file.read_text()), tests, tree, MARKS)
    return "alike" if found == "UNNOTICED" and mutant.broken.strip() in ALIKE else found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", help="such as capture/layout.py (default: the whole core)")
    parser.add_argument("--list", action="store_true", help="only say what would be broken")
    options = parser.parse_args()
    mutants = chosen(options.files)
    if options.list:
        print(*mutants, sep="\n")
        return 0
    load_libraries()
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(folder)
        found = []
        for mutant in mutants:
            found.append(verdict(mutant, tree))
            print(f"{found[-1]:10} {mutant}", flush=True)
    noticed, alike = found.count("noticed"), found.count("alike")
    print(
        f"{noticed} of {len(found)} noticed ({noticed / len(found):.0%}), {alike} survivors behave as the whole line does"
    )
    return int(noticed < ENOUGH * len(found) or noticed + alike < len(found))


if __name__ == "__main__":
    sys.exit(main())
