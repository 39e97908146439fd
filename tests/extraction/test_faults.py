"""Whatever happens, what is whole stays, what is not is done again, and the rest says why."""

import gc
import json
import os
import random
import resource
import signal
import subprocess
import threading
import time

import pytest
import torch

from attnhook import extract, open_maps
from attnhook.errors import ExtractionError
from attnhook.extraction.processes import locked
from attnhook.extraction.shards import BackgroundWriter
from tests.comparison.zoo import timm_vit
from tests.extraction.holding import held
from tests.extraction.photographs import files_of, make_folder, photo_bytes, rows_in

SMALL = {"shard_size": 4, "batch_size": 2, "num_workers": 0}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "shards").iterdir()}


def test_a_second_run_does_nothing(photos, vision, tmp_path):
    extract(vision, photos, tmp_path / "out", **SMALL)
    before, stamps = files_of(tmp_path / "out"), times(tmp_path / "out")
    extract(vision, photos, tmp_path / "out", **SMALL)
    assert files_of(tmp_path / "out") == before
    assert times(tmp_path / "out") == stamps


def interrupted(vision, photos, out, after, **options):
    """Ctrl-C in the forward of a batch."""
    count = 0

    def hook(*_):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt

    handle = vision.model.patch_embed.register_forward_pre_hook(hook)
    try:
        with pytest.raises(KeyboardInterrupt):
            extract(vision, photos, out, **(SMALL | options))
    finally:
        handle.remove()


def test_a_resumed_run_keeps_what_is_whole(photos, vision, tmp_path):
    extract(vision, photos, tmp_path / "undisturbed", **SMALL)
    interrupted(vision, photos, tmp_path / "out", 6)
    stamps = times(tmp_path / "out")
    whole = {name for name in stamps if name.endswith(".parquet")}
    assert whole
    part = open_maps(tmp_path / "out")
    assert 0 < len(part) < 21
    assert not part.complete
    assert rows_in(part[0], 0).sum(-1).allclose(torch.ones(1), atol=1e-3)
    extract(vision, photos, tmp_path / "out", **SMALL)
    assert {name: stamp for name, stamp in times(tmp_path / "out").items() if name in stamps} == stamps
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float32"}, r"settings dtype='float16', got 'float32'"),
        ({"rows": "mean"}, r"settings rows='readout', got 'mean'"),
        ({"blocks": None}, r"blocks \['blocks\.2\.attn'\], got \['blocks\.0"),
        ({"batch_size": 3}, r"settings batch_size=2, got 3"),
        ({"shard_size": 5}, r"settings shard_size=4, got 5"),
        ({"methods": ["rollout"]}, r"settings methods=\[\], got"),
        ({"statistics": False}, r"settings statistics=True, got False"),
        ({"heads": "mean"}, r"settings heads=None, got 'mean'"),
    ],
)
def test_other_settings_are_refused(photos, vision, tmp_path, change, message):
    interrupted(vision, photos, tmp_path / "out", 6)
    before = files_of(tmp_path / "out")
    with pytest.raises(ExtractionError, match=f"cannot resume the extraction in .*{message}"):
        extract(vision, photos, tmp_path / "out", **(SMALL | change))
    assert files_of(tmp_path / "out") == before


def test_other_models_sources_and_versions_are_refused(photos, vision, tmp_path):
    extract(vision, photos, tmp_path / "out", **SMALL)
    other = timm_vit()
    with torch.no_grad():
        other.model.norm.weight[0] += 1
    with pytest.raises(ExtractionError, match="model weights="):
        extract(other, photos, tmp_path / "out", **SMALL)
    with pytest.raises(ExtractionError, match="source kind='folder', got 'glob'"):
        extract(vision, f"{photos}/*/*.png", tmp_path / "out", **SMALL)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExtractionError, match=r"versions torch='1\.0'"):
        extract(vision, photos, tmp_path / "out", **SMALL)


def test_photos_that_are_new_changed_or_gone(photos, vision, tmp_path):
    extract(vision, photos, tmp_path / "out", **SMALL)
    stamps = times(tmp_path / "out")
    names = open_maps(tmp_path / "out").keys
    (photos / names[0]).write_bytes(photo_bytes(99))
    (photos / names[1]).unlink()
    (photos / "dogs" / "new.png").write_bytes(photo_bytes(50))
    maps = extract(vision, photos, tmp_path / "out", **SMALL)
    assert set(maps.keys) == {*names, "dogs/new.png"} - {names[1]}
    again = times(tmp_path / "out")
    untouched = [name for name in stamps if again.get(name) == stamps[name]]
    assert untouched
    fresh = extract(vision, photos, tmp_path / "fresh", **(SMALL | {"num_workers": 1}))
    assert {key: rows_in(maps[key], 0).tolist() for key in maps.keys} == {
        key: rows_in(fresh[key], 0).tolist() for key in fresh.keys
    }


def test_a_shard_that_was_cut_is_done_again(photos, vision, tmp_path):
    extract(vision, photos, tmp_path / "out", **SMALL)
    before = files_of(tmp_path / "out")
    first = next((tmp_path / "out" / "shards").glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-7])
    broken = sorted((tmp_path / "out" / "shards").glob("*.parquet"))[-1]
    broken.write_bytes(b"PAR1")
    extract(vision, photos, tmp_path / "out", **SMALL)
    assert files_of(tmp_path / "out") == before


