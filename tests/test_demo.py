"""The demo; in full only with the real weights."""

import sys

import pytest
from PIL import Image

from attnhook import demo
from attnhook.cli import main
from attnhook.errors import MissingPackageError
from tests.models import demo_at_224_pixels


def test_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingPackageError, match=r'pip install "\.\[demo\]"'):
        demo.read_photos()


@pytest.mark.slow
def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "PHOTOS", ("chelsea",))
    demo_at_224_pixels(monkeypatch)
    assert main(["demo", "--out", str(tmp_path / "out"), "--repeats", "5"]) == 0
    said = capsys.readouterr().out
    assert "differ by at most" in said
    assert "times the bare forward" in said
    assert '"five and zero"' in said
    paths = sorted((tmp_path / "out").iterdir())
    assert len(paths) == 9
    for path in paths:
        assert str(path) in said
    for path in (tmp_path / "out").glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
