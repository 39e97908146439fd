"""How results look in a notebook: pictures of a moderate size, captions as plain text."""

import base64
import html
import io
from typing import Any

from PIL import Image

_LONGEST = 640  # pixels of the longer edge
_JPEG_QUALITY = 88


def png_of(picture: Image.Image) -> bytes:
    """Encode a picture, shrunk to fit."""
    return encoded(shrunk(picture, _LONGEST), "PNG")


def html_of(picture: Image.Image, caption: str) -> str:
    """Show a picture above its caption."""
    shown, text = shrunk(picture, _LONGEST), html.escape(caption)
    source = data_url(encoded(shown, "JPEG", quality=_JPEG_QUALITY))
    return (
        f'<figure style="margin:0;max-width:{shown.width}px">'
        f'<img src="{source}" width="{shown.width}" alt="{text}" style="max-width:100%;height:auto">'
        f'<figcaption style="font-size:90%;opacity:.8">{text}</figcaption></figure>'
    )


def mimebundle(picture: Image.Image, caption: str, text: str) -> dict[str, str | bytes]:
    """All formats that a notebook can choose from."""
    return {"text/plain": text, "text/html": html_of(picture, caption), "image/png": png_of(picture)}


def shrunk(picture: Image.Image, longest: int) -> Image.Image:
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
