"""The benchmark of class-specific maps at a tiny size: its checks, its table, its arithmetic. No test asserts a real time or memory."""

import json
import sys

import pytest
import torch

from attnhook import PatchMap
from tests.test_benchmarks import BENCHMARKS, _load


@pytest.fixture
def gradients(monkeypatch):
    before = set(sys.modules)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        script = _load("gradients")
        monkeypatch.setattr(script, "SIZES", {17: 64})
        monkeypatch.setattr(script, "REPEATS", {17: 2})
        yield script
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in {"timing", "overhead", "overhead_cases", "gradients"} - before:
            sys.modules.pop(name, None)


def test_a_table_and_json(gradients, capsys, tmp_path) -> None:
    assert gradients.main(["--no-memory", "--json", str(tmp_path / "results.json")]) == 0
    said = capsys.readouterr().out
    assert "| 17 | attnhook, gradient_rollout |" in said
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    errors = {line["candidate"]: line["error"] for line in results}
    assert set(errors) == {"bare", "backward", "dense autograd", *(f"attnhook, {name}" for name in gradients.METHODS)}
    assert 0 < errors["attnhook, gradient_rollout"] < gradients.TOLERANCE
    assert 0 < errors["dense autograd"] < gradients.TOLERANCE


def test_chosen_candidates(gradients, capsys) -> None:
    assert gradients.main(["--no-memory", "--repeats", "1", "--candidates", "attnhook, legrad"]) == 0
    said = capsys.readouterr().out
    assert said.count("| 17 |") == 3
    assert "dense" not in said


def test_a_wrong_map_is_not_timed(gradients, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gradients, "gradient_rollout", lambda maps: PatchMap(torch.ones(1, 4, 4)))
    assert gradients.main(["--no-memory"]) == 1
    assert "wrong result: expected errors below" in capsys.readouterr().err


def test_growth(gradients) -> None:
    empty = gradients.Summary(1.0, 1.0, 1.0, 1)

    def line(tokens, candidate, extra):
        return gradients.Line(tokens, candidate, empty, None, None, None, extra)

    lines = [line(1024, "backward", 2**29), line(1024, "attnhook, gradient_rollout", 2**29)]
    assert gradients.growth(lines) == [
        "1,024 tokens: gradient_rollout peaks 1,024 MiB above the bare forward, 1,024 KiB a token; one dense matrix of all blocks and heads is "
        "288 MiB"
    ]
