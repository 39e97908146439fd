"""Every kind of source gives the same photos."""

import os
import tarfile
import zipfile

import pytest

from attnhook import extract, open_maps
from attnhook.errors import ExtractionError
from attnhook.extraction.sources import open_source, reopen_source
from tests.extraction.photographs import add_member, make_tar, make_zip, photo_bytes, photo_names

COUNT = 9


def read_all(source):
    found = open_source(source)
    items = sorted(found.items(), key=lambda item: (item.container, item.number, item.key))
    return {item.key: (found.read(item), item.label) for item in items if item.problem is None}


@pytest.fixture
def expected():
    return [(photo_bytes(i), name.partition("/")[0]) for i, name in enumerate(photo_names(COUNT))]


@pytest.fixture
def folder(tmp_path):
    from tests.extraction.photographs import make_folder

    return make_folder(tmp_path / "photos", COUNT)


def test_a_folder(folder, expected):
    for name in (".hidden.png", "notes.txt", "__MACOSX"):
        if name == "__MACOSX":
            (folder / name).mkdir()
            (folder / name / "x.png").write_bytes(b"")
        else:
            (folder / name).write_bytes(b"")
    (folder / "cats" / "circle").symlink_to(folder)
    found = read_all(folder)
    assert sorted(found) == sorted(photo_names(COUNT))
    assert [found[name] for name in photo_names(COUNT)] == expected


def test_a_folder_of_links(folder, tmp_path, expected):
    (tmp_path / "links").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "links" / name).symlink_to(folder / name)
    found = read_all(tmp_path / "links")
    assert [found[name] for name in photo_names(COUNT)] == expected


def test_a_glob(folder, expected):
    found = read_all(f"{folder}/**/*.png")
    assert [found[name] for name in photo_names(COUNT)] == expected
    one = read_all(str(folder / "ca*" / "*.png"))
    assert sorted(one) == [name for name in photo_names(COUNT) if name[0] == "c"]


def test_a_list(folder, tmp_path, expected):
    lines = [f"photos/{name}\t{name.partition('/')[0]}" for name in photo_names(COUNT)]
    (tmp_path / "list.txt").write_text("\n".join(["", *lines, f"{folder / photo_names(1)[0]}", ""]))
    found = read_all(tmp_path / "list.txt")
    assert [found[f"photos/{name}"] for name in photo_names(COUNT)] == expected
    assert len(found) == COUNT + 1


def test_paths_in_a_sequence(folder, expected):
    found = read_all([folder / name for name in photo_names(COUNT)])
    assert sorted(content for content, _ in found.values()) == sorted(content for content, _ in expected)
    assert len(found) == COUNT


def test_a_zip(tmp_path, expected):
    found = read_all(make_zip(tmp_path / "photos.zip", COUNT))
    assert [found[name] for name in photo_names(COUNT)] == expected


def test_a_tar_of_webdataset(tmp_path, expected):
    found = read_all(make_tar(tmp_path / "photos.tar", COUNT))
    assert list(found) == [f"{i:03d}.png" for i in range(COUNT)]
    assert list(found.values()) == [(content, str(i % 2)) for i, (content, _) in enumerate(expected)]


def test_several_archives(tmp_path, expected):
    for number in range(2):
        make_tar(tmp_path / f"shard-{number}.tar", COUNT)
    found = read_all(f"{tmp_path}/shard-*.tar")
    assert len(found) == 2 * COUNT
    assert found["shard-1.tar/004.png"][0] == expected[4][0]
    assert read_all(tmp_path) == found


def test_names_in_archives_lead_nowhere(tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        add_member(archive, "../../outside.png", photo_bytes(0))
        add_member(archive, "/etc/absolute.png", photo_bytes(1))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = read_all(tmp_path / "evil.tar")
    assert [content for content, _ in found.values()] == [photo_bytes(0), photo_bytes(1)]
    assert not (tmp_path.parent / "outside.png").exists()


@pytest.mark.parametrize("shape", ["struct", "binary"])
def test_parquet(tmp_path, expected, shape):
    import pyarrow
    import pyarrow.parquet

    values = [{"bytes": content, "path": None} if shape == "struct" else content for content, _ in expected]
    table = pyarrow.table({"image": values, "label": [label for _, label in expected]})
    pyarrow.parquet.write_table(table, tmp_path / "photos.parquet", row_group_size=4)
    found = read_all(tmp_path / "photos.parquet")
    assert list(found) == [f"photos.parquet/{i:07d}" for i in range(COUNT)]
    assert list(found.values()) == expected
    groups = {item.group for item in open_source(tmp_path / "photos.parquet").items()}
    assert len(groups) == 3


def test_datasets(tmp_path, expected):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cats", "dogs"])})
    rows = {
        "image": [{"bytes": content, "path": None} for content, _ in expected],
        "label": [label for _, label in expected],
    }
    dataset = datasets.Dataset.from_dict(rows, features=features)
    found = read_all(dataset)
    assert list(found.values()) == expected
    with pytest.raises(ExtractionError, match="Choose one split"):
        open_source(datasets.DatasetDict({"train": dataset}))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "parquet", "list", "glob"])
