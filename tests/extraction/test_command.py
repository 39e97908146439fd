"""`attnhook extract`."""

import subprocess
import sys

import pytest

from attnhook import open_maps
from attnhook.cli.entry import main
from tests.extraction.photographs import make_folder, rows_in


def test_the_command_and_its_exit_codes(tmp_path, capsys):
    photos = make_folder(tmp_path / "photos", 3)
    arguments = ["extract", str(photos), "--model", "demo@28", "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main([*arguments, "--blocks", "all", "--heads", "mean"]) == 0
    assert "3 photos: " in capsys.readouterr().out
    assert rows_in(open_maps(tmp_path / "out")[0], 11).shape == (1, 1, 5)
    (photos / "bad.png").write_bytes(b"no picture")
    assert main([*arguments, "--blocks", "all", "--heads", "mean"]) == 1
    said = capsys.readouterr()
    assert "bad.png: cannot read an image of 10 bytes" in said.err
    assert "3 of 4 photos, 1 failed: " in said.out
    assert main([*arguments, "--blocks", "last:2"]) == 2
    assert "cannot resume the extraction" in capsys.readouterr().err
    assert main(["extract", str(tmp_path / "none"), "--out", str(tmp_path / "new")]) == 2


def test_logs_stay_quiet(tmp_path):
    photos = make_folder(tmp_path / "photos", 2)
    command = [sys.executable, "-m", "attnhook", "extract", photos, "--model", "demo@28", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*command, "--rows", "0,1", "--blocks", "-2"], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert open_maps(tmp_path / "out").manifest.blocks == ["encoder.layer.10.attention"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3", [3]), ("-2", [10]), ("last:2", [10, 11]), ("0,encoder.layer.5.attention,-1", [0, 5, 11])],
)
def test_blocks_mean_the_same_as_in_view(tmp_path, text, numbers):
    photos = make_folder(tmp_path / "photos", 1)
    out = tmp_path / "out"
    assert (
        main(["extract", f"{photos}", "--model", "demo@28", "--out", f"{out}", "--workers", "0", "--blocks", text]) == 0
    )
    maps = open_maps(out)
    assert maps.manifest.blocks == [f"encoder.layer.{number}.attention" for number in numbers]
    assert [name for name in maps[0] if name.startswith("rows.")] == sorted(
        f"rows.{name}" for name in maps.manifest.blocks
    )


@pytest.mark.parametrize("text", ["last:", "last:0", "last:x", "last:-1"])
@pytest.mark.parametrize("command", [["extract", "photos", "--out", "maps"], ["view", "cat.png"]])
def test_numbers_of_blocks_that_are_none(capsys, command, text):
    with pytest.raises(SystemExit) as left:
        main([*command, "--blocks", text])
    assert left.value.code == 2
    assert f"expected a number of blocks such as last:3, got '{text}'" in capsys.readouterr().err


def test_rows_that_are_none_are_told_which_there_are(capsys):
    with pytest.raises(SystemExit) as left:
        main(["extract", "photos", "--out", "maps", "--rows", "some"])
    assert left.value.code == 2
    assert "cls, pool, mean, readout, all or ROW,COLUMN, got 'some'" in capsys.readouterr().err
