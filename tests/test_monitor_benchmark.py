"""The monitor benchmark's checks and order of work, on a tiny model. No test asserts a real time."""

import json

import pytest
import torch

from attnhook import AttentionMonitor
from tests.benchmark_scripts import imported

CANDIDATES = {"bare", "bare again", "nothing due", "observe, all rows", "observe, readout rows", "logged"}


@pytest.fixture(scope="module")
def script():
    with imported("monitor") as found:
        yield found


@pytest.fixture
def tiny(script, monkeypatch):
    monkeypatch.setattr(script, "CASES", {"tiny": ("test_vit", 2, 2)})
    monkeypatch.setattr(script, "BOUNDS", {("tiny", script.CALL): 1e9})
    threads = torch.get_num_threads()
    yield script
    torch.set_num_threads(threads)


@pytest.fixture
def training(tiny):
    return tiny.Training("test_vit", 2)


def test_script_measures_every_candidate_and_writes_json(tiny, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(tiny, "idle_microseconds", lambda: 0.25)
    path = tmp_path / "monitor.json"
    assert tiny.main(["--cases", "tiny", "--warmup", "0", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "a call of step that logs nothing: 0.25 microseconds" in printed
    written = json.loads(path.read_text())
    assert {"torch", "timm", "cpu", "threads"} <= set(written["configuration"])
    found = {result["candidate"]: result for result in written["results"]}
    assert set(found) == CANDIDATES | {tiny.CALL, tiny.FORWARD}
    assert found["bare"]["ms"]["median"] < found[tiny.CALL]["ms"]["median"]
    for name, result in found.items():
        assert f"| tiny | {name} |" in printed
        assert result["ms"]["repeats"] == result["ratio"]["repeats"] == 2
        assert result["ms"]["median"] > 0
    assert found["bare"]["ratio"]["median"] == 1.0
    assert "<= 1e+09: yes" in printed


def test_an_observed_forward_is_set_against_the_bare_one_of_its_round(tiny, monkeypatch) -> None:
    training = tiny.Training("test_vit", 2)
    monkeypatch.setattr(tiny, "Training", lambda *_: training)

    def interleave(candidates, repeats, warmup):
        for name in [*["bare"] * 2, tiny.READOUT, "nothing due", tiny.READOUT, "nothing due"]:
            candidates[name]()
        training.forward_seconds = {"bare": [9.0, 1.0, 2.0], tiny.READOUT: [9.0, 1.5, 1.0], "": []}
        return {"bare": [10.0, 20.0], tiny.READOUT: [99.0, 99.0]}

    monkeypatch.setattr(tiny, "interleave", interleave)
    milliseconds, ratio = tiny.measure("tiny", 2, 0)[tiny.FORWARD]
    assert (milliseconds.median, milliseconds.repeats) == (14750.0, 2)  # 10 + 1.5 - 1 and 20 + 1 - 2 seconds
    assert ratio.median == pytest.approx((1.05 + 0.95) / 2)


def test_a_bound_that_is_missed_is_said_and_exits_1(tiny, capsys, monkeypatch) -> None:
    monkeypatch.setattr(tiny, "idle_microseconds", lambda: 0.25)
    monkeypatch.setattr(tiny, "BOUNDS", {("tiny", "logged"): 0.0})
    assert tiny.main(["--cases", "tiny", "--warmup", "0", "--repeats", "1"]) == 1
    assert "<= 0: NO" in capsys.readouterr().out


def test_each_candidate_is_one_training_step_and_does_what_it_is_called(training) -> None:
    for name, run in training.candidates().items():
        steps, training.writer.values, training.writer.pictures = training.steps, {}, 0
        before = training.model.head.weight.detach().clone()
        run()
        assert training.steps == steps + 1
        assert not torch.equal(before, training.model.head.weight)
        prefixes = {tag.split("/")[0] for tag in training.writer.values}
        assert prefixes == ({"live"} if name.startswith("observe") else {"attention"} if name == "logged" else set())
        alarms = any("alarms" in tag for tag in training.writer.values)
        assert alarms == (name in {"observe, all rows", "logged"})
        assert bool(training.writer.pictures) == (name == "logged")


def test_a_right_result_passes(tiny, training) -> None:
    tiny.check(training, training.candidates())


def test_wrong_numbers_are_never_timed(tiny, monkeypatch) -> None:
    def shifted(self, values, step):
        self.values = {tag: value + 1e-3 for tag, value in values.items()}

    monkeypatch.setattr(tiny.DroppingWriter, "scalars", shifted)
    timed = []
    monkeypatch.setattr(tiny, "interleave", lambda *_, **__: timed.append(1))
    with pytest.raises(SystemExit, match=r"blocks\.0\.attn: expected entropy .*, got"):
        tiny.measure("tiny", None, 0)
    assert not timed


def test_hooks_that_stay_and_looks_that_log_nothing_are_found(tiny, training, monkeypatch) -> None:
    candidates = training.candidates()

    def leaving_a_hook():
        training.model.register_forward_hook(lambda *_: None)

    with pytest.raises(SystemExit, match="hooks were left on the model"):
        tiny.check(training, {**candidates, "bare": leaving_a_hook})
    fresh = tiny.Training("test_vit", 2)
    monkeypatch.setattr(AttentionMonitor, "step", lambda self, step: False)
    with pytest.raises(SystemExit, match="nothing was logged"):
        tiny.check(fresh, fresh.candidates())


def test_time_of_an_idle_call_is_a_time(tiny) -> None:
    assert 0 < tiny.idle_microseconds(calls=100) < 1e5
