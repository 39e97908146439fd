"""The overhead benchmark's own arithmetic, order of work and checks. No test asserts a real time or a real amount of memory."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def overhead():
    """The script, loaded from its path as Python does when it runs it: with its folder first on sys.path."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield _load("overhead")
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in {"timing", "overhead", "overhead_cases"} - before:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def timing(overhead):
    return sys.modules["timing"]


@pytest.fixture(scope="module")
def cases(overhead):
    return sys.modules["overhead_cases"]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class FakeClock:
    """Stands still unless a candidate moves it."""

    def __init__(self):
        self.now = 0.0
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return self.now

    def task(self, *durations, log=None, name=""):
        """A candidate whose successive runs take these seconds, again from the start when they are used up."""
        state = {"runs": 0}

        def run():
            self.now += durations[state["runs"] % len(durations)]
            state["runs"] += 1
            if log is not None:
                log.append(name)

        return run


# --- timing -------------------------------------------------------------------------------------------------------------------------------


def test_every_candidate_runs_once_a_round_in_changing_order(timing):
    clock, log = FakeClock(), []
    candidates = {name: clock.task(1.0, log=log, name=name) for name in "abcd"}
    timing.interleave(candidates, 20, warmup=2, clock=clock)
    rounds = [tuple(log[i : i + 4]) for i in range(0, len(log), 4)]
    assert len(rounds) == 22
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len(set(rounds)) > 5
    assert {order[0] for order in rounds} == set("abcd")


def test_order_repeats_with_the_seed_only(timing):
    def order(seed):
        clock, log = FakeClock(), []
        timing.interleave({n: clock.task(1.0, log=log, name=n) for n in "abcd"}, 10, seed=seed, clock=clock)
        return log

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_warmup_runs_and_is_not_counted(timing):
    clock = FakeClock()
    # The first two runs are slow, as first runs are.
    seconds = timing.interleave({"a": clock.task(100.0, 50.0, 1.0, 2.0, 3.0)}, 3, warmup=2, clock=clock)
    assert seconds == {"a": [1.0, 2.0, 3.0]}


def test_time_covers_the_run_and_nothing_else(timing):
    clock = FakeClock()
    candidates = {"short": clock.task(0.25), "long": clock.task(4.0)}
    assert timing.interleave(candidates, 5, clock=clock) == {"short": [0.25] * 5, "long": [4.0] * 5}
    assert clock.reads == 2 * 2 * 5


def test_a_result_is_freed_inside_its_own_time(timing):
    clock = FakeClock()

    class Costly:
        def __del__(self):
            clock.now += 7.0

    assert timing.interleave({"a": Costly}, 2, clock=clock) == {"a": [7.0, 7.0]}


def test_ratios_divide_round_by_round(timing):
    seconds = {
        "bare": [1.0, 2.0, 4.0],
        "ours": [1.1, 2.2, 4.0],
        "theirs": [6.0, 6.0, 6.0],
        "their base": [3.0, 2.0, 1.0],
    }
    found = timing.ratios(seconds, {"ours": "bare", "theirs": "their base"})
    assert set(found) == {"ours", "theirs"}
    assert found["ours"] == pytest.approx([1.1, 1.1, 1.0])
    assert found["theirs"] == pytest.approx([2.0, 3.0, 6.0])


def test_ratios_cancel_a_machine_that_slows_down(timing):
    clock = FakeClock()
    candidates = {"bare": clock.task(1.0, 3.0, 9.0), "ours": clock.task(1.5, 4.5, 13.5)}
    seconds = timing.interleave(candidates, 9, clock=clock)
    assert timing.ratios(seconds, {"ours": "bare"})["ours"] == pytest.approx([1.5] * 9)


@pytest.mark.parametrize(
    "values, expected",
    [([3.0], (3.0, 3.0, 3.0, 1)), ([5.0, 1.0, 2.0, 4.0, 3.0], (3.0, 2.0, 4.0, 5)), ([1.0, 2.0], (1.5, 1.25, 1.75, 2))],
)
def test_summary_is_median_and_quartiles(timing, values, expected):
    assert timing.summarise(values) == timing.Summary(*expected)


def test_extra_memory_is_difference_of_medians_of_fresh_processes(timing):
    peaks = {"bare": [100, 900, 110], "ours": [115, 120, 400], "theirs": [70, 60, 50], "their base": [50, 50, 50]}
    probed = []

    def probe(name):
        probed.append(name)
        return peaks[name][probed.count(name) - 1]

    extra = timing.extra_memory(list(peaks), {"ours": "bare", "theirs": "their base"}, probe)
    assert extra == {"ours": 10, "theirs": 10}
    assert {name: probed.count(name) for name in peaks} == dict.fromkeys(peaks, 3)


