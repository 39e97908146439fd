"""`benchmarks/bounds.py`: it asks the scripts for what they have, and says when a figure is short of its goal."""

import json
import statistics

import pytest

from tests.benchmark_scripts import imported


def summary(value):
    return {"median": value, "low": value, "high": value, "repeats": 1}


def written(name, value):
    """What a script would write if everything it measures were `value`."""
    cases = ["answer", "vit_small-b8", "1,025 tokens", "4,097 tokens", "vit_tiny-b1", "vit_base-b8"]
    cases += [
        "vit_tiny-b1-compiled",
        "vit_small-512px-b1",
        "vit_small-1024px-b1",
        "torchvision_vit_b_16-b1",
        "torchvision_vit_b_16-b8",
    ]
    candidates = [
        "attnhook, all blocks",
        "rows alone",
        "timm AttentionExtract",
        "attnhook, rollout",
        "attnhook, entropy",
        "TraceableCapture, compiled",
    ]
    candidates += ["nothing due", "nothing due, bare with the call", "observe, all rows", "observe, readout rows"]
    candidates += ["bare again", "observe, readout rows, bare with its forward"]
    candidates += ["attnhook, rows of every token", "eager, output_attentions"]
    each = {"ratio": summary(value), "extra_bytes": value * 2**20}
    results = [{"case": case, "candidate": candidate, **each} for case in cases for candidate in candidates]
    lines = ("backward", "attnhook, gradient_rollout")
    tokens = [
        {"tokens": count, "candidate": line, "extra_bytes": value * count, "ratio": summary(value)}
        for count in (1025, 4097)
        for line in lines
    ]
    picture = {"ms": value, "times attnhook": summary(value)}
    names = ("attnhook, overlay of a heat map", "matplotlib, colormap and blend")
    photos = ("attend", "geometry, measured", "geometry, looked up again", "figure of 12 megapixels")
    return {
        "whole_photos": {name: {"ms": value, "beyond": value, "ratio": summary(value)} for name in photos},
        "gradients": {"results": tokens},
        "comparison": {"ratio": value},
        "overlay": dict.fromkeys(names, picture),
        "extract": {"throughput": [value], "gains": [value]},
    }.get(name, {"results": results})


def test_a_figure_is_held_against_its_goal(tmp_path, monkeypatch, capsys):
    with imported("bounds") as bounds:
        monkeypatch.setattr(bounds, "run_script", lambda name, *_: written(name, 1.0))
        assert bounds.main(["--only", "image", "monitor", "overlay", "--json", str(tmp_path / "b.json")]) == 0
        rows = json.loads((tmp_path / "b.json").read_text())
        assert [row["measured"] for row in rows] == [1.0] * len(rows)
        monkeypatch.setattr(bounds, "run_script", lambda name, *_: written(name, 1.1))
        assert bounds.main(["--only", "image", "monitor", "extract"]) == 1
    said = capsys.readouterr().out
    line = "| rows of all blocks, ViT-Ti b1 | <= 1.06 | 1.100 (1.100 to 1.100, 3 processes) | SHORT | rows alone 1.100, timm AttentionExtract"
    assert line in said
    assert "| two processes over one | >= 1.8 | 1.100 | SHORT |  |" in said


def test_a_script_that_fails_is_short_of_its_goals_and_the_others_run(tmp_path, monkeypatch, capsys):
    def some(name, *_):
        if name == "overhead":
            raise RuntimeError("overhead failed: exit status 1")
        return written(name, 1.0)

    with imported("bounds") as bounds:
        monkeypatch.setattr(bounds, "run_script", some)
        assert bounds.main(["--only", "image", "overlay", "--json", str(tmp_path / "b.json")]) == 1
    said = capsys.readouterr().out
    assert "| rows of all blocks, ViT-Ti b1 | <= 1.06 | nan | SHORT |  |" in said
    assert "| overlay of 1024 x 768, ms | <= 8 | 1.000 |  |  |" in said


def test_every_script_can_be_read(monkeypatch):
    with imported("bounds") as bounds:
        monkeypatch.setattr(bounds, "run_script", lambda name, *_: written(name, 1.0))
        for one in bounds.MEASUREMENTS.values():
            for bound in one.bounds:
                assert bounds.held_against(bound, [written(one.script, 1.0)]).measured == pytest.approx(1.0)
        assert statistics.median([bounds.import_seconds(1)]) < 5


def test_of_several_processes_the_median_counts_and_the_extremes_stand_beside(tmp_path, monkeypatch, capsys):
    values = [1.01, 1.03, 1.02]
    left = values.copy()
    with imported("bounds") as bounds:
        monkeypatch.setattr(bounds, "run_script", lambda name, *_: written(name, left.pop(0)))
        assert bounds.main(["--only", "image", "--json", str(tmp_path / "b.json")]) == 0
    assert not left
    row = json.loads((tmp_path / "b.json").read_text())[0]
    assert row["measured"] == 1.02
    assert row["runs"] == values
    assert (
        "| rows of all blocks, ViT-Ti b1 | <= 1.06 | 1.020 (1.010 to 1.030, 3 processes) |  | rows alone 1.020,"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("values, held", [([1.05, 1.07, 1.06], True), ([1.05, 1.07, 1.08], False)])
def test_processes_that_disagree_on_a_goal_are_not_asked_again(tmp_path, monkeypatch, values, held):
    left = values.copy()
    with imported("bounds") as bounds:
        monkeypatch.setattr(bounds, "run_script", lambda name, *_: written(name, left.pop(0)))
        one = bounds.MEASUREMENTS["image"]
        row = bounds.held_against(one.bounds[0], bounds.run(one, tmp_path))
    assert row.runs == values
    assert row.held == held


def test_rows_over_a_forward_are_measured_in_three_processes():
    with imported("bounds") as bounds:
        assert {one.processes for one in bounds.MEASUREMENTS.values() if one.script == "overhead"} == {3}


def test_what_an_earlier_process_wrote_is_not_read_again(tmp_path, monkeypatch):
    (tmp_path / "overlay.json").write_text("{}")
    with imported("bounds") as bounds:
        monkeypatch.setattr(bounds.subprocess, "run", lambda *_, **__: bounds.subprocess.CompletedProcess((), 1))
        with pytest.raises(RuntimeError, match="overlay failed: exit status 1"):
            bounds.run_script("overlay", [], tmp_path)


def test_the_scripts_take_what_they_are_asked():
    with imported("bounds") as bounds:
        measurements = list(bounds.MEASUREMENTS.values())
    for one in measurements:
        with imported(one.script) as script, pytest.raises(SystemExit) as left:
            script.main([*one.arguments, "--json", "x.json", "--help"])
        assert left.value.code == 0