def test_folders_of_other_things_are_left_alone(photos, vision, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(ExtractionError, match="expected an empty folder, or one of an extraction"):
        extract(vision, photos, tmp_path / "out", **SMALL)
    for found, said in (
        ("attnhook-extraction-9", "expected format attnhook-extraction-2, got attnhook-extraction-9. Use the version"),
        (
            "attnhook-overlay-1",
            "one of an extraction, got a manifest of format 'attnhook-overlay-1'. Choose another folder",
        ),
    ):
        (tmp_path / "out" / "manifest.json").write_text(json.dumps({"format": found}))
        with pytest.raises(ExtractionError, match=said):
            extract(vision, photos, tmp_path / "out", **SMALL)
        with pytest.raises(ExtractionError, match=said):
            open_maps(tmp_path / "out")
    assert files_of(tmp_path / "out").keys() == {"thesis.tex", "manifest.json"}


def test_two_runs_never_write_to_one_folder(photos, vision, tmp_path):
    (tmp_path / "out").mkdir()
    with held(locked, tmp_path), pytest.raises(ExtractionError, match="expected no other run there"):
        extract(vision, photos, tmp_path / "out", **SMALL)
    assert len(extract(vision, photos, tmp_path / "out", **SMALL)) == 21


def test_nothing_is_written_after_the_first_error(photos, vision, tmp_path, monkeypatch):
    written = []

    def fails(shard, batch, attentions):
        written.append(batch.shard)
        raise ZeroDivisionError

    monkeypatch.setattr("attnhook.extraction.shards._Shard.add", fails)
    with pytest.raises(ZeroDivisionError):
        extract(vision, photos, tmp_path / "out", **SMALL)
    assert len(written) == 1
    assert not list((tmp_path / "out" / "shards").glob("*"))
    monkeypatch.undo()
    assert len(extract(vision, photos, tmp_path / "out", **SMALL)) == 21


def test_the_model_waits_for_a_slow_disk(photos, vision, tmp_path, monkeypatch):
    """Or the memory would fill with what waits to be written."""
    forwards, released, counts = [], threading.Event(), []
    real = BackgroundWriter._write

    def slow(writer, batch, attentions):
        released.wait(60)
        real(writer, batch, attentions)

    def release():
        counts.append(len(forwards))
        released.set()

    monkeypatch.setattr(BackgroundWriter, "_write", slow)
    handle = vision.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    timer = threading.Timer(2.0, release)
    timer.start()
    maps = extract(vision, photos, tmp_path / "out", shard_size=4, batch_size=1, num_workers=0)
    handle.remove()
    timer.join()
    assert len(maps) == len(forwards) == 21
    assert counts[0] <= 6


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 kB, filled by a file of 250 that can be taken away."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", tmp_path / "disk"]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk: mounting one needs root")
    (tmp_path / "disk" / "filler").write_bytes(bytes(250_000))
    yield tmp_path / "disk"
    gc.collect()  # errors hold frames, and these the listing's mapped file
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)  # noqa: S607 (lazy: what traces this process may hold frames, too)


def test_a_full_disk_loses_nothing_that_is_whole(photos, vision, small_disk):
    with pytest.raises(ExtractionError, match=r"expected free space on the disk, got .*No space left"):
        extract(vision, photos, small_disk / "out", **SMALL)
    assert not list(small_disk.rglob("*.partial"))
    assert 0 < len(open_maps(small_disk / "out")) < 21
    stamps = times(small_disk / "out")
    (small_disk / "filler").unlink()
    assert len(extract(vision, photos, small_disk / "out", **SMALL)) == 21
    again = times(small_disk / "out")
    whole = [name for name in stamps if name.endswith(".parquet")]
    assert {name: again[name] for name in whole} == {name: stamps[name] for name in whole}


def test_files_that_may_not_grow(photos, tmp_path):
    """A limit of the operating system on files' sizes, met in the writing thread of a process that forked this one."""
    asked = {"blocks": None, "batch_size": 2, "num_workers": 0}
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
            extract(timm_vit(), photos, tmp_path / "out", progress=False, **asked)
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:  # noqa: PTH123 (no path)
        said = pipe.read()
    os.waitpid(child, 0)
    assert said.startswith("ExtractionError(")
    assert "expected free space on the disk" in said
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert len(extract(timm_vit(), photos, tmp_path / "out", **asked)) == 21


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path):
    """SIGKILL of a process that forked this one, with its model: it dies in listing, in forwards and in writing."""
    photos, vision, draw = make_folder(tmp_path / "photos", 60), timm_vit(), random.Random(0)  # noqa: S311
    began = time.monotonic()
    extract(vision, photos, tmp_path / "undisturbed", blocks=None, **SMALL)
    long = time.monotonic() - began
    kills, left = 0, 0
    while kills < 20:
        child = os.fork()
        if child == 0:
            extract(vision, photos, tmp_path / "out", blocks=None, **(SMALL | {"num_workers": kills % 2}))
            os._exit(0)
        time.sleep(draw.uniform(0, long / 2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):  # it was done: begin again, so that all kills hit something
            assert os.WEXITSTATUS(status) == 0
            assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")
            for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            continue
        kills += 1
        left += bool(list((tmp_path / "out").rglob("*.partial")))
    extract(vision, photos, tmp_path / "out", blocks=None, **SMALL)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "undisturbed")
    assert not list((tmp_path / "out").rglob("*.partial"))