def test_extraction_and_pictures_from_each(folder, vision, tmp_path, kind):
    import pyarrow
    import pyarrow.parquet

    if kind == "parquet":
        images = [{"bytes": photo_bytes(i), "path": None} for i in range(COUNT)]
        pyarrow.parquet.write_table(pyarrow.table({"image": images}), tmp_path / "p.parquet", row_group_size=2)
    elif kind == "list":
        (tmp_path / "list.txt").write_text("\n".join(f"photos/{name}" for name in photo_names(COUNT)))
    sources = {
        "folder": folder,
        "glob": f"{folder}/*/*.png",
        "parquet": tmp_path / "p.parquet",
        "list": tmp_path / "list.txt",
    }
    source = sources.get(kind) or {"zip": make_zip, "tar": make_tar}[kind](tmp_path / f"photos.{kind}", COUNT)
    extract(vision, source, tmp_path / "out", num_workers=1, shard_size=3, batch_size=2)
    maps = open_maps(tmp_path / "out")
    digests = sorted(maps.record(i)["digest"] for i in range(len(maps)))
    import hashlib

    assert digests == sorted(hashlib.sha256(photo_bytes(i)).hexdigest() for i in range(COUNT))
    assert maps.overlay(2).size == maps.photo(2).size


def test_a_source_in_memory_must_be_passed_again(folder, vision, tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": photo_bytes(i), "path": None} for i in range(COUNT)]
    dataset = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    extract(vision, dataset, tmp_path / "out", num_workers=1)
    with pytest.raises(ExtractionError, match="source="):
        open_maps(tmp_path / "out").photo(0)
    assert open_maps(tmp_path / "out", source=dataset).photo(0).mode == "RGB"


def test_names_that_stand_there_twice(vision, tmp_path):
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for number in (0, 1, 2):
            add_member(archive, "same.png", photo_bytes(number))
    maps = extract(vision, tmp_path / "twice.tar", tmp_path / "out", num_workers=0)
    assert maps.keys == ["same.png", "same.png//2", "same.png//3"]
    assert len({maps.record(key)["digest"] for key in maps.keys}) == 3


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX alone")
def test_names_that_are_no_text(vision, tmp_path):
    (tmp_path / "photos").mkdir()
    odd = os.fsencode(tmp_path / "photos") + b"/\xff\xfe.png"
    with open(odd, "wb") as file:  # noqa: PTH123
        file.write(photo_bytes(3))
    maps = extract(vision, tmp_path / "photos", tmp_path / "out", num_workers=0)
    assert maps.keys == ["\\xff\\xfe.png"]
    assert maps.photo(0).size == maps.overlay(0).size


def test_files_that_are_none(vision, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    names = ["pipe.png", "folder.png", "missing.png", "good.png"]
    (tmp_path / "good.png").write_bytes(photo_bytes(0))
    (tmp_path / "list.txt").write_text("\n".join(names))
    maps = extract(vision, tmp_path / "list.txt", tmp_path / "out", num_workers=0)
    assert maps.keys == ["good.png"]
    assert set(maps.errors) == set(names[:3])
    assert "No such file" in maps.errors["missing.png"]


def test_files_too_large_for_photos_are_refused_unread(vision, tmp_path):
    (tmp_path / "photos").mkdir()
    with (tmp_path / "photos" / "huge.png").open("wb") as file:
        file.truncate(2**30 + 1)  # no byte of it is on the disk
    maps = extract(vision, tmp_path / "photos", tmp_path / "out", num_workers=0)
    assert "expected at most 1,073,741,824 bytes, got 1,073,741,825" in maps.errors["huge.png"]


def test_bytes_in_tables_have_the_same_limit(vision, tmp_path, monkeypatch):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    small = photo_bytes(0)
    monkeypatch.setattr("attnhook.extraction.items.MAX_BYTES", len(small))
    parquet.write_table(arrow.table({"image": [small, small + b"!"]}), tmp_path / "a.parquet")
    maps = extract(vision, tmp_path / "a.parquet", tmp_path / "out", num_workers=0)
    assert len(maps) == 1
    (error,) = maps.errors.values()
    assert f"expected at most {len(small):,} bytes, got {len(small) + 1:,}" in error


def test_archives_that_are_cut_short(vision, tmp_path):
    whole = make_tar(tmp_path / "a.tar", COUNT).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "b.zip").write_bytes(make_zip(tmp_path / "b.zip", COUNT).read_bytes()[:500])
    cut = extract(vision, tmp_path / "a.tar", tmp_path / "tar", num_workers=0)
    assert 0 < len(cut) < COUNT
    assert cut.errors
    none = extract(vision, tmp_path / "b.zip", tmp_path / "zip", num_workers=0)
    assert len(none) == 0
    assert "expected a whole zip file" in none.errors["b.zip"]


def test_members_of_zips_that_are_damaged(vision, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", photo_bytes(0))
        archive.writestr("bad.png", photo_bytes(1))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    start = content.index(b"bad.png") + 60
    content[start : start + 40] = bytes(40)
    (tmp_path / "a.zip").write_bytes(bytes(content))
    maps = extract(vision, tmp_path / "a.zip", tmp_path / "out", num_workers=0)
    assert maps.keys == ["good.png"]
    assert list(maps.errors) == ["bad.png"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nowhere", "got nothing at"),
        (lambda path: path / "a.tar.gz", "Unpack it first"),
        (lambda path: path, "no photos: expected some in"),
        (lambda path: 5, "got int"),
        (lambda path: [], "got an empty list"),
        (lambda path: [5], "got list"),
        (lambda path: f"{path}/x-*.tar", "Check the glob"),
    ],
)
def test_no_source(vision, tmp_path, make, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ExtractionError, match=message):
        extract(vision, make(tmp_path / "in"), tmp_path / "out", num_workers=0)


def test_descriptions_open_the_same_source(folder, tmp_path):
    for source in (folder, make_zip(tmp_path / "p.zip", COUNT), make_tar(tmp_path / "p.tar", COUNT)):
        first = open_source(source)
        again = reopen_source(first.description())
        assert {item.key for item in again.items()} == {item.key for item in first.items()}
