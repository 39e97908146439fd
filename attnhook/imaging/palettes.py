"""Colour tables: 256 colours by a colormap's name.

The usual perceptually uniform maps come with the package, each as one row of `colormaps.png` (sampled from matplotlib's, which are in the
public domain), so overlays need no matplotlib. Every other name is looked up in matplotlib, once per process.
"""

import difflib
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEVELS = 256
BUNDLED = ("viridis", "magma", "inferno", "plasma", "cividis", "gray")
"""The names whose tables come with the package, in the order of the rows of `colormaps.png`."""


def palette(colormap: Any) -> NDArray[np.uint8]:
    """The 256 colours of a colormap, `(256, 3)`."""
    if isinstance(colormap, str):
        return _named(colormap)
    if not callable(colormap):
        raise TypeError(
            f"unknown colormap: expected a name or a matplotlib Colormap, got {type(colormap).__name__}. Try 'viridis'."
        )
    return _sampled(colormap)


@lru_cache(maxsize=64)
def _named(name: str) -> NDArray[np.uint8]:
    if name in BUNDLED:
        table: NDArray[np.uint8] = _bundled()[BUNDLED.index(name)]
        return table
    import matplotlib as mpl

    if name not in mpl.colormaps:
        close = difflib.get_close_matches(name, list(mpl.colormaps), n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(repr(other) for other in close)}?" if close else ""
        raise ValueError(f"unknown colormap: expected the name of a matplotlib colormap, got {name!r}.{hint}")
    return _sampled(mpl.colormaps[name])


@lru_cache(maxsize=1)
def _bundled() -> NDArray[np.uint8]:
    with files("attnhook.imaging").joinpath("colormaps.png").open("rb") as file, Image.open(file) as picture:
        table: NDArray[np.uint8] = np.asarray(picture)  # read-only
    return table


def _sampled(colormap: Any) -> NDArray[np.uint8]:
    table: NDArray[np.uint8] = np.rint(np.asarray(colormap(np.linspace(0, 1, LEVELS)))[:, :3] * 255).astype(np.uint8)
    table.setflags(write=False)
    return table
