"""Words on a picture, drawn by Pillow: a colour bar beneath it, a label in its corner. Much cheaper than a figure."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from attnhook.imaging.panels import ColorBar

_SMALLEST, _WIDTHS = (
    11,
    28,
)  # text is 1/28 of the picture's width high, so that it is legible in a picture that is shown smaller


@cache
def _font(size: int) -> Any:
    import matplotlib as mpl

    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _font_for(picture: Image.Image) -> Any:
    return _font(max(_SMALLEST, round(picture.width / _WIDTHS)))


def with_color_bar(picture: Image.Image, bar: ColorBar | None, note: str | None = None) -> Image.Image:
    """The picture above its colour bar, with the values of both ends and of the middle; or above a note, if there is no bar."""
    font = _font_for(picture)
    line, gap = round(1.3 * font.size), round(0.3 * font.size)
    lines = _wrapped(note or "" if bar is None else bar.label, font, picture.width - 2 * gap)
    width = max(picture.width, *(math.ceil(font.getlength(text)) + 2 * gap for text in lines))
    strip = 0 if bar is None else round(0.7 * font.size)
    top = picture.height + gap
    whole = Image.new("RGB", (width, top + strip + line * (len(lines) + (bar is not None)) + gap), "white")
    whole.paste(picture)
    draw = ImageDraw.Draw(whole)
    if bar is not None:
        colors = Image.fromarray(np.rint(255 * bar.colors[None]).astype(np.uint8))
        whole.paste(colors.resize((picture.width, strip)), (0, top))
        top += strip
        for x, text, anchor in zip((gap, width / 2, width - gap), _values(bar), ("la", "ma", "ra"), strict=True):
            draw.text((x, top), text, "black", font, anchor)
        top += line
    for number, text in enumerate(lines):
        draw.text((width / 2, top + number * line), text, "black", font, "ma")
    return whole


def _values(bar: ColorBar) -> tuple[str, str, str]:
    """What stands under the ends and the middle of a bar."""
    middle = math.sqrt(bar.low * bar.high) if bar.logarithmic else (bar.low + bar.high) / 2
    below = "≤ " if bar.extend in ("min", "both") else ""
    above = "≥ " if bar.extend in ("max", "both") else ""
    return f"{below}{bar.low:.3g}", f"{middle:.3g}", f"{above}{bar.high:.3g}"


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def labelled(picture: Image.Image, text: str) -> Image.Image:
    """The picture with a label in its top left corner, white on black."""
    font, whole = _font_for(picture), picture.copy()
    draw, edge = ImageDraw.Draw(whole), round(0.3 * _font_for(picture).size)
    left, top, right, bottom = draw.textbbox((2 * edge, 2 * edge), text, font)
    draw.rectangle((left - edge, top - edge, right + edge, bottom + edge), "black")
    draw.text((2 * edge, 2 * edge), text, "white", font)
    return whole
