"""`benchmarks/extract.py` at a tiny size: both loops see every photo, and a wrong row is noticed."""

import argparse

import pytest
import timm

from tests.benchmark_scripts import imported


@pytest.fixture
def script(monkeypatch):
    with imported("extract") as found:
        make = timm.create_model
        monkeypatch.setattr(found.timm, "create_model", lambda _: make("test_vit"))
        yield found


def test_both_loops_in_turns(script, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    script.make_photos(tmp_path / "photos", 6)
    options = argparse.Namespace(photos=6, rounds=2, batch_size=4, workers=0)
    found = script.run_times(tmp_path / "photos", options)
    assert len(found["throughput"]) == 2
    assert found["bytes"] > 1000
    assert "throughput of extract over bare: x" in capsys.readouterr().out


def test_wrong_rows_are_noticed(script, tmp_path):
    (tmp_path / "photos").mkdir()
    script.make_photos(tmp_path / "photos", 5)
    vision = script.model()
    maps = script.extracted(vision, tmp_path / "photos", tmp_path / "out", batch_size=2, workers=0)
    script.check(vision, tmp_path / "photos", maps)
    photos = sorted((tmp_path / "photos").iterdir())
    photos[0].write_bytes(photos[1].read_bytes())
    photos[2].write_bytes(photos[3].read_bytes())
    with pytest.raises(RuntimeError, match="a wrong row"):
        script.check(vision, tmp_path / "photos", maps)
