"""Overlays over the frames of a video, as an animated GIF or PNG. Pillow writes them; nothing decodes video here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnhook.errors import GeometryError
from attnhook.files import replacing
from attnhook.imaging.images import ImageSource
from attnhook.imaging.overlays import Heatmap, overlay_batch

_FORMATS = {".gif": "GIF", ".png": "PNG", ".apng": "PNG"}


def overlay_video(
    frames: Sequence[ImageSource],
    maps: Sequence[Heatmap],
    path: str | Path,
    *,
    fps: float = 8.0,
    **look: Any,
) -> Path:
    """Blend one heat map over each frame, and write an animation that repeats.

    All frames share one range of values, so brightness over time means something. A GIF has 256 colours per frame; an animated PNG is exact.

    Args:
        frames: The frames, all of one size, as `read_image` takes them.
        maps: One heat map per frame, (height, width), of the frames' size.
        path: The file's path; `.gif`, or `.png` or `.apng` for an animated PNG.
        fps: Frames per second.
        **look: What `overlay_batch` takes; "minmax" and "robust" stretch all frames together.

    Returns:
        The path.

    Raises:
        GeometryError: If there are no frames, or they differ in size.
        ValueError: If the suffix or `fps` is not supported.

    Example:
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> frames = [Image.new("RGB", (64, 48))] * 3
        >>> overlay_video(frames, torch.rand(3, 48, 64), Path(tempfile.mkdtemp()) / "cat.gif").name
        'cat.gif'
    """
    target = Path(path)
    kind = _FORMATS.get(target.suffix.lower())
    if kind is None:
        raise ValueError(f"cannot write {target.name!r}: expected a name that ends in .gif, .png or .apng.")
    if not 0 < fps <= 100:
        raise ValueError(f"cannot write {target.name!r}: expected 0 < fps <= 100, got {fps}.")
    pictures = overlay_batch(frames, list(maps), **look)
    sizes = {picture.size for picture in pictures}
    if len(sizes) != 1:
        raise GeometryError(
            f"cannot write {target.name!r}: expected at least one frame, all of one size (width, height), got {sorted(sizes)}."
        )
    options: dict[str, Any] = {"disposal": 1, "optimize": False} if kind == "GIF" else {}
    with replacing(target) as temporary:
        pictures[0].save(
            temporary, kind, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, **options
        )
    return target
