"""Animations: every frame there, on one scale, written whole or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from attnhook.errors import GeometryError
from attnhook.imaging.animations import overlay_video
from attnhook.imaging.drawing import overlay
from attnhook.imaging.overlays import common_range

FRAMES = [Image.fromarray(np.full((48, 64, 3), 40 * number, np.uint8)) for number in range(4)]
MAPS = torch.rand(4, 48, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.2, 0.4, 0.8, 1.0]).view(
    4, 1, 1
)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.apng"])
@pytest.mark.parametrize("scale", ["minmax", "robust", (0.0, 0.5)])
def test_every_frame_on_one_scale(tmp_path, name, scale):
    path = overlay_video(FRAMES, MAPS, tmp_path / name, fps=5, scale=scale)
    bounds = common_range(list(MAPS), scale)
    with Image.open(path) as video:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(video)]
        assert video.info["duration"] == 200
        assert video.info["loop"] == 0
    assert len(frames) == 4
    for frame, photo, values in zip(frames, FRAMES, MAPS, strict=True):
        difference = np.abs(np.asarray(frame).astype(int) - np.asarray(overlay(photo, values, scale=bounds)))
        assert difference.max() <= (0 if path.suffix != ".gif" else 40)
        assert difference.mean() <= (0 if path.suffix != ".gif" else 4)
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.gif, \.png or \.apng"):
        overlay_video(FRAMES, MAPS, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="0 < fps <= 100, got 0"):
        overlay_video(FRAMES, MAPS, tmp_path / "a.gif", fps=0)
    with pytest.raises(GeometryError, match="at least one frame"):
        overlay_video([], [], tmp_path / "a.gif")
    with pytest.raises(GeometryError, match="all of one size"):
        overlay_video([FRAMES[0], FRAMES[0].resize((32, 24))], [MAPS[0], MAPS[1, ::2, ::2]], tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []
