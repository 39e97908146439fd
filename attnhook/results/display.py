"""How results look in a notebook: pictures of a moderate size, captions as plain text."""

import base64
import html
import io

from PIL import Image

_LONGEST = 640  # pixels of the longer edge
_JPEG_QUALITY = 88


def png_of(picture: Image.Image) -> bytes:
    """Encode a picture, shrunk to fit."""
    buffer = io.BytesIO()
    _fitted(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def html_of(picture: Image.Image, caption: str) -> str:
    """Show a picture above its caption."""
    shown = _fitted(picture)
    buffer = io.BytesIO()
    shown.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    text = html.escape(caption)
    return (
        f'<figure style="margin:0;max-width:{shown.width}px">'
        f'<img src="data:image/jpeg;base64,{data}" width="{shown.width}" alt="{text}" style="max-width:100%;height:auto">'
        f'<figcaption style="font-size:90%;opacity:.8">{text}</figcaption></figure>'
    )


def mimebundle(picture: Image.Image, caption: str, text: str) -> dict[str, str | bytes]:
    """All formats that a notebook can choose from."""
    return {"text/plain": text, "text/html": html_of(picture, caption), "image/png": png_of(picture)}


def _fitted(picture: Image.Image) -> Image.Image:
    shrink = _LONGEST / max(picture.size)
    if shrink >= 1:
        return picture
    return picture.resize([max(1, round(edge * shrink)) for edge in picture.size])
