"""What lists and tables name outside their folder is not read. A folder has one writer. Photos are those of one column."""

import hashlib
import logging
import threading
from pathlib import Path

import pytest

from attnhook import extract, open_maps
from attnhook.errors import ExtractionError, ModelLoadError
from attnhook.extraction.sources import open_source
from tests.extraction.photographs import make_folder, photo_bytes


def write_parquet(path, columns):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path)
    return path


def secret(tmp_path):
    """A file outside, a link to it inside, and the ways to name it."""
    (tmp_path / "secret.png").write_bytes(photo_bytes(7))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes(photo_bytes(0))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    names = [
        str(tmp_path / "secret.png"),
        "../secret.png",
        "link.png",
        "up/secret.png",
        "./../in/../secret.png",
        "/etc/passwd",
    ]
    return folder, names


@pytest.mark.parametrize("kind", ["list", "parquet"])
def test_files_outside_the_folder_are_not_read(vision, tmp_path, kind):
    folder, names = secret(tmp_path)
    inside = ["good.png", str(folder / "good.png"), "./good.png"]
    if kind == "list":
        source = folder / "list.txt"
        source.write_text("\n".join([*inside, *names]))
    else:
        source = write_parquet(
            folder / "a.parquet", {"image": [{"bytes": None, "path": name} for name in [*inside, *names]]}
        )
    maps = extract(vision, source, tmp_path / "out", num_workers=0)
    digests = maps.to_arrow().column("digest").to_pylist()
    assert set(filter(None, digests)) == {hashlib.sha256(photo_bytes(0)).hexdigest()}
    assert len(maps) == len(inside)
    assert len(maps.errors) == len(names)
    assert all("got one outside it. Move what names it" in error for error in maps.errors.values())


def test_paths_of_the_users_own_lead_anywhere(vision, tmp_path):
    folder, names = secret(tmp_path)
    maps = extract(vision, [names[0], folder / "link.png"], tmp_path / "out", num_workers=0)
    assert len(maps) == 2
    assert not maps.errors


def test_two_threads_do_not_share_a_folder(vision, tmp_path):
    photos, started, go_on = make_folder(tmp_path / "photos", 4), threading.Event(), threading.Event()

    class Waiting:
        """A source that stops in the middle."""

        source = open_source(photos)
        description, items = source.description, source.items

        def read(self, item):
            started.set()
            assert go_on.wait(60)
            return self.source.read(item)

    found = []
    first = threading.Thread(target=lambda: found.append(extract(vision, Waiting(), tmp_path / "out", num_workers=0)))
    first.start()
    assert started.wait(60)
    with pytest.raises(ExtractionError, match="expected no other run there, got one in this process"):
        extract(vision, photos, tmp_path / "out", num_workers=0)
    go_on.set()
    first.join()
    assert len(found[0]) == 4
    assert len(extract(vision, photos, tmp_path / "out", num_workers=0)) == 4  # the folder is free again


