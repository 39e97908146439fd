"""The benchmark of answers: what it checks, on a tiny model. No test asserts a real time or a real amount of memory."""

import json

import pytest
import torch

from tests.benchmark_scripts import imported


@pytest.fixture(scope="module")
def script():
    with imported("answering") as found:
        yield found


@pytest.fixture
def tiny(script):
    threads = torch.get_num_threads()
    yield script.AnswerCase(layers=2, width=32, grid=(2, 3), new=3)
    torch.set_num_threads(threads)


def test_every_candidate_is_measured_and_written(script, tiny, tmp_path, capsys):
    path = tmp_path / "answering.json"
    assert script.main(["--repeats", "2", "--warmup", "0", "--no-memory", "--json", str(path)], tiny) == 0
    printed = capsys.readouterr().out
    found = {result["candidate"]: result for result in json.loads(path.read_text())["results"]}
    assert list(found) == list(tiny.candidates())
    assert all(f"| answer | {name}" in printed for name in found)
    assert found["attnhook, rows of every token"]["row_error"] < 1e-5


def test_a_wrong_answer_is_never_timed(script, tiny, monkeypatch, capsys):
    monkeypatch.setattr(script, "TOLERANCE", -1.0)
    assert script.main(["--no-memory"], tiny) == 1
    assert "wrong result: attnhook, rows of every token: rows are off by" in capsys.readouterr().err


def test_a_changed_answer_is_noticed(script, tiny):
    ids, rows = tiny.captured()
    assert tiny.check((ids, rows)) < 1e-5
    with pytest.raises(script.CheckError, match="has changed"):
        tiny.check((ids + 1, rows))
    with pytest.raises(script.CheckError, match="off by"):
        tiny.check((ids, rows.roll(1, -1) + 1e-4))
