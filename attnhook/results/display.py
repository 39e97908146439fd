"""How results look in a notebook: pictures of a sensible size, captions escaped."""

import base64
import html
import io

from PIL import Image

LONGEST = 640
"""Most pixels of the longer edge of a picture in a notebook."""

_JPEG_QUALITY = 88


def png_of(picture: Image.Image, longest: int = LONGEST) -> bytes:
    """Encode a picture, made smaller if need be."""
    buffer = io.BytesIO()
    _fitted(picture, longest).save(buffer, format="PNG")
    return buffer.getvalue()


def html_of(picture: Image.Image, caption: str, longest: int = LONGEST) -> str:
    """Show a picture above its caption."""
    shown = _fitted(picture, longest)
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
    """Everything that a notebook may choose from."""
    return {"text/plain": text, "text/html": html_of(picture, caption), "image/png": png_of(picture)}


def _fitted(picture: Image.Image, longest: int) -> Image.Image:
    shrink = longest / max(picture.size)
    if shrink >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink))))
