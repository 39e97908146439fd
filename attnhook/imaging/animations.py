"""Overlays over the frames of a video, as an MP4, WebP, GIF or animated PNG file. Nothing decodes video here."""

import shutil
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnhook.errors import GeometryError, MissingPackageError
from attnhook.files import replacing
from attnhook.imaging.images import ImageSource
from attnhook.imaging.lettering import labelled
from attnhook.imaging.overlays import Heatmap, overlay_batch

_FORMATS = {".gif": "GIF", ".png": "PNG", ".apng": "PNG", ".webp": "WEBP", ".mp4": "MP4"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "GIF": {"disposal": 1, "optimize": False},
    "PNG": {},
    "WEBP": {"quality": 90, "method": 4},
}
_CRF = "18"  # x264's constant quality: lower is better, 18 is hardly to be told from the original


def overlay_video(
    frames: Sequence[ImageSource],
    maps: Sequence[Heatmap],
    path: str | Path,
    *,
    fps: float = 8.0,
    numbers: bool = False,
    **look: Any,
) -> Path:
    """Blend one heat map over each frame, and write a video or an animation that repeats.

    All frames share one range of values, so you can compare colours over time. An animated PNG is exact but large; MP4 and WebP are small.
    A GIF has 256 colours per frame, and is dithered.

    Args:
        frames: The frames, all of one size, as `read_image` takes them.
        maps: One heat map per frame, (height, width), of the frames' size.
        path: The file's path; `.mp4`, `.webp`, `.gif`, or `.png` or `.apng` for an animated PNG. MP4 needs the package av, or `ffmpeg` on the
            PATH; the last row or column is repeated where their number is odd.
        fps: Frames per second, 0.01 to 100. A GIF shows each frame for whole hundredths of a second, WebP and PNG for whole thousandths.
        numbers: Whether to write "frame 12 of 40" into the top left corner of each frame.
        **look: What `overlay_batch` takes; "minmax" and "robust" stretch all frames together.

    Returns:
        The path.

    Raises:
        GeometryError: If there are no frames, or they differ in size.
        MissingPackageError: If the path ends in `.mp4`, and there is neither av nor `ffmpeg`.
        OSError: If `ffmpeg` fails.
        ValueError: If the suffix or `fps` is not supported.

    Example:
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> frames = [Image.new("RGB", (64, 48))] * 3
        >>> overlay_video(frames, torch.rand(3, 48, 64), Path(tempfile.mkdtemp()) / "cat.webp").name
        'cat.webp'
    """
    target = Path(path)
    kind = _FORMATS.get(target.suffix.lower())
    if kind is None:
        raise ValueError(
            f"cannot write {target.name!r}: expected a name that ends in .mp4, .webp, .gif, .png or .apng. Change the suffix."
        )
    if not 0.01 <= fps <= 100:
        raise ValueError(f"cannot write {target.name!r}: expected 0.01 <= fps <= 100, got {fps}.")
    pictures = overlay_batch(frames, list(maps), **look)
    sizes = {picture.size for picture in pictures}
    if len(sizes) != 1:
        raise GeometryError(
            f"cannot write {target.name!r}: expected at least one frame, all of one size (width, height), got {sorted(sizes)}."
        )
    if numbers:
        texts = [f"frame {number} of {len(pictures)}" for number in range(1, len(pictures) + 1)]
        pictures = [labelled(picture, text) for picture, text in zip(pictures, texts, strict=True)]
    with replacing(target) as temporary:
        if kind == "MP4":
            _write_mp4(pictures, temporary, Fraction(fps).limit_denominator(1000))
        else:
            pictures = [_dithered(picture) for picture in pictures] if kind == "GIF" else pictures
            unit = (
                10 if kind == "GIF" else 1
            )  # milliseconds; Pillow cuts off what a GIF cannot hold: 60 frames would become 100
            times = {"duration": unit * round(1000 / fps / unit), "loop": 0}
            options = {"append_images": pictures[1:], **times, **_OPTIONS[kind]}
            pictures[0].save(temporary, kind, save_all=True, **options)
    return target


def _dithered(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours of its own: Pillow alone would leave bands where colours change slowly."""
    colors = picture.quantize(256, Image.Quantize.FASTOCTREE)
    return picture.quantize(palette=colors, dither=Image.Dither.FLOYDSTEINBERG)


def _write_mp4(pictures: Sequence[Image.Image], path: Path, rate: Fraction) -> None:
    """Write H.264 (MPEG-4 if this FFmpeg cannot) with BT.709 colours, which players assume of a video that says so."""
    width, height = pictures[0].size
    arrays = [
        np.pad(np.asarray(picture), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") for picture in pictures
    ]
    try:
        import av
    except ImportError:
        _pipe_to_ffmpeg(arrays, path, rate)
        return
    with av.open(_as_file(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        codec, quality = ("libx264", {"crf": _CRF}) if "libx264" in av.codecs_available else ("mpeg4", {"qmax": "3"})
        stream: Any = file.add_stream(codec, rate, options=quality)
        (stream.height, stream.width), stream.pix_fmt = arrays[0].shape[:2], "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1  # BT.709, limited
        for array in arrays:
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            file.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        file.mux(stream.encode())


def _as_file(path: Path) -> str:
    """A path that FFmpeg takes for no option (`-x.mp4`) and no network protocol (`tcp:x.mp4`)."""
    return f"file:{path}"


def _pipe_to_ffmpeg(arrays: Sequence[Any], path: Path, rate: Fraction) -> None:
    program = shutil.which("ffmpeg")
    if program is None:
        raise MissingPackageError(
            'cannot write an MP4: expected av or ffmpeg on the PATH, got neither. Run `pip install ".[video]"` in a clone, or choose '
            "a name that ends in .webp."
        )
    height, width = arrays[0].shape[:2]
    read = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate} -i -"
    write = f"-vf scale=out_color_matrix=bt709 -pix_fmt yuv420p -crf {_CRF} -movflags +faststart -f mp4"
    colors = "-color_primaries bt709 -color_trc bt709 -colorspace bt709 -color_range tv"
    command = [program, "-loglevel", "error", *read.split(), *write.split(), *colors.split(), _as_file(path)]
    done = subprocess.run(command, input=b"".join(one.tobytes() for one in arrays), capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        raise OSError(f"cannot write an MP4: ffmpeg failed: {done.stderr.decode(errors='replace').strip()}")
