"""Pictures as the content of files, and of pages."""

import base64
import io
from typing import Any

from PIL import Image


def shrunk_to(picture: Image.Image, longest: int) -> Image.Image:
    """Shrink a picture whose longer edge has more pixels."""
    shrink = longest / max(picture.size)
    return picture if shrink >= 1 else picture.resize([max(1, round(edge * shrink)) for edge in picture.size])


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the content of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def data_url(jpeg: bytes) -> str:
    """A JPEG file inside a page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
