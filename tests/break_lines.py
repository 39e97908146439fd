"""Breaks guards of the library and lines of its core, one at a time, and checks that tests notice.

    python -m tests.break_lines                        # all, an hour and a half on one core
    python -m tests.break_lines capture/layout.py      # in some files
    python -m tests.break_lines --guards               # guards alone, half an hour
    python -m tests.break_lines --list                 # what would be broken

Guards are named in `GUARDS`, lines are chosen by the syntax tree. A copy of the tree is broken, never the tree itself; its tests have to pass
before. Exit status 1 if a broken guard goes unnoticed, if fewer than nine lines in ten are noticed, or if a survivor is not in `ALIKE`, which
says why nobody can notice it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.broken_trees import ROOT, broken_verdict, check_whole, copied_tree, load_libraries
from tests.mutants import Guard, Mutant, mutants_of

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
_ANSWERS = (
    "answers/test_answer_rows.py answers/test_answer_conditions.py answers/test_answer_words.py answers/test_answer_places.py "
    "answers/test_digit_reader.py"
)
SUITES = {
    "answers/answer_rows.py": _ANSWERS,
    "answers/answer_records.py": _ANSWERS,
    "answers/layer_listening.py": _ANSWERS,
    "answers/answer_capture.py": _ANSWERS,
    "capture/layout.py": "capture/test_layout.py capture/test_layout_properties.py capture/test_errors.py",
    "capture/softmax_matrix.py": f"{_MATRICES} capture/test_calls.py capture/test_copied_maps.py",
    "capture/operands.py": (
        f"{_MATRICES} capture/test_calls.py capture/test_copied_maps.py capture/test_invariants.py capture/test_session.py"
    ),
    "capture/chunked_softmax.py": _MATRICES,
    "capture/recording.py": _CALLS,
    "capture/calls.py": _CALLS,
    "capture/forward_records.py": _CALLS,
    "capture/scopes.py": _CALLS + " capture/test_contexts.py capture/test_neighbours.py",
    "capture/hooked_contexts.py": _CALLS + " capture/test_contexts.py capture/test_interrupts.py",
    "capture/records.py": f"capture/test_records.py capture/test_notebook.py {_CALLS}",
    "imaging/patch_maps.py": "imaging/test_patch_maps.py imaging/test_overlapping_patches.py results/test_placed.py",
    "imaging/measurement.py": "imaging/test_measured_geometry.py results/test_preprocess.py",
    "imaging/affine_maps.py": "imaging/test_measured_geometry.py results/test_preprocess.py",
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
    "if pixels.shape[-3:] == (height, width):": "what has no border gets one of no pixels",
}
"""Broken lines that behave as the whole ones do, and why."""

SESSION, CONDITIONS = "capture/test_session.py", "capture/test_conditions.py"
CONTEXTS, NEIGHBOURS = "capture/test_contexts.py", "capture/test_neighbours.py"
INVARIANTS, ERRORS, DEPLOYMENTS = "capture/test_invariants.py", "capture/test_errors.py", "capture/test_deployments.py"
COPIED, SDPA_CALLS = "capture/test_copied_maps.py", "capture/test_calls.py"
GUARDS = (
    Guard(
        "compiled models run eagerly",
        "capture/session.py",
        "AttentionCapture._open",
        "statement",
        "_run_eagerly",
        f"{CONDITIONS}::test_three_contexts_in_a_row_on_a_warm_compiled_model",
    ),
    Guard(
        "strict refuses a compiled model",
        "capture/session.py",
        "AttentionCapture._run_eagerly",
        "condition",
        "_strict",
        "capture/test_traceable.py::test_strict_refuses_a_compiled_model_and_leaves_nothing",
    ),
    Guard(
        "hooks run after an exception",
        "capture/hooked_contexts.py",
        "HookedContext._open_scope_during",
        "argument",
        "always_call",
        f"{INVARIANTS}::test_an_exception_closes_its_scope_before_the_context_ends",
    ),
    Guard(
        "scopes close when the context does",
        "capture/scopes.py",
        "ActiveCapture.close",
        "statement",
        "close",
        INVARIANTS,
    ),
    Guard(
        "checkpointing repeats the forward in a backward",
        "capture/torch_internals.py",
        "in_backward",
        "result",
        "",
        f"{CONDITIONS}::test_gradient_checkpointing_records_each_block_once",
        instead="False",
    ),
    Guard(
        "autocast is off around the rows",
        "capture/operands.py",
        "exact_arithmetic",
        "condition",
        "on",
        f"{INVARIANTS} {SESSION} -k autocast or precision",
    ),
    Guard(
        "rows own their bytes",
        "capture/calls.py",
        "finish_together",
        "name",
        "_split_copy",
        "capture/test_families.py capture/test_session.py capture/test_fast_path.py",
        instead="torch.split",
    ),
    Guard(
        "copies of hooks are inert",
        "capture/watched_modules.py",
        "CaptureHook.__reduce__",
        "result",
        "",
        f"{CONDITIONS}::test_copies_made_inside_a_context_are_inert",
        instead="object.__reduce__(self)",
    ),
    Guard(
        "only the context that entered is recorded",
        "capture/hooked_contexts.py",
        "HookedContext._scope",
        "name",
        "innermost",
        CONTEXTS,
        instead="(lambda active, opener: innermost(active, opener) or next(iter(active.scopes)))",
    ),
    Guard(
        "threads of a task have a forward each",
        "capture/forward_log.py",
        "ForwardLog.begin",
        "condition",
        "capture",
        CONTEXTS,
    ),
    Guard(
        "only the capture's own hooks are removed",
        "capture/hooked_contexts.py",
        "HookedContext._undo",
        "operand",
        "capture",
        CONTEXTS,
    ),
    Guard(
        "the grid is read where the patch embedding is called",
        "capture/session.py",
        "AttentionCapture._hook_model",
        "name",
        "first",
        f"{DEPLOYMENTS}::test_partial_forwards_of_timm_show_the_grid {CONDITIONS}::test_a_part_of_the_model_still_shows_the_grid",
        instead="self._plan.model",
    ),
    Guard(
        "tokens must fit the grid",
        "capture/layout.py",
        "TokenLayout.check",
        "condition",
        "num_tokens",
        f"{ERRORS}::test_dropped_patches_leave_rows_and_no_grid capture/test_layout.py",
    ),
    Guard(
        "shuffled patches go back",
        "capture/layout.py",
        "TokenLayout.patches",
        "condition",
        "order",
        f"{CONDITIONS}::test_maes_patches_stand_where_they_were_cut capture/test_layout.py",
    ),
    Guard(
        "no class token is an error",
        "capture/plan.py",
        "_resolve_rows",
        "condition",
        "CLS",
        f"{ERRORS}::test_rows_that_the_model_does_not_have",
    ),
    Guard(
        "the readout follows the head",
        "zoo/_timm.py",
        "_readout",
        "operand",
        "pool",
        "capture/test_families.py zoo/test_timm_plain.py::test_class_tokens_rows_and_maps",
    ),
    Guard(
        "shifts of windows are undone",
        "zoo/_timm_blocks.py",
        "_swin",
        "argument",
        "shift",
        "zoo/test_timm_windows.py -k swin",
    ),
    Guard(
        "attention between channels is left out",
        "zoo/_timm.py",
        "_sites",
        "operand",
        "NOT_TOKENS",
        "zoo/test_timm_plain.py::test_models_without_token_attention_say_what_they_do",
    ),
    Guard(
        "what multiplies the values is recorded",
        "capture/forward_records.py",
        "make_block",
        "name",
        "site",
        "zoo/test_timm_plain.py::test_two_softmaxes_a_block_are_both_kept_and_the_record_says_what_multiplies_values",
        instead="__import__('dataclasses').replace(site, value_multiplier='')",
    ),
    Guard(
        "the call's own scale",
        "capture/calls.py",
        "FastLogits.add",
        "choice",
        "scale",
        f"{SESSION}::test_the_scale_is_that_of_the_call",
    ),
    Guard(
        "the call's own mask",
        "capture/recording.py",
        "SiteRecorder.fused",
        "operand",
        "attn_mask",
        "capture/test_families.py",
    ),
    Guard(
        "names are those of the model inside DDP",
        "capture/wrapped_models.py",
        "unwrapped",
        "condition",
        "DistributedDataParallel",
        f"{DEPLOYMENTS} -k torchrun",
    ),
    Guard(
        "models that run no hooks are refused",
        "capture/wrapped_models.py",
        "unwrapped",
        "condition",
        "kind",
        f"{CONDITIONS}::test_models_without_python_hooks_are_refused_by_name {DEPLOYMENTS}::test_exported_models_are_refused_by_name",
    ),
    Guard(
        "a timm model inside transformers",
        "zoo/_transformers.py",
        "timm_wrapper",
        "result",
        "",
        f"{DEPLOYMENTS}::test_timm_inside_transformers",
        instead="find_anatomy(model.timm_model)",
    ),
    Guard(
        "no graph is kept alive",
        "capture/operands.py",
        "Operands.by_reference",
        "result",
        "",
        f"{CONDITIONS}::test_results_die_with_clear_and_hold_no_graph",
        instead="Operands(self.query, self.key, self.scale, self.mask, self.causal)",
    ),
    Guard(
        "clear forgets", "capture/session.py", "AttentionCapture.clear", "statement", "_log", f"{CONDITIONS} -k clear"
    ),
    Guard(
        "an unwatched kernel is checked",
        "capture/interfaces.py",
        "_check_against_output",
        "condition",
        "allclose",
        f"{CONDITIONS}::test_a_registered_function_that_is_no_softmax_is_refused",
    ),
    Guard(
        "flex attention's masks are refused",
        "capture/interfaces.py",
        "_interface_operands",
        "condition",
        "isinstance",
        f"{DEPLOYMENTS}::test_flex_attention_is_refused_naming_the_kernel",
    ),
    Guard(
        "vmap is refused",
        "capture/recording.py",
        "SiteRecorder._refuse_transforms",
        "condition",
        "in_vmap",
        f"{CONDITIONS}::test_vmap_is_refused_and_does_not_disturb_the_forward",
    ),
    Guard(
        "attention outside every recognised module is an error",
        "capture/forward_records.py",
        "_calls_by_name",
        "condition",
        "unexpected",
        "capture/test_recognition.py",
    ),
    Guard(
        "queries in chunks are not the sequence",
        "capture/recording.py",
        "SiteRecorder._check_sequence",
        "condition",
        "whole",
        SDPA_CALLS,
    ),
    Guard("operands are broadcast", "capture/operands.py", "_broadcast", "choice", "shape", SDPA_CALLS),
    Guard(
        "overwritten operands are noticed",
        "capture/softmax_matrix.py",
        "SoftmaxMatrix._unchanged",
        "condition",
        "_versions",
        SDPA_CALLS,
    ),
    Guard(
        "overwritten operands are noticed in a copy",
        "capture/softmax_matrix.py",
        "SoftmaxMatrix.__getstate__",
        "result",
        "",
        f"{COPIED}::test_what_was_overwritten_is_not_laundered_by_a_copy",
        instead="self._source",
    ),
    Guard(
        "operands of inference mode are copied",
        "capture/operands.py",
        "_owned",
        "operand",
        "is_inference",
        f"{COPIED}::test_what_a_model_overwrites_in_inference_mode_is_kept_as_it_was",
    ),
    Guard(
        "parametrised weights are not read",
        "capture/multihead.py",
        "multihead_operands",
        "statement",
        "refuse_parametrised",
        "capture/test_parametrised.py",
    ),
    Guard(
        "maps that were read are complete",
        "capture/forward_log.py",
        "ForwardLog.record_for",
        "operand",
        "maps",
        SDPA_CALLS,
    ),
    Guard(
        "a compiler sees no replacement",
        "capture/shared_state.py",
        "ReplacedFunction._passing",
        "condition",
        "is_compiling",
        f"{NEIGHBOURS} -k compiled",
    ),
    Guard(
        "torch's own function is back between modules",
        "capture/scopes.py",
        "Scope._unwatch",
        "statement",
        "release",
        f"{NEIGHBOURS} {INVARIANTS}",
    ),
    Guard(
        "the last to leave restores the compiler",
        "capture/shared_state.py",
        "SharedState.release",
        "choice",
        "_holders",
        NEIGHBOURS,
    ),
    Guard(
        "another stance stays", "capture/shared_state.py", "EagerStance._restore", "choice", "force_eager", NEIGHBOURS
    ),
    Guard(
        "a context that was left elsewhere holds nothing",
        "capture/scopes.py",
        "ActiveCapture.close",
        "statement",
        "opener",
        CONTEXTS,
    ),
    Guard(
        "forwards are kept apart",
        "capture/forward_log.py",
        "ForwardLog.begin",
        "operand",
        "is_empty",
        f"{CONDITIONS}::test_forwards_inside_another_or_past_the_model_are_kept_apart",
    ),
    Guard(
        "a forward inside a forward is its own",
        "capture/session.py",
        "AttentionCapture._hook_model",
        "condition",
        "forward",
        CONTEXTS,
    ),
    Guard(
        "a forward inside a forward ends before it",
        "capture/forward_log.py",
        "ForwardLog.end",
        "condition",
        "record",
        CONTEXTS,
    ),
    Guard(
        "forwards that cannot be told apart are an error",
        "capture/forward_log.py",
        "ForwardLog.record_for",
        "condition",
        "outer",
        CONTEXTS,
    ),
    Guard(
        "a replacement that was put back goes at the next call",
        "capture/shared_state.py",
        "ReplacedFunction._passing",
        "condition",
        "_read",
        NEIGHBOURS,
    ),
    Guard(
        "another hook that attends belongs to no block",
        "capture/session.py",
        "AttentionCapture._hook_site",
        "argument",
        "prepend",
        NEIGHBOURS,
    ),
    Guard(
        "an nn.MultiheadAttention inside a watched module keeps its fast path",
        "capture/scopes.py",
        "Scope.open",
        "condition",
        "outer",
        SDPA_CALLS,
    ),
    Guard(
        "encoder layers that share weights are refused",
        "capture/encoder_layers.py",
        "_recognised",
        "choice",
        "len",
        "zoo/test_other_libraries.py",
    ),
    Guard(
        "PostScript is not opened",
        "imaging/images.py",
        "_opened",
        "condition",
        "EPS",
        "imaging/test_images.py::test_postscript_is_not_run",
    ),
    Guard(
        "configurations name models only",
        "zoo/loading.py",
        "_load_transformers",
        "condition",
        "issubclass",
        "zoo/test_loading_libraries.py -k config_may_not_name",
    ),
    Guard(
        "no code in a file's name is offered",
        "zoo/checkpoints.py",
        "not_safetensors",
        "choice",
        "_SAFE_IN_SHELL",
        "zoo/test_checkpoints.py",
    ),
    Guard(
        "cached measurements are sealed",
        "comparison/measurements.py",
        "Measurement.load",
        "condition",
        "seal",
        "comparison/test_compare.py -k cache_that_lies",
    ),
    Guard("a waiting link is not followed", "files.py", "replacing", "statement", "unlink", "test_files.py"),
)
"""What is guarded against: where, which part of the function is taken out, and the tests that must notice."""


def chosen(files: list[str]) -> list[Mutant]:
    """The lines that are broken, in order."""
    names = [file for file in files if file in SUITES] or [*SUITES] * (not files)
    return [m for file in names for m in mutants_of((ROOT / "attnhook" / file).read_text(), file, A_FILE)]


def verdict(mutant: Mutant | Guard, tree: Path) -> str:
    """`"noticed"`, `"alike"`, `"UNNOTICED"`, or what went wrong."""
    file, marks = tree / "attnhook" / mutant.file, "not gpu" if isinstance(mutant, Guard) else MARKS
    tests = pytest_arguments(mutant.tests if isinstance(mutant, Guard) else SUITES[mutant.file])
    check_whole(tuple(tests), tree, marks)
    found = broken_verdict(file, mutant.applied(file.read_text()), tests, tree, marks)
    excused = isinstance(mutant, Mutant) and mutant.broken.strip() in ALIKE
    return "alike" if found == "UNNOTICED" and excused else found


def pytest_arguments(tests: str) -> list[str]:
    """Tests below `tests/` and a choice after `-k`, as pytest takes them."""
    names, _, choice = tests.partition(" -k ")
    return [f"tests/{name}" for name in names.split()] + (["-k", choice] if choice else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", help="such as capture/layout.py (default: the whole core)")
    parser.add_argument("--guards", action="store_true", help="only break guards")
    parser.add_argument("--list", action="store_true", help="only say what would be broken")
    options = parser.parse_args()
    guards = [guard for guard in GUARDS if not options.files or guard.file in options.files]
    mutants = [] if options.guards else chosen(options.files)
    if options.list:
        print(*guards, *mutants, sep="\n")
        return 0
    load_libraries()
    found: dict[Guard | Mutant, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(folder)
        for broken in (*guards, *mutants):
            found[broken] = verdict(broken, tree)
            print(f"{found[broken]:10} {broken}", flush=True)
    missed = sum(found[guard] != "noticed" for guard in guards)
    lines = [found[mutant] for mutant in mutants]
    noticed, alike = lines.count("noticed"), lines.count("alike")
    print(f"{len(guards) - missed} of {len(guards)} guards noticed")
    print(f"{noticed} of {len(lines)} lines noticed, {alike} survivors behave as the whole line does")
    return int(missed > 0 or noticed < ENOUGH * len(lines) or noticed + alike < len(lines))


if __name__ == "__main__":
    sys.exit(main())
