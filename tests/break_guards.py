"""Breaks one guard of the library at a time and sees that a test fails: proof that the tests hold what they claim.

    python -m tests.break_guards            # all, a few minutes
    python -m tests.break_guards 3 7        # the guards against these traps

A copy of the tree is broken, never the tree itself; its tests have to pass before. Exit status 1 if a broken guard went unnoticed, or its
line is not there any more.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.broken_trees import broken_verdict, check_whole, copied_tree, load_libraries


@dataclass(frozen=True)
class Guard:
    """A guard and what is left when it is broken.

    Attributes:
        trap: What it guards against, in words, its number in front.
        file: In `attnhook/`.
        line: The text that is replaced; it must stand there exactly once.
        broken: What replaces it.
        tests: What must fail, below `tests/`.
    """

    trap: str
    file: str
    line: str
    broken: str
    tests: str


SESSION, CONDITIONS = "capture/test_session.py", "capture/test_conditions.py"
COPIED = "capture/test_copied_maps.py"
CONTEXTS, NEIGHBOURS = "capture/test_contexts.py", "capture/test_neighbours.py"
INVARIANTS, ERRORS, DEPLOYMENTS = "capture/test_invariants.py", "capture/test_errors.py", "capture/test_deployments.py"
GUARDS = (
    Guard(
        "1 compiled models run eagerly",
        "capture/session.py",
        "        self._run_eagerly(entry)\n",
        "",
        f"{CONDITIONS}::test_three_contexts_in_a_row_on_a_warm_compiled_model",
    ),
    Guard(
        "1 strict refuses a compiled model",
        "capture/session.py",
        "        if self._strict:",
        "        if False:",
        "capture/test_traceable.py::test_strict_refuses_a_compiled_model_and_leaves_nothing",
    ),
    Guard(
        "2 hooks run after an exception",
        "capture/session.py",
        "After(before, then), always_call=True, **options",
        "After(before, then), **options",
        f"{INVARIANTS}::test_an_exception_closes_its_scope_before_the_context_ends",
    ),
    Guard(
        "2 scopes close when the context does",
        "capture/scopes.py",
        "            scope.close()\n            # Another",
        "            # Another",
        INVARIANTS,
    ),
    Guard(
        "3 checkpointing repeats the forward in backward",
        "capture/torch_internals.py",
        "return torch._C._current_graph_task_id() != -1",
        "return False",
        f"{CONDITIONS}::test_gradient_checkpointing_records_each_block_once",
    ),
    Guard(
        "4 autocast off around the rows",
        "capture/operands.py",
        "on = torch.is_autocast_enabled(asked)",
        "on = False",
        f"{INVARIANTS} {SESSION} -k autocast or precision",
    ),
    Guard(
        "5 rows own their bytes",
        "capture/fast_path.py",
        "_split_copy(torch.softmax(first.logits * first.scale, dim=-1), batch)",
        "torch.softmax(first.logits * first.scale, dim=-1).split(batch)",
        "capture/test_families.py capture/test_session.py capture/test_fast_path.py",
    ),
    Guard(
        "6 copies of hooks are inert",
        "capture/hooks.py",
        "        return InertHook, ()",
        "        return object.__reduce__(self)",
        f"{CONDITIONS}::test_copies_made_inside_a_context_are_inert",
    ),
    Guard(
        "7 only the context that entered is recorded",
        "capture/session.py",
        "        scope = innermost(entry)\n        if scope is None:",
        "        scope = innermost(entry) or next(iter(entry.scopes))\n        if scope is None:",
        CONTEXTS,
    ),
    Guard(
        "7 a context that was left elsewhere holds nothing",
        "capture/scopes.py",
        "            scope.record, scope.opener, scope.listener, scope.holds = ForwardRecord(), None, None, ()",
        "            pass  # another",
        CONTEXTS,
    ),
    Guard(
        "7 threads of a task have a forward each",
        "capture/forward_log.py",
        "                scope.replace(record)",
        "                scope.record = record",
        CONTEXTS,
    ),
    Guard(
        "8 nested captures both see",
        "capture/scopes.py",
        "        if all(scope.entry is not other.entry for other in found):",
        "        if not found:",
        f"{CONDITIONS}::test_nested_captures_both_see_every_call_once",
    ),
    Guard(
        "8 only the own hooks are removed",
        "capture/session.py",
        "isinstance(hook, Hook) and hook.follower is self",
        "isinstance(hook, Hook)",
        CONTEXTS,
    ),
    Guard(
        "9 the grid is read at the patch embedding",
        "capture/session.py",
        "first = self._plan.model if anatomy.image_module is None else anatomy.image_module",
        "first = self._plan.model",
        f"{DEPLOYMENTS}::test_partial_forwards_of_timm_show_the_grid "
        f"{CONDITIONS}::test_a_part_of_the_model_still_shows_the_grid",
    ),
    Guard(
        "10 forwards are kept apart",
        "capture/forward_log.py",
        "        if shared or record.maps is not None or not record.is_empty():",
        "        if record.maps is not None:",
        f"{CONDITIONS}::test_forwards_of_several_sizes_pausing_and_clearing",
    ),
    Guard(
        "11 all calls of a module are kept",
        "capture/forward_records.py",
        "    for call in record.calls:\n",
        "    for call in {call.site: call for call in record.calls}.values():\n",
        "zoo/test_timm_plain.py::test_two_softmaxes_a_block_are_both_kept_and_the_record_says_what_multiplies_values",
    ),
    Guard(
        "12 tokens must fit the grid",
        "capture/layout.py",
        "        if num_tokens != self.num_tokens:",
        "        if False:",
        f"{ERRORS}::test_dropped_patches_leave_rows_and_no_grid capture/test_layout.py",
    ),
    Guard(
        "12 shuffled patches go back",
        "capture/layout.py",
        "        if self.order is not None:\n            patches = self._unshuffle(patches, self.order)\n",
        "",
        f"{CONDITIONS}::test_maes_patches_stand_where_they_were_cut capture/test_layout.py",
    ),
    Guard(
        "13 no class token is an error",
        "capture/plan.py",
        "if kind is Rows.CLS and anatomy.cls is None:",
        "if False:",
        f"{ERRORS}::test_rows_that_the_model_does_not_have",
    ),
    Guard(
        "13 the readout follows the head",
        "zoo/_timm.py",
        'if has_class_token and pool in ("token", "", None):',
        "if has_class_token:",
        "capture/test_families.py zoo/test_timm_plain.py::test_class_tokens_rows_and_maps",
    ),
    Guard(
        "14 shifts of windows are undone",
        "zoo/_timm_blocks.py",
        "shift=pair(block.shift_size))",
        "shift=(0, 0))",
        "zoo/test_timm_windows.py -k swin",
    ),
    Guard(
        "15 channel attention is no attention between tokens",
        "zoo/_timm.py",
        "class_of(module).__name__ not in NOT_TOKENS and attends(module)",
        "attends(module)",
        "zoo/test_timm_plain.py::test_models_without_token_attention_say_what_they_do",
    ),
    Guard(
        "16 the record says what multiplies the values",
        "capture/forward_records.py",
        "queries, site.value_multiplier, call.gradients",
        "queries, '', call.gradients",
        "zoo/test_timm_plain.py::test_two_softmaxes_a_block_are_both_kept_and_the_record_says_what_multiplies_values",
    ),
    Guard(
        "17 rows are those before dropout",
        "capture/recording.py",
        "copied = chosen.to(torch.float64",
        "copied = torch.nn.functional.dropout(chosen, 0.5).to(torch.float64",
        f"{INVARIANTS}::test_dropout_draws_the_same_numbers_and_rows_are_those_before_it",
    ),
    Guard(
        "18 the call's own scale",
        "capture/fast_path.py",
        "self._scale if scale is None else float(scale)",
        "self._scale",
        f"{SESSION}::test_the_scale_is_that_of_the_call",
    ),
    Guard(
        "18 the call's own mask",
        "capture/recording.py",
        '            and kwargs.get("attn_mask") is None\n',
        "",
        "capture/test_families.py",
    ),
    Guard(
        "19 names are those of the model inside DDP",
        "capture/plan.py",
        "        inner = model.module\n",
        "        inner = None\n",
        f"{DEPLOYMENTS} -k torchrun",
    ),
    Guard(
        "19 DataParallel is refused",
        "capture/plan.py",
        "if isinstance(model, nn.DataParallel):",
        "if False:",
        f"{SESSION} {CONDITIONS} {ERRORS}",
    ),
    Guard(
        "20 a timm model in transformers' clothes",
        "zoo/_transformers.py",
        'return inner.under("timm_model")',
        "return inner",
        f"{DEPLOYMENTS}::test_timm_inside_transformers",
    ),
    Guard(
        "21 scripted models are refused",
        "capture/plan.py",
        "if isinstance(model, torch.jit.ScriptModule):",
        "if False:",
        f"{CONDITIONS}::test_models_without_python_hooks_are_refused_by_name",
    ),
    Guard(
        "21 exported models are refused",
        "capture/plan.py",
        "if isinstance(model, torch.fx.GraphModule):",
        "if False:",
        f"{DEPLOYMENTS}::test_exported_models_are_refused_by_name",
    ),
    Guard(
        "22 no graph hangs on what is kept",
        "capture/operands.py",
        "return Operands(self.query.detach(), self.key.detach(), self.scale",
        "return Operands(self.query, self.key, self.scale",
        f"{CONDITIONS}::test_results_die_with_clear_and_hold_no_graph",
    ),
    Guard(
        "22 clear forgets",
        "capture/session.py",
        "        self._log.clear()\n",
        "",
        f"{CONDITIONS} -k clear",
    ),
    Guard(
        "23 an unseen kernel is checked",
        "capture/interfaces.py",
        "if got.shape != expected.shape or not",
        "if False and not",
        f"{CONDITIONS}::test_a_registered_function_that_is_no_softmax_is_refused",
    ),
    Guard(
        "23 flex attention's masks are refused",
        "capture/interfaces.py",
        "if mask is not None and not isinstance(mask, Tensor):",
        "if False:",
        f"{DEPLOYMENTS}::test_flex_attention_is_refused_naming_the_kernel",
    ),
    Guard(
        "vmap is refused",
        "capture/recording.py",
        "        if in_vmap():",
        "        if False:",
        f"{CONDITIONS}::test_vmap_is_refused_and_does_not_disturb_the_forward",
    ),
    Guard(
        "calls outside every recognised module are loud",
        "capture/forward_records.py",
        "    if record.strangers:",
        "    if False:",
        "capture/test_recognition.py",
    ),
    Guard(
        "queries in chunks are no sequence",
        "capture/recording.py",
        "        if self._of_sequence and not whole:",
        "        if False:",
        "capture/test_calls.py",
    ),
    Guard(
        "operands are broadcast",
        "capture/operands.py",
        "return Operands(*_broadcast(query, key), number",
        "return Operands(query, key, number",
        "capture/test_calls.py",
    ),
    Guard(
        "overwritten operands are missed",
        "capture/softmax_matrix.py",
        "if _versions(self._source) != self._versions:",
        "if False:",
        "capture/test_calls.py",
    ),
    Guard(
        "45 a copy counts anew what is written to it",
        "capture/softmax_matrix.py",
        "self._source, self._versions = source, _versions(source)  # a copy's",
        "self._source, self._versions = source, (-1,)  # a copy's",
        f"{COPIED}::test_a_copy_equals_the_original",
    ),
    Guard(
        "45 what was overwritten is not laundered by a copy",
        "capture/softmax_matrix.py",
        "        return self._unchanged()\n\n    def __setstate__",
        "        return self._source\n\n    def __setstate__",
        f"{COPIED}::test_what_was_overwritten_is_not_laundered_by_a_copy",
    ),
    Guard(
        "45 operands of inference mode are copied",
        "capture/operands.py",
        "if not tensor.is_inference() and (with_values",
        "if (with_values",
        f"{COPIED}::test_what_a_model_overwrites_in_inference_mode_is_kept_as_it_was",
    ),
    Guard(
        "48 a boolean mask is added as the kernels add it",
        "capture/operands.py",
        'logits = logits.add_(torch.where(mask, 0.0, float("-inf")) if mask.dtype is torch.bool else mask)',
        'logits = logits.masked_fill_(~mask, float("-inf")) if mask.dtype is torch.bool else logits.add_(mask)',
        "capture/test_nan_keys.py",
    ),
    Guard(
        "parametrised weights are not read",
        "capture/multihead.py",
        "    refuse_parametrised(module)\n    if",
        "    if",
        "capture/test_parametrised.py",
    ),
    Guard(
        "maps that were read are whole",
        "capture/forward_log.py",
        "if past or record.maps is not None:",
        "if past:",
        "capture/test_calls.py",
    ),
    Guard(
        "37 a compiler sees no replacement",
        "capture/shared_state.py",
        "            if torch.compiler.is_compiling():\n                return original(*args, **kwargs)\n",
        "",
        f"{NEIGHBOURS} -k compiled",
    ),
    Guard(
        "37 the function is torch's own between modules",
        "capture/scopes.py",
        "        for function in self.holds:\n            function.release(self)\n",
        "        pass\n",
        f"{NEIGHBOURS} {INVARIANTS}",
    ),
    Guard(
        "39 the last to leave puts the compiler back",
        "capture/shared_state.py",
        "            if not self._holders:\n",
        "            if True:\n",
        NEIGHBOURS,
    ),
    Guard(
        "39 a stance of somebody else stays",
        "capture/shared_state.py",
        'if compiler_stance().stance == "force_eager":',
        "if True:",
        NEIGHBOURS,
    ),
    Guard(
        "40 a forward inside a forward is one of its own",
        "capture/session.py",
        "record = ForwardRecord(inputs=dict(around.record.inputs)) if forward else around.record",
        "record = around.record",
        CONTEXTS,
    ),
    Guard(
        "40 the last forward is the last to end",
        "capture/forward_log.py",
        "            records.remove(record)\n            records.append(record)\n",
        "            pass\n",
        CONTEXTS,
    ),
    Guard(
        "40 forwards that cannot be told apart are loud",
        "capture/forward_log.py",
        "if outer is not None and record.count(site) and not outer.count(site):",
        "if False:",
        CONTEXTS,
    ),
    Guard(
        "47 a replacement that somebody put back is unwrapped",
        "capture/shared_state.py",
        "original = _unwrapped(self._read())",
        "original = self._read()",
        NEIGHBOURS,
    ),
    Guard(
        "47 a replacement that somebody put back goes at the next call",
        "capture/shared_state.py",
        "if not self._active and self._read() is passing:",
        "if False:",
        NEIGHBOURS,
    ),
    Guard(
        "a hook of others that attends is no block's",
        "capture/session.py",
        "recorder.ran, prepend=True, with_kwargs",
        "recorder.ran, with_kwargs",
        NEIGHBOURS,
    ),
    Guard(
        "an nn.MultiheadAttention inside a watched module keeps its fast path",
        "capture/scopes.py",
        "        if outer is not None:\n            outer.suspend()\n",
        "",
        "capture/test_calls.py",
    ),
    Guard(
        "Ctrl-C while a capture is left",
        "capture/session.py",
        "        except BaseException:  # Ctrl-C while it was undone\n            self._undo()\n            raise\n",
        "        finally:\n            pass\n",
        "capture/test_interrupts.py",
    ),
    Guard(
        "encoder layers that share weights are refused",
        "capture/encoder_layers.py",
        "            if len(found) == 1:\n",
        "            if True:\n",
        "zoo/test_other_libraries.py",
    ),
    Guard(
        "security: PostScript is not opened",
        "imaging/images.py",
        'if opened.format == "EPS":',
        "if False:",
        "imaging/test_images.py::test_postscript_is_not_run",
    ),
    Guard(
        "security: configurations name models only",
        "zoo/loading.py",
        "if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):",
        "if kind is None:",
        "zoo/test_loading_libraries.py -k config_may_not_name",
    ),
    Guard(
        "security: no code of a file's name is offered",
        "zoo/checkpoints.py",
        "if _PLAIN.fullmatch(path.name) else",
        "if True else",
        "zoo/test_checkpoints.py",
    ),
    Guard(
        "security: cached measurements are sealed",
        "comparison/measurements.py",
        'if header["seal"] != _seal(path, header["measurement"], tensors):',
        "if False:",
        "comparison/test_compare.py -k cache_that_lies",
    ),
    Guard(
        "security: a waiting link is not followed",
        "files.py",
        "    temporary.unlink(missing_ok=True)  # a link that somebody left there would be followed\n",
        "",
        "test_files.py",
    ),
    Guard(
        "security: pages allow one script",
        "pages/documents.py",
        "script-src '{_digest(script)}'",
        "script-src 'unsafe-inline'",
        "pages/test_documents.py",
    ),
)


def tests_of(guard: Guard) -> list[str]:
    """What pytest is asked to run for a guard."""
    names, _, chosen = guard.tests.partition(" -k ")
    return [f"tests/{name}" for name in names.split()] + (["-k", chosen] if chosen else [])


def notices(guard: Guard, tree: Path) -> str:
    """Whether the tests of a guard fail without it: `"noticed"`, or what went wrong."""
    file = tree / "attnhook" / guard.file
    text = file.read_text()
    if text.count(guard.line) != 1:
        return f"STALE: its line stands {text.count(guard.line)} times in {guard.file}"
    return broken_verdict(file, text.replace(guard.line, guard.broken), tests_of(guard), tree)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("traps", nargs="*", help="numbers of traps (default: all)")
    wanted = parser.parse_args().traps
    guards = [guard for guard in GUARDS if not wanted or guard.trap.partition(" ")[0] in wanted]
    failures = 0
    load_libraries()
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(folder)
        for guard in guards:
            check_whole(tuple(tests_of(guard)), tree)
            outcome = notices(guard, tree)
            failures += outcome != "noticed"
            print(f"{guard.trap:60} {outcome}", flush=True)
    print(f"{failures} of them unnoticed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
