"""Sources that are damaged or unusual: no photo is lost in silence, and none ends the run."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from attnhook import extract
from attnhook.errors import ExtractionError
from attnhook.extraction.containers import TarSource
from attnhook.extraction.file_sources import FileSource
from attnhook.extraction.image_tables import ROWS_TOGETHER, ParquetSource
from attnhook.extraction.sources import open_source
from tests.extraction.photographs import add_member, make_tar, make_zip, photo_bytes


def problems(source):
    return {item.key: item.problem for item in open_source(source).items() if item.problem}


def sound(source):
    found = open_source(source)
    return {item.key: found.read(item) for item in found.items() if item.problem is None}


# --- tar ----------------------------------------------------------------------------------------------------------------------------------


def test_a_tar_that_is_damaged_in_the_middle(tmp_path):
    content = bytearray(make_tar(tmp_path / "a.tar", 6).read_bytes())
    with tarfile.open(tmp_path / "a.tar") as archive:
        third = archive.getmembers()[4].offset
    content[third : third + 300] = b"\x07" * 300
    (tmp_path / "a.tar").write_bytes(bytes(content))
    assert list(sound(tmp_path / "a.tar")) == ["000.png", "001.png"]
    assert "more after" in problems(tmp_path / "a.tar")["a.tar"]


def test_tars_one_after_another_in_one_file(tmp_path):
    both = make_tar(tmp_path / "a.tar", 2).read_bytes() + make_tar(tmp_path / "b.tar", 3).read_bytes()
    (tmp_path / "a.tar").write_bytes(both)
    assert len(sound(tmp_path / "a.tar")) == 2
    assert "more after" in problems(tmp_path / "a.tar")["a.tar"]


def test_pictures_before_a_damaged_extended_header_are_kept(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        add_member(archive, "000.png", photo_bytes(0))
        add_member(archive, "ä" * 120 + ".png", photo_bytes(1))
    content = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        last = archive.getmembers()[1].offset_data - 512
    (tmp_path / "a.tar").write_bytes(content[:last] + b"\x07" * 512 + content[last + 512 :])
    assert list(sound(tmp_path / "a.tar")) == ["000.png"]
    assert problems(tmp_path / "a.tar")


def test_links_and_sparse_members_say_so(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add_member(archive, "000.png", photo_bytes(0))
        for name, kind in (
            ("hard.png", tarfile.LNKTYPE),
            ("soft.png", tarfile.SYMTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "000.png"
            archive.addfile(entry)
        sparse = tarfile.TarInfo("sparse.png")
        sparse.pax_headers = {"GNU.sparse.map": "0,10", "GNU.sparse.size": "1000", "GNU.sparse.numblocks": "1"}
        sparse.size = 10
        archive.addfile(sparse, io.BytesIO(bytes(10)))
    assert list(sound(tmp_path / "a.tar")) == ["000.png"]
    found = problems(tmp_path / "a.tar")
    assert set(found) == {"hard.png", "soft.png", "pipe.png", "sparse.png"}
    assert "'000.png'" in found["hard.png"]


# --- several archives ---------------------------------------------------------------------------------------------------------------------


def test_archives_of_the_same_name(tmp_path):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        make_tar(tmp_path / folder / "000.tar", 1)
    assert sorted(sound(tmp_path)) == ["train/000.tar/000.png", "val/000.tar/000.png"]


def test_a_folder_of_several_kinds_of_archives(tmp_path):
    make_tar(tmp_path / "a.tar", 1)
    make_zip(tmp_path / "b.zip", 1)
    with pytest.raises(ExtractionError, match=r"one kind of archive .*, got \.zip, \.tar"):
        open_source(tmp_path)


def test_archives_with_names_that_are_no_text(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar")
    with open(name, "wb") as file:  # noqa: PTH123
        file.write(make_tar(tmp_path / "a.tar", 1).read_bytes()[:-9000])
    found = TarSource((tmp_path / name,))
    assert [item.key for item in found.items()] == ["000.png", "\\xff.tar"]


def test_more_archives_than_files_may_be_open(tmp_path):
    import resource

    pyarrow = pytest.importorskip("pyarrow.parquet")
    import pyarrow as arrow

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    for kind in ("zip", "parquet"):
        (tmp_path / kind).mkdir()
        for number in range(120):
            path = tmp_path / kind / f"{number:03d}.{kind}"
            if kind == "zip":
                make_zip(path, 1)
            else:
                pyarrow.write_table(arrow.table({"image": [photo_bytes(number)]}), path)
        used = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 90, limit[1]))
        try:
            assert len(sound(tmp_path / kind)) == 120
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_a_zip_that_was_open_before_a_fork(tmp_path):
    """Both processes would move one file's position."""
    source = open_source(make_zip(tmp_path / "a.zip", 3))
    items = list(source.items())
    source.read(items[0])
    handle = source._opened(0)
    child = os.fork()
    if child == 0:
        os._exit(0 if source._opened(0) is not handle and source.read(items[1]) == photo_bytes(1) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_encrypted_member(tmp_path):
    make_zip(tmp_path / "a.zip", 2)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        central = archive.start_dir
    content[6] |= 1
    content[central + 8] |= 1
    (tmp_path / "a.zip").write_bytes(bytes(content))
    source = open_source(tmp_path / "a.zip")
    from attnhook.errors import ImageError

    with pytest.raises(ImageError, match="encrypted"):
        source.read(next(source.items()))


# --- Parquet and datasets -----------------------------------------------------------------------------------------------------------------


def test_a_parquet_file_whose_labels_are_damaged(vision, tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    for name in ("a", "b"):
        table = arrow.table(
            {"label": ["x" * 40 + str(i) for i in range(6)], "image": [photo_bytes(i) for i in range(6)]}
        )
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3, compression="none")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    where = parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    start = where.dictionary_page_offset or where.data_page_offset
    content[start : start + 24] = b"\xff" * 24
    (tmp_path / "a.parquet").write_bytes(bytes(content))
    maps = extract(vision, tmp_path, tmp_path / "out", num_workers=0)
    assert len(maps) == 9
    assert set(maps.errors) == {f"a.parquet/000000{i}" for i in (3, 4, 5)}


def test_a_parquet_file_of_one_huge_row_group_is_several_shards(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows = 3 * ROWS_TOGETHER + 1
    parquet.write_table(arrow.table({"image": [b"x"] * rows}), tmp_path / "a.parquet")
    items = list(ParquetSource((tmp_path / "a.parquet",)).items())
    assert len({item.group for item in items}) == 4
    assert len(items) == rows


def test_the_row_group_of_a_row_is_found(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    path = tmp_path / "a.parquet"
    schema = arrow.schema([("image", arrow.binary())])
    with parquet.ParquetWriter(path, schema) as writer:
        for first, count in ((0, 3), (3, 1), (4, 5)):
            writer.write_table(arrow.table({"image": [b"%d" % i for i in range(first, first + count)]}, schema=schema))
    source = ParquetSource((path,))
    assert [source.read(item) for item in source.items()] == [b"%d" % i for i in range(9)]


def test_a_data_set_with_a_format(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cats", "dogs"])})
    rows = {"image": [{"bytes": photo_bytes(i), "path": None} for i in range(4)], "label": [0, 1, 1, 0]}
    plain = datasets.Dataset.from_dict(rows, features=features)
    for dataset in (plain.with_format("torch"), plain.with_format("numpy"), plain.with_transform(lambda batch: batch)):
        found = open_source(dataset)
        items = list(found.items())
        assert [item.label for item in items] == ["cats", "dogs", "dogs", "cats"]
        assert [found.read(item) for item in items] == [photo_bytes(i) for i in range(4)]
    chosen = open_source(plain.select([2, 0]))
    assert [(chosen.read(item), item.label) for item in chosen.items()] == [
        (photo_bytes(2), "dogs"),
        (photo_bytes(0), "cats"),
    ]


def test_labels_of_a_parquet_file_by_their_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cats", "dogs"])})
    rows = {"image": [{"bytes": photo_bytes(i), "path": None} for i in range(3)], "label": [1, None, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert [item.label for item in open_source(tmp_path / "a.parquet").items()] == ["dogs", None, "cats"]


# --- files --------------------------------------------------------------------------------------------------------------------------------


def test_lists_with_odd_lines(vision, tmp_path):
    (tmp_path / "good.png").write_bytes(photo_bytes(0))
    (tmp_path / "other.png").write_bytes(photo_bytes(1))
    lines = [b"\xef\xbb\xbfgood.png\tcat", b"nul\0byte.png", b"other.png\t\xff\xfe", b"x" * 5000, b""]
    (tmp_path / "list.txt").write_bytes(b"\r\n".join(lines))
    maps = extract(vision, tmp_path / "list.txt", tmp_path / "out", num_workers=0)
    assert {maps.record(key)["key"]: maps.record(key)["label"] for key in maps.keys} == {
        "good.png": "cat",
        "other.png": "\\xff\\xfe",
    }
    assert len(maps.errors) == 2


def test_links_that_lead_to_themselves(tmp_path):
    (tmp_path / "good.png").write_bytes(photo_bytes(0))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    assert list(sound(tmp_path)) == ["good.png"]
    assert set(problems(tmp_path)) == {"loop.png", "dangling.png"}


def test_errors_with_names_that_are_no_text(vision, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "good.png").write_bytes(photo_bytes(0))
    with open(os.fsencode(tmp_path / "photos") + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.truncate(2**31)
    maps = extract(vision, tmp_path / "photos", tmp_path / "out", num_workers=0)
    assert maps.keys == ["good.png"]
    assert "expected at most" in maps.errors["\\xff.png"]


def test_globs_below_folders_with_signs_in_their_names(tmp_path):
    (tmp_path / "set[1]").mkdir()
    (tmp_path / "set[1]" / "a.png").write_bytes(photo_bytes(0))
    assert list(sound(f"{tmp_path}/set[1]/*.png")) == ["a.png"]
    assert isinstance(open_source(tmp_path / "set[1]"), FileSource)
