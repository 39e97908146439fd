"""What a run finds: whatever another one left at any line, and whoever reads meanwhile."""

import json
import re

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from attnhook import extract, open_maps
from attnhook.errors import ExtractionError
from attnhook.extraction import extract_maps as runs
from attnhook.extraction import indices
from attnhook.extraction.file_sources import FileSource
from attnhook.extraction.processes import writing
from tests.extraction.holding import held
from tests.extraction.photographs import files_of, photo_bytes, rows_in

SMALL = {"shard_size": 4, "batch_size": 2, "num_workers": 0}


class Killed(BaseException):
    """As if the process ended there."""


def test_killed_while_the_first_manifest_is_written(photos, vision, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json.partial").write_text("{")
    assert len(extract(vision, photos, tmp_path / "out", **SMALL)) == 21
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_files_of_others_stay(photos, vision, tmp_path):
    extract(vision, photos, tmp_path / "out", **SMALL)
    (tmp_path / "out" / "notes.partial").write_text("mine")
    (tmp_path / "out" / "shards" / ".nfs0001").write_text("the file system's")
    extract(vision, photos, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "notes.partial").exists()
    assert (tmp_path / "out" / "shards" / ".nfs0001").exists()


@pytest.mark.parametrize("line", ["save", "unlink"])
def test_killed_while_shards_of_photos_that_are_gone_are_removed(photos, vision, tmp_path, monkeypatch, line):
    extract(vision, photos, tmp_path / "out", shard_size=1, batch_size=1, num_workers=0)
    tables = {path: parquet.read_table(path) for path in (tmp_path / "out" / "shards").glob("*.parquet")}
    alone = [path for path, table in tables.items() if len(table) == 1]
    key = tables[alone[0]].column("key")[0].as_py()
    (photos / key).unlink()

    def dies(*_, **__):
        raise Killed

    with monkeypatch.context() as patched:
        if line == "save":
            patched.setattr("attnhook.extraction.settings.Manifest.save", dies)
        else:
            real = type(alone[0]).unlink

            def second(path, *rest, **more):
                if path.name == "index.parquet":
                    raise Killed
                real(path, *rest, **more)

            patched.setattr(type(alone[0]), "unlink", second)
        with pytest.raises(Killed):
            extract(vision, photos, tmp_path / "out", shard_size=1, batch_size=1, num_workers=0)
    maps = extract(vision, photos, tmp_path / "out", shard_size=1, batch_size=1, num_workers=0)
    assert key not in maps.keys
    assert maps.manifest.photos == len(maps) == 20
    assert all(rows_in(maps[i], 0).isfinite().all() for i in range(20))


def test_no_index_or_statistics_of_before_stay_while_a_run_goes_on(photos, vision, tmp_path, monkeypatch):
    extract(vision, photos, tmp_path / "out", **SMALL)
    (photos / "dogs" / "new.png").write_bytes(photo_bytes(50))
    monkeypatch.setattr(runs, "_run", lambda *_, **__: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        extract(vision, photos, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out" / "index.parquet").exists()
    assert not (tmp_path / "out" / "statistics.json").exists()
    assert not open_maps(tmp_path / "out").complete


def test_an_end_without_all_shards_is_none(photos, vision, tmp_path, monkeypatch):
    """Another machine's shards that have not arrived: a folder that is not shared, or a file system that is late."""
    monkeypatch.setattr(indices, "TIMEOUT", 0.2)
    real = runs._run

    def loses_one(folder, *rest, **more):
        real(folder, *rest, **more)
        sorted((folder / "shards").glob("*.parquet"))[-1].unlink()

    with monkeypatch.context() as patched:
        patched.setattr(runs, "_run", loses_one)
        with pytest.raises(ExtractionError, match=r"expected all shards in .*, got no shard"):
            extract(vision, photos, tmp_path / "out", **SMALL)
    assert not open_maps(tmp_path / "out").complete
    assert len(extract(vision, photos, tmp_path / "out", **SMALL)) == 21


def test_photos_that_could_not_be_read_are_tried_again(photos, vision, tmp_path, monkeypatch):
    (photos / "broken.png").write_bytes(b"no picture")
    real = FileSource.read

    def fails(source, item):
        if item.key == "cats/003.png":
            raise OSError(5, "Input/output error")
        return real(source, item)

    with monkeypatch.context() as patched:
        patched.setattr(FileSource, "read", fails)
        maps = extract(vision, photos, tmp_path / "out", **SMALL)
        assert set(maps.errors) == {"cats/003.png", "broken.png"}
        before = files_of(tmp_path / "out")
        extract(vision, photos, tmp_path / "out", **SMALL)
        assert files_of(tmp_path / "out") == before
    assert set(extract(vision, photos, tmp_path / "out", **SMALL).errors) == {"broken.png"}


def test_a_reader_does_not_take_a_shard_that_was_written_again_for_its_own(photos, vision, tmp_path):
    extract(vision, photos, tmp_path / "out", **SMALL)
    maps = open_maps(tmp_path / "out")
    for number in range(6):
        (photos / "cats" / f"000{number}.png").write_bytes(photo_bytes(50 + number))
    extract(vision, photos, tmp_path / "out", **SMALL)
    fresh = open_maps(tmp_path / "out")
    refused = 0
    for key in maps.keys:
        if maps.record(key)["mark"] == fresh.record(key)["mark"]:
            assert torch.equal(rows_in(maps[key], 0), rows_in(fresh[key], 0))
            continue
        with pytest.raises(ExtractionError, match="rewritten since"):
            maps[key]
        refused += 1
    assert refused


def test_a_reader_whose_shard_is_gone_says_so(photos, vision, tmp_path):
    maps = extract(vision, photos, tmp_path / "out", **SMALL)
    for path in (tmp_path / "out" / "shards").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ExtractionError, match=r"has run, in that folder again, call open_maps again\."):
        maps[0]


def test_the_index_may_go_while_it_is_opened(photos, vision, tmp_path, monkeypatch):
    extract(vision, photos, tmp_path / "out", **SMALL)
    real = parquet.read_table

    def removes_first(path, **options):
        if str(path).endswith("index.parquet"):
            (tmp_path / "out" / "index.parquet").unlink(missing_ok=True)
        return real(path, **options)

    monkeypatch.setattr(parquet, "read_table", removes_first)
    assert len(open_maps(tmp_path / "out")) == 21


def test_numbers_of_numpy_and_torch_are_numbers(photos, vision, tmp_path):
    maps = extract(vision, photos, tmp_path / "out", **SMALL)
    assert maps[np.int64(3)]["key"] == maps[torch.tensor(3)]["key"] == maps.keys[3]
    with pytest.raises(ExtractionError, match="unknown photo True"):
        maps[True]


def test_a_folder_without_one_good_photo(vision, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(5):
        (tmp_path / "photos" / f"{number}.png").write_bytes(b"no picture")
    maps = extract(vision, tmp_path / "photos", tmp_path / "out", **SMALL)
    assert (len(maps), len(maps.errors), maps.statistics(), maps.complete) == (0, 5, [], True)
    assert json.loads((tmp_path / "out" / "statistics.json").read_text()) == []
    reason = r"all 5 photos failed, 5 of them with 'cannot read an image of 10 bytes: .*Pillow knows"
    assert re.search(reason, repr(maps))
    for photo, error in ((0, IndexError), ("a.png", ExtractionError)):
        with pytest.raises(error, match=reason):
            maps[photo]


def test_a_file_where_the_folder_should_be(photos, vision, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ExtractionError, match="expected a folder, got a file"):
        extract(vision, photos, tmp_path / "out", **SMALL)


def test_bad_workers(photos, vision, tmp_path):
    with pytest.raises(ValueError, match="bad num_workers"):
        extract(vision, photos, tmp_path / "out", num_workers=-1)
    assert not (tmp_path / "out").exists()


def test_half_of_what_was_whole_is_not_complete(photos, vision, tmp_path):
    """A run that begins again, between the manifest and the index that are being opened."""
    maps = extract(vision, photos, tmp_path / "out", **SMALL)
    assert maps.complete
    (tmp_path / "out" / "index.parquet").unlink()
    assert open_maps(tmp_path / "out").complete
    next((tmp_path / "out" / "shards").glob("*.parquet")).unlink()
    assert not open_maps(tmp_path / "out").complete


def test_a_process_that_outlives_its_run_keeps_others_out(photos, vision, tmp_path):
    """One of several whose first was killed: it may still write."""
    extract(vision, photos, tmp_path / "out", **SMALL)
    with held(writing, tmp_path), pytest.raises(ExtractionError, match="expected no other run there"):
        extract(vision, photos, tmp_path / "out", **SMALL)
    assert len(extract(vision, photos, tmp_path / "out", **SMALL)) == 21


@pytest.mark.parametrize(
    "change, missing",
    [
        (lambda content: content.pop("blocks"), "blocks"),
        (lambda content: content.update(model=3), "model"),
        (lambda content: content["settings"].pop("heads"), "settings.heads"),
        (lambda content: content["model"].pop("spec"), "model.spec"),
    ],
)
def test_a_manifest_that_lacks_something(photos, vision, tmp_path, change, missing):
    extract(vision, photos, tmp_path / "out", **SMALL)
    manifest = tmp_path / "out" / "manifest.json"
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))
    with pytest.raises(ExtractionError, match=rf"expected a whole manifest, got one without {missing}\. Restore it"):
        open_maps(tmp_path / "out")


def test_what_is_opened_where_there_is_no_extraction(tmp_path):
    (tmp_path / "file").touch()
    for name, seen in (("gone", "no such folder"), ("", "no manifest.json in"), ("file", "the file")):
        with pytest.raises(ExtractionError, match=rf"got {seen}.* Pass the folder that was given to extract"):
            open_maps(tmp_path / name)