# --- order of work ------------------------------------------------------------------------------------------------------------------------


def test_results_are_checked_before_anything_is_timed(overhead, cases):
    clock = FakeClock()
    reads_at_check = []

    def check(result):
        reads_at_check.append((clock.reads, result))
        return 1e-7

    candidates = {
        "bare": cases.Candidate(clock.task(2.0)),
        "attnhook, all blocks": cases.Candidate(lambda: "result", "bare", check),
        "peer": cases.Candidate(clock.task(3.0), "bare"),
    }
    found = {result.candidate: result for result in overhead.measure("case", candidates, 4, warmup=1, clock=clock)}
    assert reads_at_check == [(0, "result")]
    assert found["bare"].ratio is None
    assert found["peer"].ratio.median == 1.5
    assert found["peer"].milliseconds == sys.modules["timing"].Summary(3000.0, 3000.0, 3000.0, 4)
    assert found["attnhook, all blocks"].row_error == 1e-7
    assert found["peer"].row_error is None


def test_a_wrong_result_is_never_timed(overhead, cases):
    clock = FakeClock()

    def check(result):
        raise cases.CheckError("block 3: rows differ")

    candidates = {"bare": cases.Candidate(clock.task(1.0)), "ours": cases.Candidate(clock.task(1.0), "bare", check)}
    with pytest.raises(cases.CheckError, match="ours: block 3: rows differ"):
        overhead.measure("case", candidates, 5, clock=clock)
    assert clock.reads == 0


def test_choosing_a_candidate_keeps_its_base_and_the_noise_floor(overhead, cases):
    candidates = cases.Case(cases.CASES["vit_tiny-b1"]).candidates()
    assert set(overhead.chosen(candidates, ["HF eager"])) == {"bare", "bare again", "HF bare", "HF eager"}
    assert set(overhead.chosen(candidates, ["attnhook, last block"])) == {"bare", "bare again", "attnhook, last block"}
    assert overhead.chosen(candidates, None) == candidates
    compiled = cases.Case(cases.CASES["vit_tiny-b1-compiled"]).candidates()
    assert set(overhead.chosen(compiled, ["TraceableCapture, compiled"])) == set(compiled)
    assert set(overhead.chosen(compiled, ["HF eager"])) == {"compiled", "compiled again"}


def test_unknown_names_are_refused_before_anything_runs(overhead, capsys):
    for option in ("--candidates", "--cases"):
        with pytest.raises(SystemExit) as exit_:
            overhead.main([option, "attnhok"])
        assert exit_.value.code == 2
        assert "invalid choice: 'attnhok'" in capsys.readouterr().err


# --- checks of results --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def result():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, 3, 1, 50, generator=generator).softmax(-1) for _ in range(2)]
    return torch.randn(2, 10, generator=generator), rows


def test_check_accepts_right_rows(cases, result):
    output, rows = result
    assert cases.check_capture((output.clone(), [row.clone() for row in rows]), output, rows) == 0.0


def _uniform(row):
    return torch.full_like(row, 1 / row.shape[-1])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (_uniform, "rows differ"),
        (lambda row: row.roll(1, dims=1), "rows differ"),
        (lambda row: row + 3e-5, "rows differ"),
        (lambda row: row * (1 + 2e-5), "sums of rows"),
        (lambda row: row * float("nan"), "rows differ"),
        (lambda row: row[:1], "expected shape"),
    ],
    ids=["uniform", "other-head", "shifted", "unnormalised", "nan", "half-batch"],
)
def test_check_rejects_wrong_rows(cases, result, spoil, message):
    output, rows = result
    with pytest.raises(cases.CheckError, match=message):
        cases.check_capture((output, [rows[0], spoil(rows[1])]), output, rows)


def test_check_holds_long_rows_to_their_own_spread(cases):
    row = torch.randn(1, 1, 1, 4097, generator=torch.Generator().manual_seed(0)).mul(0.05).softmax(-1)
    assert (row - _uniform(row)).abs().max() < 1e-4
    wrong = (
        row + 1e-5 * torch.tensor([1.0, -1.0]).repeat(2049)[:4097]
    )  # under 2e-05, yet of the size of the row's structure
    with pytest.raises(cases.CheckError, match="rows differ"):
        cases.check_capture((torch.zeros(1), [wrong]), torch.zeros(1), [row])


