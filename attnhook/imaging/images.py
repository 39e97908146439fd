"""Reads any image as an upright 8-bit RGB PIL image: the photo on screen is the photo that the model saw.

The EXIF orientation is applied, also to PIL images. Transparency is composited on white. 16-bit grey is scaled, not
clipped; floats are read as [0, 1]. CMYK goes through the file's own ICC profile; RGB profiles are ignored, as the model
libraries do. Of an animation, a path gives the first frame and a PIL image its current one. What could be read in two
ways is refused, such as a normalised tensor or a batch. Nothing is downloaded, Pillow's limits against decompression
bombs stay on, and PostScript, which another program would read, is not opened.
"""

import io
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from attnhook.errors import ImageError
from attnhook.files import readable, user_path
from attnhook.imaging.photo_files import is_url, photo_paths

ImageSource: TypeAlias = "str | Path | bytes | Image.Image | NDArray[Any] | torch.Tensor"
"""What `read_image` takes."""

_ROUNDING_SLACK = 1 / 512  # half an 8-bit step: what resampling in floating point overshoots [0, 1] by
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_ORIENTATION = 0x0112  # the EXIF tag
_WHITE = (255, 255, 255, 255)


def read_image(source: ImageSource) -> Image.Image:
    """Read an image from wherever it is."""
    if isinstance(source, Image.Image):
        return _from_pil(source, f"PIL image of mode {source.mode}")
    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, "numpy array")
    if isinstance(source, str | Path):
        with open_image(source) as opened:
            return _from_pil(opened, readable(str(source)))
    if isinstance(source, bytes):
        name = f"an image of {len(source):,} bytes"
        with _opened(io.BytesIO(source), len(source), name) as opened:
            return _from_pil(opened, name)
    raise ImageError(
        f"cannot read an image: expected a path, bytes, PIL image, numpy array or torch tensor, got {type(source).__name__}. "
        "Pass one image at a time, in one of these types."
    )


def each_image(images: "ImageSource | Iterable[ImageSource]") -> list[ImageSource]:
    """One image or several, as a list, with the photos of folders and globs."""
    one = isinstance(images, str | Path | bytes | Image.Image | np.ndarray | torch.Tensor)
    photos: list[Any] = []
    for image in images if isinstance(images, Iterable) and not one else [images]:
        photos += photo_paths(image) if isinstance(image, str | Path) else [image]
    return photos


def open_image(source: str | Path) -> Image.Image:
    """Open an image file from an untrusted source: its header is read, its pixels are not yet."""
    path = check_file(source)
    return _opened(path, path.stat().st_size, readable(str(path)))


def check_file(source: str | Path) -> Path:
    """The path of an image file, unopened; what is none is refused."""
    path, name = user_path(source), readable(str(source))
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        if is_url(str(source)):
            raise ImageError(
                f"cannot read {name}: expected a local file, got a URL. Download it first; nothing is fetched here."
            ) from error
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        got = "no file at this path" if missing else getattr(error, "strerror", None) or error
        raise ImageError(
            f"cannot read {name}: expected an image file, got {got}. Pass the path of one file."
        ) from error
    if not stat.S_ISREG(mode):
        raise ImageError(
            f"cannot read {name}: expected an image file, got a directory or device. Pass the path of one file."
        )
    return path


def orientation_of(source: Any) -> int:
    """Read which way up a photo is stored."""
    if isinstance(source, str | Path):
        with open_image(source) as opened:
            return orientation_of(opened)
    return int(source.getexif().get(_ORIENTATION, 1)) if isinstance(source, Image.Image) else 1


