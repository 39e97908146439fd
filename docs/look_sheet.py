"""Draws `docs/pictures/looks.jpg`: the default look beside others, and beside the looks of other tools.

    python docs/look_sheet.py docs/pictures/looks.jpg

The other tools' looks are written down here from their published formulas, so that none of them has to be installed.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage import data

from attnhook import attend, load
from attnhook.imaging.looks import Look
from attnhook.imaging.overlays import blend

PHOTOS = ("chelsea", "astronaut", "coffee", "rocket", "immunohistochemistry")
WIDTH, HEIGHT, TITLE = 250, 190, 18
Pixels = NDArray[np.floating[Any]]


def stretched(heat: Pixels) -> Pixels:
    return (heat - np.nanmin(heat)) / (np.nanmax(heat) - np.nanmin(heat))


def grad_cam(photo: Pixels, heat: Pixels) -> Pixels:
    """`show_cam_on_image`: half jet, half photo, divided by the largest value."""
    mixed = 0.5 * mpl.colormaps["jet"](stretched(heat))[..., :3] + 0.5 * photo
    return np.where(np.isnan(heat)[..., None], photo, mixed / mixed.max())


def torchcam(photo: Pixels, heat: Pixels) -> Pixels:
    """`overlay_mask`: the photo at 0.7 over jet of the square."""
    mixed = 0.7 * photo + 0.3 * mpl.colormaps["jet"](stretched(heat) ** 2)[..., :3]
    return np.where(np.isnan(heat)[..., None], photo, mixed)


def dino(photo: Pixels, heat: Pixels) -> Pixels:
    """`visualize_attention.py`: the map alone, in viridis."""
    return np.where(np.isnan(heat)[..., None], 1.0, mpl.colormaps["viridis"](stretched(heat))[..., :3])


OLD = Look(colormap="viridis", alpha=0.5, scale="minmax", weighted=False, fade=0.0)
LOOKS: dict[str, Look | Callable[[Pixels, Pixels], Pixels]] = {
    "attnhook 0.1": OLD,
    "plasma (default)": Look(),
    "inferno": Look(colormap="inferno"),
    "turbo": Look(colormap="turbo"),
    "grad-cam": grad_cam,
    "torchcam": torchcam,
    "DINO": dino,
}


def drawn(look: Look | Callable[[Pixels, Pixels], Pixels], photo: Image.Image, heat: Pixels) -> Image.Image:
    if isinstance(look, Look):
        return blend(photo, heat, look)
    pixels = look(np.asarray(photo) / 255, heat)
    return Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))


def line(pictures: Sequence[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (WIDTH * len(pictures), HEIGHT), "white")
    for number, picture in enumerate(pictures):
        picture.thumbnail((WIDTH - 6, HEIGHT - 6))
        canvas.paste(picture, (WIDTH * number, 0))
    return canvas


def sheet() -> Image.Image:
    model, lines = load("demo"), []
    for name in PHOTOS:
        (result,) = attend(model, [getattr(data, name)()])
        heat = result.heatmap.numpy()
        lines.append(line([result.image.copy(), *(drawn(look, result.image, heat) for look in LOOKS.values())]))
    canvas = Image.new("RGB", (lines[0].width, TITLE + HEIGHT * len(lines)), "white")
    for number, title in enumerate(["photo", *LOOKS]):
        ImageDraw.Draw(canvas).text((WIDTH * number, 2), title, fill="black", font_size=13)
    for number, one in enumerate(lines):
        canvas.paste(one, (0, TITLE + HEIGHT * number))
    return canvas


if __name__ == "__main__":
    torch.set_num_threads(2)
    sheet().save(Path(sys.argv[1]), quality=85, optimize=True)