def test_what_cannot_be_done_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("attnhook.extraction.extract_maps.load", lambda *_, **__: pytest.fail("a model was loaded"))
    photos = make_folder(tmp_path / "photos", 2)
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", f"{photos}/*.tiff"):
        with pytest.raises(
            ExtractionError, match=r"no photos: expected some in the (folder|glob) /.*, got none"
        ) as caught:
            extract("demo", source, tmp_path / "out")
        assert "{" not in str(caught.value)
    with pytest.raises(ExtractionError, match="cannot write to"):
        extract("demo", photos, photos / "cats" / "nowhere" / ("x" * 300))
    with pytest.raises(ModelLoadError, match="cannot use the device 'foo'"):
        extract("demo", photos, tmp_path / "out", device="foo")
    with pytest.raises(
        ExtractionError, match=r"column='image' is for tables: expected Parquet files or a datasets\.Dataset"
    ):
        extract("demo", photos, tmp_path / "out", column="image")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos"]


def in_datasets(columns, **features):
    datasets = pytest.importorskip("datasets")
    images = datasets.Features({name: features.get(name, datasets.Image()) for name in columns})
    return datasets.Dataset.from_dict(columns, features=images)


def pictures(first):
    return [{"bytes": photo_bytes(first + i), "path": None} for i in range(3)]


def digests(source, **options):
    found = open_source(source, **options)
    return [found.read(item) for item in found.items()]


@pytest.mark.parametrize("kind", ["datasets", "parquet"])
def test_one_rule_says_which_column_holds_the_photos(tmp_path, caplog, kind):
    """A column of masks before the photos; the columns' order means nothing."""
    made = in_datasets({"segmentation": pictures(10), "image": pictures(0), "label": pictures(20)})
    source = made if kind == "datasets" else tmp_path / "a.parquet"
    if kind == "parquet":
        made.to_parquet(source)
    with caplog.at_level(logging.WARNING, "attnhook"):
        assert digests(source) == [photo_bytes(i) for i in range(3)]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "using column 'image' for the photos; pass column= to use another: segmentation, label."
    ]
    assert [item.label for item in open_source(source).items()] == [None] * 3  # an image is no label
    assert digests(source, column="segmentation") == [photo_bytes(10 + i) for i in range(3)]
    assert digests(source, column="label") == [photo_bytes(20 + i) for i in range(3)]
    with pytest.raises(ExtractionError, match="expected one of the columns segmentation, image, label, got 'photo'"):
        digests(source, column="photo")


@pytest.mark.parametrize("kind", ["datasets", "parquet"])
def test_several_columns_without_a_usual_name_have_to_be_chosen_from(tmp_path, caplog, kind):
    made = in_datasets({"left": pictures(0), "right": pictures(10)})
    source = made if kind == "datasets" else tmp_path / "a.parquet"
    if kind == "parquet":
        made.to_parquet(source)
    with pytest.raises(
        ExtractionError, match=r"expected one of the columns left, right, got several\. Choose with column="
    ):
        digests(source)
    assert digests(source, column="right") == [photo_bytes(10 + i) for i in range(3)]
    assert not caplog.records  # whoever chooses is told nothing


def test_the_only_image_is_taken_whatever_its_name(tmp_path, caplog):
    assert digests(in_datasets({"label": pictures(0)})) == [photo_bytes(i) for i in range(3)]
    plain = {"text": ["a", "b", "c"], "scan": [photo_bytes(i) for i in range(3)], "label": ["x", "y", "z"]}
    source = write_parquet(tmp_path / "a.parquet", plain)
    assert digests(source) == plain["scan"]
    assert [item.label for item in open_source(source).items()] == ["x", "y", "z"]
    assert not caplog.records


def test_a_table_without_images_is_one_error(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", {"image": ["a.png"], "label": [3]})
    for column in (None, "image"):
        with pytest.raises(ExtractionError, match=r"got only image, label\. Store the bytes") as caught:
            list(open_source(source, column).items())
        assert "column=" not in str(caught.value)  # there is nothing to choose


def test_masks_are_not_taken_for_photos_in_silence(tmp_path, caplog):
    source = write_parquet(tmp_path / "a.parquet", {"image": ["a.png"], "mask": [photo_bytes(0)]})
    assert digests(source) == [photo_bytes(0)]
    (record,) = caplog.records
    assert record.getMessage().endswith("using column 'mask' for the photos; found no images in image.")


def test_paths_in_a_sequence_are_read_as_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(photo_bytes(0))
    source = open_source(["~/a.jpg\tcat", "https://example.org/a.jpg"])
    found, url = source.items()
    assert (source.read(found), found.label, found.problem) == (photo_bytes(0), "cat", None)
    assert url.key == "https://example.org/a.jpg"
    assert url.problem.startswith("expected a local file, got a URL.")


def test_the_column_is_remembered(vision, tmp_path):
    made = in_datasets({"segmentation": pictures(10), "image": pictures(0)})
    made.to_parquet(tmp_path / "a.parquet")
    extract(vision, tmp_path / "a.parquet", tmp_path / "out", column="segmentation", num_workers=0)
    maps = open_maps(tmp_path / "out")  # fetched again from the same column, or the digest would differ
    assert maps.photo(0).size == maps.overlay(0).size
    with pytest.raises(ExtractionError, match="cannot resume"):
        extract(vision, tmp_path / "a.parquet", tmp_path / "out", num_workers=0)
    extract(vision, made, tmp_path / "memory", column="segmentation", num_workers=0)
    assert open_maps(tmp_path / "memory", source=made).photo(0).mode == "RGB"


def test_the_column_from_the_command_line(tmp_path, monkeypatch, vision, capsys):
    from attnhook.cli import main

    in_datasets({"segmentation": pictures(10), "image": pictures(0)}).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr("attnhook.extraction.extract_maps.load", lambda *_, **__: vision)
    arguments = ["extract", str(tmp_path / "a.parquet"), "--model", "tiny", "--workers", "0"]
    assert main([*arguments, "--column", "segmentation", "--out", str(tmp_path / "out")]) == 0
    assert f"3 photos: {Path(tmp_path, 'out')}" in capsys.readouterr().out
    wanted = {hashlib.sha256(photo_bytes(10 + i)).hexdigest() for i in range(3)}
    maps = open_maps(tmp_path / "out")
    assert {maps.record(key)["digest"] for key in maps.keys} == wanted