@contextmanager
def _readable(name: str, file: Path | io.BytesIO | None = None) -> Iterator[None]:
    """Turn whatever Pillow raises on an image into an error that says what to do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"cannot read {name}: expected at most PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS} pixels, got more ({error}). "
            "If you trust the file, raise that limit, or shrink the image first."
        ) from error
    except UnidentifiedImageError as error:
        if file is not None and _is_heic(file):
            raise ImageError(
                f"cannot read {name}: expected an image file that Pillow knows, got HEIC. Install pillow-heif and call "
                "pillow_heif.register_heif_opener() in Python, or convert it to PNG or JPEG."
            ) from error
        raise ImageError(
            f"cannot read {name}: expected an image file that Pillow knows, got something else. Convert it to PNG or JPEG."
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever damaged data leads them into
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ImageError(
            f"cannot read {name}: expected an intact image, got {reason}. It is damaged or cut short; fetch it again."
        ) from error


def _opened(file: Path | io.BytesIO, size: int, name: str) -> Image.Image:
    if size == 0:
        raise ImageError(
            f"cannot read {name}: expected an image file, got an empty file (0 bytes). Fetch the file again."
        )
    with _readable(name, file):
        opened = Image.open(file)
    if opened.format == "EPS":  # whatever the file is called
        opened.close()
        raise ImageError(
            f"cannot read {name}: expected pixels, got PostScript, a program that Pillow would run in Ghostscript. If you trust it, convert "
            "it to PNG."
        )
    return opened


def _is_heic(file: Path | io.BytesIO) -> bool:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            head = opened.read(12)
    else:
        head = file.getvalue()[:12]
    return head[4:8] == b"ftyp" and head[8:] in _HEIC_BRANDS


def _from_pil(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(
            f"cannot read {name}: expected at least one pixel, got width x height {image.size}. Check how it was made."
        )
    with _readable(name):
        image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block must not cost the user an intact picture
        upright = image.copy()
    try:
        return _to_rgb(upright, name)
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"cannot read {name}: expected a mode that Pillow converts to RGB, got {image.mode} ({error}). Convert it yourself first."
        ) from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert an upright, loaded image that may be overwritten."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Pillow before 11.3 read 16-bit PNGs as "I", which does not say how many of its 32 bits are in use.
        values = np.asarray(image)
        if image.mode == "I" and (values.min() < 0 or values.max() > np.iinfo(np.uint16).max):
            raise ImageError(
                f"cannot read {name}: expected 16-bit values 0..65535 in mode I, got {values.min()}..{values.max()}. Scale it to 8 bits."
            )
        return _from_array(values.astype(np.uint16) if image.mode != "F" else values, name)
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if image.has_transparency_data:
        colours = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), colours).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_cmyk(image: Image.Image) -> Image.Image:
    if profile := image.info.get("icc_profile"):
        from PIL import ImageCms

        # No littlecms, or a profile that it cannot use.
        with suppress(ImportError, OSError, ValueError, ImageCms.PyCMSError):
            srgb = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB") or image.convert("RGB")
    return image.convert("RGB")


def _from_tensor(tensor: torch.Tensor) -> Image.Image:
    _check_shape(tuple(tensor.shape), "torch tensor", channels_first=True)
    values = tensor.detach().cpu()
    if values.is_floating_point():
        values = values.float()  # numpy has no bfloat16
    return _from_array((values if values.ndim == 2 else values.permute(1, 2, 0)).numpy(), "torch tensor")


def _check_shape(shape: tuple[int, ...], kind: str, *, channels_first: bool) -> None:
    axis = 0 if channels_first else -1
    if 0 in shape:
        raise ImageError(
            f"cannot read a {kind} as an image: expected at least one pixel, got shape {shape}. Check how it was made."
        )
    if len(shape) == 2 or (len(shape) == 3 and shape[axis] in (1, 3, 4)):
        return
    remedy = "Reshape it first."
    if len(shape) == 4:
        remedy = f"Pass one image of the batch, such as {'tensor' if channels_first else 'array'}[0]."
    elif len(shape) == 3 and shape[-1 - axis] in (1, 3, 4):
        remedy = f"Use {'tensor.permute(2, 0, 1)' if channels_first else 'array.transpose(1, 2, 0)'}."
    layout = "(1 | 3 | 4, height, width)" if channels_first else "(height, width, 1 | 3 | 4)"
    raise ImageError(
        f"cannot read a {kind} as an image: expected (height, width) or {layout}, got shape {shape}. {remedy}"
    )


def _from_array(array: NDArray[Any], kind: str) -> Image.Image:
    _check_shape(array.shape, kind, channels_first=False)
    pixels = _to_uint8(array, kind)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), kind)


def _to_uint8(array: NDArray[Any], kind: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(
            f"cannot read a {kind} as an image: expected uint8, uint16, bool or floating point, got {array.dtype}. "
            "Convert it to uint8 with values 0..255."
        )
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(
            f"cannot read a {kind} as an image: expected finite values in [0, 1], got NaN or infinity. Replace them first."
        )
    if low < -_ROUNDING_SLACK or high > 1 + _ROUNDING_SLACK:
        remedy = "Divide by the largest possible value, or convert to uint8."
        if low < 0:
            remedy = "Undo the model's normalisation (x * std + mean), or pass the original photo."
        raise ImageError(
            f"cannot read a {kind} as an image: expected floating point in [0, 1], got values from {low:.4g} to {high:.4g}. {remedy}"
        )
    pixels: NDArray[np.uint8] = np.rint(array.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)
    return pixels
