"""Animations: every frame there, on one scale, written whole or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from attnhook.errors import GeometryError
from attnhook.imaging.animations import overlay_video
from attnhook.imaging.drawing import overlay
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
    with pytest.raises(ValueError, match=r"ends in \.gif, \.png or \.apng"):
        overlay_video(FRAMES, MAPS, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="0 < fps <= 100, got 0"):
        overlay_video(FRAMES, MAPS, tmp_path / "a.gif", fps=0)
    with pytest.raises(GeometryError, match="at least one frame"):
        overlay_video([], [], tmp_path / "a.gif")
    with pytest.raises(GeometryError, match="all of one size"):
        overlay_video([FRAMES[0], FRAMES[0].resize((32, 24))], [MAPS[0], MAPS[1, ::2, ::2]], tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []
