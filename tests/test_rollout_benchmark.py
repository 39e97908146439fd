"""The rollout benchmark's checks and order of work, on tiny images. No test asserts a real time or a real amount of memory."""

import json
import sys

import pytest
import torch

from tests.benchmark_scripts import imported


@pytest.fixture(scope="module")
def script():
    with imported("rollout") as found:
        yield found


@pytest.fixture
def tiny(script, monkeypatch):
    specs = {"tiny": sys.modules["overhead_cases"].Spec("vit_tiny_patch16_224", 32, 2, 2)}
    monkeypatch.setattr(script, "CASES", specs)
    monkeypatch.setattr(script, "KERNEL_SIZES", {9: 2})
    threads = torch.get_num_threads()
    yield script
    torch.set_num_threads(threads)


def test_script_measures_every_candidate_and_writes_json(tiny, tmp_path, capsys):
    path = tmp_path / "rollout.json"
    assert tiny.main(["--warmup", "0", "--no-memory", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    found = {result["candidate"]: result for result in json.loads(path.read_text())["results"]}
    assert {"attnhook, rollout", "attnhook, entropy", "dense rollout, matrix by matrix", "dense entropy"} <= set(found)
    for name, result in found.items():
        assert f"| tiny | {name}" in printed
        assert result["milliseconds"]["repeats"] == 2
    assert found["attnhook, rollout"]["row_error"] < 1e-5


def test_only_the_chosen_ones_are_run(tiny, capsys):
    assert tiny.main(["--warmup", "0", "--no-memory", "--candidates", "attnhook, rollout"]) == 0
    printed = capsys.readouterr().out
    assert "| tiny | attnhook, rollout |" in printed
    assert "dense" not in printed


def test_a_wrong_rollout_is_never_timed(tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["rollout_cases"], "MAP_TOLERANCE", -1.0)
    assert tiny.main(["--no-memory"]) == 1
    assert "wrong result: attnhook, rollout: off by" in capsys.readouterr().err


def test_kernels_are_checked_and_timed(tiny, tmp_path, monkeypatch, capsys):
    path = tmp_path / "kernels.json"
    assert tiny.main(["--kernels", "--json", str(path)]) == 0
    assert "| 9 tokens | two fused passes, roles swapped, by log-sum-exp |" in capsys.readouterr().out
    found = json.loads(path.read_text())["kernels"]["9"]
    assert found["the block's fused attention"]["median"] == 1.0
    monkeypatch.setattr(sys.modules["rollout_kernels"], "TOLERANCE", -1.0)
    assert tiny.main(["--kernels"]) == 1
    assert "off by" in capsys.readouterr().err