def test_check_rejects_a_missing_block_and_a_moved_output(cases, result):
    output, rows = result
    with pytest.raises(cases.CheckError, match="expected 2 blocks, got 1"):
        cases.check_capture((output, rows[1:]), output, rows)
    with pytest.raises(cases.CheckError, match="output differs"):
        cases.check_capture((output + 1e-6, rows), output, rows)


def test_check_allows_the_outputs_of_two_graphs_to_differ_by_a_stated_tolerance(cases, result):
    output, rows = result
    assert cases.check_capture((output + 5e-6, rows), output, rows, tolerance=1e-5) == 0.0
    for other, message in ((output + 5e-5, "differs from the bare one by 5.0e-05"), (output * float("nan"), "by nan")):
        with pytest.raises(cases.CheckError, match=message):
            cases.check_capture((other, rows), output, rows, tolerance=1e-5)
    with pytest.raises(cases.CheckError, match="has shape"):
        cases.check_capture((output[:1], rows), output, rows)


def test_check_rejects_peers_that_return_nothing(cases):
    with pytest.raises(cases.CheckError, match="expected 12 attention matrices, got 0"):
        cases.check_matrices((), 12)
    with pytest.raises(cases.CheckError, match="square"):
        cases.check_matrices([torch.full((1, 1, 1, 4), 0.25)], 1)
    with pytest.raises(cases.CheckError, match="sums of rows"):
        cases.check_matrices([torch.zeros(1, 1, 4, 4)], 1)


# --- the whole script on tiny images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_cases(overhead, cases, monkeypatch):
    specs = {"tiny": cases.Spec("vit_tiny_patch16_224", 32, 2, 2)}
    monkeypatch.setattr(overhead, "CASES", specs)
    threads = torch.get_num_threads()
    yield overhead
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def test_script_measures_every_candidate_and_writes_json(tiny_cases, tmp_path, capsys):
    from timm.layers import use_fused_attn

    path = tmp_path / "overhead.json"
    assert tiny_cases.main(["--warmup", "0", "--no-memory", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(path.read_text())
    assert {"torch", "timm", "transformers", "cpu", "threads", "date", "warmup"} <= set(written["configuration"])
    found = {result["candidate"]: result for result in written["results"]}
    assert set(found) == {
        "bare",
        "bare again",
        "attnhook, all blocks",
        "attnhook, last block",
        "rows alone",
        "timm AttentionExtract",
        "HF bare",
        "HF eager",
    }
    for name, result in found.items():
        assert f"| tiny | {name}" in printed
        assert result["milliseconds"]["repeats"] == 2
    assert found["HF eager"]["base"] == "HF bare"
    assert found["attnhook, last block"]["construction_ms"] > 0
    assert use_fused_attn()


@pytest.mark.filterwarnings("ignore")
def test_script_measures_the_compiled_case(tiny_cases, cases, tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "BACKEND", "eager")
    monkeypatch.setitem(tiny_cases.CASES, "tiny", cases.Spec("vit_tiny_patch16_224", 32, 2, 2, compiled=True))
    path = tmp_path / "overhead.json"
    assert tiny_cases.main(["--warmup", "0", "--no-memory", "--json", str(path)]) == 0
    found = {result["candidate"]: result for result in json.loads(path.read_text())["results"]}
    assert [(name, result["base"]) for name, result in found.items()] == [
        ("compiled", None),
        ("compiled again", "compiled"),
        ("TraceableCapture, compiled", "compiled"),
    ]
    assert 0 < found["TraceableCapture, compiled"]["row_error"] < 2e-5


def test_compiled_rows_and_output_are_checked(tiny_cases, cases, monkeypatch, capsys):
    monkeypatch.setattr(cases, "BACKEND", "eager")
    monkeypatch.setitem(tiny_cases.CASES, "tiny", cases.Spec("vit_tiny_patch16_224", 32, 2, 2, compiled=True))
    for tolerance, said in (("ROW_TOLERANCE", "block 0: rows differ"), ("COMPILED_TOLERANCE", "the output differs")):
        with monkeypatch.context() as patch:
            patch.setattr(cases, tolerance, -1.0)
            assert tiny_cases.main(["--no-memory"]) == 1
        assert f"tiny: wrong result: TraceableCapture, compiled: {said}" in capsys.readouterr().err


def test_script_exits_1_on_a_wrong_result(tiny_cases, cases, monkeypatch, capsys):
    monkeypatch.setattr(cases, "ROW_TOLERANCE", -1.0)
    assert tiny_cases.main(["--no-memory"]) == 1
    assert "tiny: wrong result: attnhook, all blocks: block 0: rows differ" in capsys.readouterr().err
