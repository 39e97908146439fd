"""How a map is coloured: one `Look` for every overlay and figure, made from the keyword arguments that you pass."""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from attnhook.options import Scale, ScaleOption, choose


@dataclass(frozen=True)
class Look:
    """Colours and opacity of a heat map.

    Attributes:
        colormap: The name of a matplotlib colormap, or a `Colormap`.
        alpha: Opacity of the heat map, 0 to 1.
        scale: "minmax" (this picture's own range), "robust" (its 1st to 99th percentile), "uniform" (multiples of uniform attention, 1/N) or
            (lowest, highest).
        uniform: For scale="uniform": 1/N, one over the number of keys.
        weighted: Whether opacity follows the value.
    """

    colormap: Any = "viridis"
    alpha: float = 0.5
    scale: ScaleOption = Scale.MINMAX
    uniform: float | None = None
    weighted: bool = False

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
            raise TypeError(f"unknown option: expected some of {', '.join(legal)}, got {name!r}.{hint}")
