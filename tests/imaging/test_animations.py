"""Animations: every frame there, on one scale, written whole or not at all."""

import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageSequence

from attnhook.errors import GeometryError, MissingPackageError
from attnhook.imaging.animations import overlay_video
from attnhook.imaging.drawing import overlay
from attnhook.imaging.overlays import overlay_batch
from tests.imaging.expected import PLAIN, differs_little, painted

FRAMES = [Image.fromarray(np.full((48, 64, 3), 40 * number, np.uint8)) for number in range(4)]
MAPS = torch.rand(4, 48, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.2, 0.4, 0.8, 1.0]).view(
    4, 1, 1
)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.apng"])
@pytest.mark.parametrize("scale", ["minmax", "robust", (0.0, 0.5)])
def test_every_frame_on_one_scale(tmp_path, name, scale):
    path = overlay_video(FRAMES, MAPS, tmp_path / name, fps=5, scale=scale)
    low, high = {"minmax": (MAPS.min(), MAPS.max()), "robust": np.percentile(MAPS, [1, 99])}.get(scale, scale)
    floor = float(low) if scale == (0.0, 0.5) else float(np.median(MAPS))
    with Image.open(path) as video:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(video)]
        assert video.info["duration"] == 200
        assert video.info["loop"] == 0
    assert len(frames) == 4
    for frame, photo, values in zip(frames, FRAMES, MAPS, strict=True):
        wanted = np.asarray(overlay(photo, values, scale=(float(low), float(high)), floor=floor))
        assert differs_little(wanted, painted(photo, values, float(low), float(high), floor))
        difference = np.abs(np.asarray(frame).astype(int) - wanted)
        assert difference.max() <= (0 if path.suffix != ".gif" else 40)
        assert difference.mean() <= (0 if path.suffix != ".gif" else 4)
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("fps", "duration"), [(60, 20), (50, 20), (55, 20), (30, 30), (24, 40), (100, 10), (0.01, 100_000)]
)
def test_a_gif_takes_the_nearest_hundredth_of_a_second(tmp_path, fps, duration):
    with Image.open(overlay_video(FRAMES, MAPS, tmp_path / "a.gif", fps=fps)) as video:
        assert video.info["duration"] == duration


def soft(height: int, width: int, count: int) -> tuple[list[Image.Image], torch.Tensor]:
    """Photos and maps whose colours change slowly, as in a sky: what few colours break into bands, and video codecs keep."""
    y, x = np.mgrid[:height, :width]
    photo = np.stack([60 + 150 * x / width, 80 + 120 * y / height, 200 - 100 * x / width], axis=-1)
    centres = np.linspace(0.2, 0.8, count) * width
    maps = [np.exp(-((x - centre) ** 2 + (y - height / 2) ** 2) / (0.1 * width * height)) for centre in centres]
    return [Image.fromarray(photo.astype(np.uint8))] * count, torch.tensor(np.stack(maps), dtype=torch.float32)


def test_a_gif_has_no_bands(tmp_path):
    frames, maps = soft(120, 160, 3)
    exact = overlay_batch(frames, list(maps))
    with Image.open(overlay_video(frames, maps, tmp_path / "a.gif")) as video:
        written = [frame.convert("RGB") for frame in ImageSequence.Iterator(video)]
    banded = [frame.quantize(256).convert("RGB") for frame in exact]

    def seen(frames):  # from a distance, as an eye mixes neighbours
        blurred = [np.asarray(frame.filter(ImageFilter.BoxBlur(2))).astype(int) for frame in frames]
        return np.abs(np.stack(blurred) - [np.asarray(one.filter(ImageFilter.BoxBlur(2))) for one in exact]).mean()

    assert seen(written) < 1
    assert seen(written) < 0.7 * seen(banded)


def test_a_webp(tmp_path):
    frames, maps = soft(121, 159, 5)
    with Image.open(overlay_video(frames, maps, tmp_path / "a.webp", fps=4)) as video:
        assert (video.format, video.n_frames, video.size) == ("WEBP", 5, (159, 121))
        assert video.info["loop"] == 0
        written = []
        for frame in ImageSequence.Iterator(video):
            written.append(np.asarray(frame.convert("RGB")).astype(int))
            assert video.info["duration"] == 250
    for picture, exact in zip(written, overlay_batch(frames, list(maps)), strict=True):
        assert np.abs(picture - np.asarray(exact)).mean() < 3
    assert (tmp_path / "a.webp").stat().st_size < 20_000


