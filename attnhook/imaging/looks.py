"""How a map is coloured: one `Look` for every overlay and figure, what captions say of it, and the colours of a colormap's name.

The usual perceptually uniform maps come with the package, each as one row of `colormaps.png` (sampled from matplotlib's, which are in the
public domain), so overlays need no matplotlib. Every other name is looked up in matplotlib, once per process.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnhook.options import Crop, Scale, ScaleOption, choose

UNIFORM_TOP = 16.0
"""The top of the colours under `scale="uniform"`, in multiples of uniform attention, 1/N; they begin at 1/N and are logarithmic."""

STEEPNESS = 1.6
"""How fast opacity rises: it is complete after 1/1.6 of the way from the value where it begins to the top of the colours."""

_RANGES = {
    Scale.MINMAX: "Colours from the minimum to the maximum of {}",
    Scale.ROBUST: "Colours from the 1st to the 99th percentile of {}, values beyond take the end colours",
}
_STRETCHES = {Scale.MINMAX: "min-max", Scale.ROBUST: "1st to 99th percentile"}


@dataclass(frozen=True)
class Look:
    """Colours and opacity of a heat map."""

    colormap: Any = "plasma"  # the name of a matplotlib colormap, or a `Colormap`
    alpha: float = 0.85  # the highest opacity, 0 to 1
    scale: ScaleOption = Scale.ROBUST  # "robust", "minmax", "uniform" (multiples of 1/N) or (lowest, highest)
    uniform: float | None = None  # 1/N, one over the number of keys, for scale="uniform"
    floor: float | None = (
        None  # where opacity begins: None is the median, for "uniform" 1/N, for a given range its lowest value
    )
    weighted: bool = True  # whether opacity rises with the value from nothing; if not, it is `alpha` everywhere
    fade: float = 0.4  # how much of what the model did not see turns grey, 0 to 1; 0 also leaves out the frame
    crop: str = Crop.PHOTO  # "photo", or "seen": only the part that the model saw

    @classmethod
    def of(cls, options: Mapping[str, Any], function: Callable[..., Any]) -> Self:
        """Read the `**look` of a function, and refuse an option that neither the look nor the function has."""
        names = [field.name for field in fields(cls)]
        check_options(options, names, listed=[*names, *keywords(function)])
        return cls(**options)

    def has_scale(self, wanted: Scale) -> bool:
        """Whether the scale is one of the named ones."""
        return isinstance(self.scale, str) and choose(Scale, self.scale, "scale") is wanted


def keywords(function: Callable[..., Any]) -> list[str]:
    """The names of a function's keyword-only arguments."""
    return [one.name for one in inspect.signature(function).parameters.values() if one.kind is one.KEYWORD_ONLY]


def check_options(options: Iterable[str], known: Collection[str], *, listed: Iterable[str] = ()) -> None:
    """Refuse an option that is not known, and list the legal ones."""
    for name in options:
        if name not in known:
            legal = sorted({*known, *listed})
            close = difflib.get_close_matches(name, legal, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"unknown option: expected one of {', '.join(legal)}, got {name!r}.{hint}")


def share_in_words(share: float) -> str:
    """Write a share as a percentage, so that a small one does not read as zero, or a large one as all."""
    if 0.00001 < share < 0.0005:
        return "<0.1%"
    share = max(0.0, share)  # a sum of softmax weights may round to a little over 1
    return f"{share:.1%}" if 0.0005 <= share < 0.00995 or 0.995 <= share < 0.9995 else f"{share:.0%}"


def caption_of(description: str, outside: Any = None, view: str = "") -> str:
    """What was computed, which part of the photo the model saw, and of a single map the mass outside the patches."""
    words = [", ".join(filter(None, [description, view]))]
    if outside is not None and outside.numel() == 1:
        words.append(f"{share_in_words(float(outside))} of the attention outside the patches")
    return "; ".join(filter(None, words))


def scale_in_words(look: Look, shown: str = "this picture") -> str:
    """Say what colours and opacity mean."""
    scale = look.scale
    if not isinstance(scale, str):
        colors, floor = f"Colours from {scale[0]:.4g} to {scale[1]:.4g}", "the lowest"
    elif look.has_scale(Scale.UNIFORM):
        colors, floor = f"Colours from 1 to {UNIFORM_TOP:g} times uniform attention (1/N), logarithmic", "1/N"
    else:
        colors, floor = _RANGES[choose(Scale, scale, "scale")].format(shown), "the median"
    if look.floor is not None and not look.has_scale(Scale.UNIFORM):
        floor = f"{look.floor:.4g}"
    opacity = f"opacity from 0 at {floor} to {look.alpha:.0%}" if look.weighted else f"opacity {look.alpha:.0%}"
    return f"{colors}; {opacity}."


def stretch_in_words(look: Look) -> str | None:
    """Say how each map is stretched over the colours on its own; None if all maps share one range.

    Example:
        >>> stretch_in_words(Look(scale="robust")), stretch_in_words(Look(scale=(0, 1)))
        ('1st to 99th percentile', None)
    """
    return _STRETCHES.get(choose(Scale, look.scale, "scale")) if isinstance(look.scale, str) else None


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
