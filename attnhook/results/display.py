"""How results look in a notebook: pictures of a moderate size, captions as plain text; and what a caption adds to what the map says."""

import html
from dataclasses import replace

from PIL import Image

from attnhook.capture.records import AttentionMaps
from attnhook.imaging.encoded_pictures import data_url, encoded, shrunk_to
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Rows

FOR_CLASS = ", for class "  # how the class of a gradient method begins in a caption
_LONGEST = 640  # pixels of the longer edge
_JPEG_QUALITY = 88


def png_of(picture: Image.Image) -> bytes:
    """Encode a picture, shrunk to fit."""
    return encoded(shrunk_to(picture, _LONGEST), "PNG")


def html_of(picture: Image.Image, caption: str) -> str:
    """Show a picture above its caption."""
    shown, text = shrunk_to(picture, _LONGEST), html.escape(caption)
    source = data_url(encoded(shown, "JPEG", quality=_JPEG_QUALITY))
    return (
        f'<figure style="margin:0;max-width:{shown.width}px">'
        f'<img src="{source}" width="{shown.width}" alt="{text}" style="max-width:100%;height:auto">'
        f'<figcaption style="font-size:90%;opacity:.8">{text}</figcaption></figure>'
    )


def mimebundle(picture: Image.Image, caption: str, text: str) -> dict[str, str | bytes]:
    """All formats that a notebook can choose from."""
    return {"text/plain": text, "text/html": html_of(picture, caption), "image/png": png_of(picture)}


def captioned(patch_map: PatchMap, model: str, target: str | int | None = None, score: float | None = None) -> PatchMap:
    """Put the model's name, and the class of a gradient method with its score, into a map's caption."""
    of_class = "" if target is None else f", for {class_in_words(target, score)}"
    return replace(patch_map, description=f"{model}: {patch_map.description}{of_class}")


def class_in_words(target: str | int, score: float | None) -> str:
    """A class and its score."""
    return f"class {target!r}" if score is None else f"class {target!r} (score {score:.3g})"


def rows_in_words(maps: AttentionMaps) -> str:
    """Name the rows that are shown, for settings and manifests; for captions see `row_in_words` in `attnhook.attribution.map_making`."""
    if not isinstance(maps.selected_rows, Rows):
        return str(list(maps.selected_rows))
    shown = maps.readout.rows if maps.selected_rows is Rows.ALL else maps.selected_rows
    return "all" if shown is None else shown.value