def decoded(path) -> tuple[list[np.ndarray], float]:
    """The frames of an MP4 and its frames per second."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = list(file.decode(stream))
        assert [frame.colorspace for frame in frames] == [1] * len(frames)  # BT.709, as the pixels below are read
        arrays = [frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray() for frame in frames]
        return arrays, float(stream.average_rate)


def check_mp4(tmp_path, size: tuple[int, int]) -> None:
    frames, maps = soft(*size, 9)
    path = overlay_video(frames, maps, tmp_path / "a.mp4", fps=7.5, scale="minmax")
    written, rate = decoded(path)
    assert rate == 7.5
    assert len(written) == 9
    height, width = size
    for picture, exact in zip(written, overlay_batch(frames, list(maps), scale="minmax"), strict=True):
        assert picture.shape == (height + height % 2, width + width % 2, 3)
        difference = np.abs(picture[:height, :width].astype(int) - np.asarray(exact))
        assert difference.mean() < 3
        assert np.percentile(difference, 99) < 12
    assert [one.name for one in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("size", [(120, 160), (121, 159)])
def test_an_mp4_read_back(tmp_path, size):
    pytest.importorskip("av")
    check_mp4(tmp_path, size)


def test_an_mp4_without_libx264(tmp_path, monkeypatch):
    av = pytest.importorskip("av")
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    check_mp4(tmp_path, (120, 160))
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.streams.video[0].codec_context.name == "mpeg4"


def test_an_mp4_of_a_real_ffmpeg(tmp_path, monkeypatch):
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg on the PATH")
    monkeypatch.setitem(sys.modules, "av", None)
    frames, maps = soft(121, 159, 9)
    overlay_video(frames, maps, tmp_path / "b.mp4", fps=7.5, scale="minmax")
    monkeypatch.undo()
    written, rate = decoded(tmp_path / "b.mp4")
    exact = overlay_batch(frames, list(maps), scale="minmax")
    assert (rate, len(written), written[0].shape) == (7.5, 9, (122, 160, 3))
    assert np.abs(written[4][:121, :159].astype(int) - np.asarray(exact[4])).mean() < 3


def test_what_ffmpeg_is_given(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackageError, match=r'got neither. Run `pip install "\.\[video\]"`'):
        overlay_video(FRAMES, MAPS, tmp_path / "a.mp4")
    program = tmp_path / "ffmpeg"
    read = "open(sys.argv[-1].removeprefix('file:'), 'wb').write(sys.stdin.buffer.read())"
    lines = f"#!{sys.executable}\nimport sys\n{read}\n"
    program.write_text(lines + f"open({str(tmp_path / 'said')!r}, 'w').write(' '.join(sys.argv))\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    frames, maps = soft(21, 33, 4)
    raw = np.frombuffer(overlay_video(frames, maps, tmp_path / "a.mp4", fps=12.5).read_bytes(), np.uint8)
    assert " -s 34x22 -r 25/2 -i - " in (tmp_path / "said").read_text()
    for picture, exact in zip(raw.reshape(4, 22, 34, 3), overlay_batch(frames, list(maps)), strict=True):
        assert np.array_equal(picture[:21, :33], exact)
        assert np.array_equal(picture[21], picture[20])
        assert np.array_equal(picture[:, 33], picture[:, 32])
    program.write_text(lines + "sys.exit('Unknown encoder')\n")
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(OSError, match="ffmpeg failed: Unknown encoder"):
        overlay_video(frames, maps, tmp_path / "a.mp4")
    assert not list(tmp_path.glob("a.mp4*"))


@pytest.mark.parametrize("name", ["-version.mp4", "tcp:127.0.0.1:9.mp4", "concat:a|b.mp4"])
def test_a_name_is_no_option_and_no_address(tmp_path, monkeypatch, name):
    """FFmpeg takes what begins with `-` for an option, and `tcp:` for a network."""
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    overlay_video(*soft(16, 16, 2), name)
    assert [one.name for one in tmp_path.iterdir()] == [name]
    given = []
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("attnhook.imaging.animations.shutil.which", lambda _: "ffmpeg")
    failed = subprocess.CompletedProcess([], 1, stderr=b"stopped here")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: given.append(command[-1]) or failed)
    with pytest.raises(OSError, match="stopped here"):
        overlay_video(*soft(16, 16, 2), name)
    assert given[0].startswith(f"file:{name[:5]}")


def test_frame_numbers(tmp_path):
    frames, maps = soft(120, 160, 12)
    pictures = []
    for numbers in (True, False):
        with Image.open(overlay_video(frames, maps, tmp_path / "a.png", numbers=numbers)) as video:
            pictures.append([frame.convert("RGB") for frame in ImageSequence.Iterator(video)])
    changed = [np.asarray(one).astype(int) - np.asarray(other) for one, other in zip(*pictures, strict=True)]
    places = np.argwhere(np.abs(changed).max(axis=(0, 3)))
    assert places.min(axis=0).max() <= 5  # in the top left corner
    assert places.max(axis=0)[0] < 24
    assert places.max(axis=0)[1] < 110
    labels = [np.asarray(one)[:20, :110] for one in pictures[0]]
    for label in labels:
        assert (label.min(axis=-1) == 255).sum() > 30  # white letters
    assert len({label[:, :105].tobytes() for label in labels}) == 12


def test_frames_in_a_look_of_ones_own(tmp_path):
    path = overlay_video(FRAMES, MAPS, tmp_path / "a.png", alpha=0.5, **PLAIN)
    options = PLAIN | {"scale": (float(MAPS.min()), float(MAPS.max())), "alpha": 0.5}
    with Image.open(path) as video:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(video)]
    for frame, photo, values in zip(frames, FRAMES, MAPS, strict=True):
        assert frame.tobytes() == overlay(photo, values, **options).tobytes()


def test_refusals(tmp_path):
    with pytest.raises(TypeError, match=r"got 'frames_per_second'"):
        overlay_video(FRAMES, MAPS, tmp_path / "a.gif", frames_per_second=3)
    with pytest.raises(ValueError, match=r"ends in \.mp4, \.webp, \.gif, \.png or \.apng"):
        overlay_video(FRAMES, MAPS, tmp_path / "a.avi")
    with pytest.raises(ValueError, match=r"0\.01 <= fps <= 100, got 0"):
        overlay_video(FRAMES, MAPS, tmp_path / "a.gif", fps=0)
    with pytest.raises(ValueError, match=r"got 0\.0001"):
        overlay_video(FRAMES, MAPS, tmp_path / "a.mp4", fps=1e-4)  # PyAV would take 24
    with pytest.raises(GeometryError, match="at least one frame"):
        overlay_video([], [], tmp_path / "a.gif")
    with pytest.raises(GeometryError, match="all of one size"):
        overlay_video([FRAMES[0], FRAMES[0].resize((32, 24))], [MAPS[0], MAPS[1, ::2, ::2]], tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []
