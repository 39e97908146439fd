"""A log folder that others can write to: its page shows nothing from elsewhere, and nothing is written elsewhere."""

import logging
import pickle
from pathlib import Path

import pytest
import torch
from PIL import EpsImagePlugin, Image

from attnhook import DirectoryWriter
from attnhook.errors import ImageError
from attnhook.monitoring.log_folders import page_of

SECRET = "the secret of another folder"  # noqa: S105 (a marker)


def log(folder: Path) -> Path:
    writer = DirectoryWriter(folder)
    writer.scalars({"attention/entropy": 1.0}, 100)
    writer.image("attention/overlay/0", Image.new("RGB", (8, 8)), 100)
    return folder / "attention/overlay/0"


def test_links_put_no_file_from_elsewhere_into_the_page(tmp_path, monkeypatch, caplog):
    (tmp_path / "secret.jpg").write_text(SECRET)
    (tmp_path / "secret.jsonl").write_text(f'{{"step": 1, "tag": "a", "text": "{SECRET}"}}\n')
    pictures = log(tmp_path / "run")
    clean = page_of(tmp_path / "run", most=10)
    (pictures / "step-00000200.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "run/texts.jsonl").symlink_to("../secret.jsonl")
    (pictures / "step-00000300.jpg").symlink_to("step-00000100.jpg")  # this one stays inside
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "run", Path("run")):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "attnhook"):
            page = page_of(folder, most=10)
        assert SECRET not in page
        assert page.count('id="picture-0-') == clean.count('id="picture-0-') + 1
        said = sorted(record.getMessage() for record in caplog.records)
        assert [line.partition(" is left out")[0] for line in said] == [
            "'attention/overlay/0/step-00000200.jpg'",
            "'texts.jsonl'",
        ]


def test_pictures_of_a_log_are_guarded_as_photos_are(tmp_path, monkeypatch):
    pictures = log(tmp_path)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(pictures / "step-00000200.png")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **options: pytest.fail("Ghostscript was started"))
    with pytest.raises(ImageError, match="PostScript"):
        page_of(tmp_path, most=10)
    Image.new("RGB", (40, 40)).save(pictures / "step-00000200.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS = 1000"):
        page_of(tmp_path, most=10)


@pytest.mark.parametrize("there", [True, False])
def test_no_line_is_appended_through_a_link(tmp_path, there):
    target = tmp_path / "precious"
    if there:
        target.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/scalars.jsonl").symlink_to(target)
    with pytest.raises(OSError, match="expected a file, got a link"):
        DirectoryWriter(tmp_path / "run").scalars({"a": 1.0}, 1)
    assert (target.read_text() == "kept") if there else not target.exists()


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    log(tmp_path / "run")
    page = page_of(tmp_path / "run", most=10)
    assert page.count('id="picture-0-') == 1
    assert (tmp_path / "disk/scalars.jsonl").read_text().count("\n") == 1


def test_a_picture_replaces_a_link_at_its_name(tmp_path):
    (tmp_path / "precious").write_text("kept")
    folder = tmp_path / "run/attention/overlay/0"
    folder.mkdir(parents=True)
    (folder / "step-00000100.jpg").symlink_to(tmp_path / "precious")
    log(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (folder / "step-00000100.jpg").is_symlink()


class Payload:
    """What a pickle would run."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


def test_the_state_in_a_checkpoint_is_data(tmp_path):
    """A pickle in its place is not run."""
    transformers = pytest.importorskip("attnhook.monitoring.integrations.transformers")
    path = tmp_path / transformers.STATE_FILE
    rows = {"": {"blocks.0": torch.rand(1, 2, 3)}}
    transformers._write({"rows": rows, "last_step": 7}, path)
    found = transformers._read(path)
    assert found["last_step"] == 7
    assert torch.equal(found["rows"][""]["blocks.0"], rows[""]["blocks.0"])
    for content in (pickle.dumps(Payload()), b"", path.read_bytes()[:-1]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot resume the monitor: expected its state in .*, got a file"):
            transformers._read(path)
