"""What a picture has to say about itself: what it shows, how much of the attention it leaves out, what its colours mean."""

import math
from typing import Any

from attnhook.attribution.methods import NEEDS, method_options
from attnhook.capture.records import AttentionMaps
from attnhook.imaging.overlays import UNIFORM_TOP
from attnhook.options import HeadFusion, HeadsOption, Rows, Scale, ScaleOption, choose

_STRETCHES = {
    Scale.MINMAX: "Colours from the least to the most of {}.",
    Scale.ROBUST: "Colours from the 1st to the 99th percentile of {}; beyond, the end colours.",
}


def caption_of(settings: dict[str, Any], outside: float) -> str:
    """Model, method, blocks, class, heads, readout, mass outside the patches.

    Args:
        settings: What made the map.
        outside: Mass on tokens that are no patches, or NaN if the map is none of a mass.

    Returns:
        One line.
    """
    target = f" for class {settings['target']!r}" if "target" in settings else ""
    words = [
        f"{settings['model']}, {settings['method']} of {_blocks_in_words(settings)}{target}",
        f"{_heads_in_words(settings['heads'])}, {_row_in_words(settings)}",
    ]
    if not math.isnan(outside):
        words.append(f"{share_in_words(outside)} of the attention outside the patches")
    return "; ".join(words)


def share_in_words(share: float) -> str:
    """Write a share so that a little is not nothing.

    Args:
        share: 0 to 1.

    Returns:
        In percent: whole numbers, one decimal below 1 %.

    Example:
        >>> [share_in_words(share) for share in (0.0, 0.0002, 0.004, 0.07, 0.993, 0.998)]
        ['0%', '<0.1%', '0.4%', '7%', '99%', '99.8%']
    """
    if 0.00001 < share < 0.0005:
        return "<0.1%"
    share = max(0.0, share)  # a sum of softmax weights may round to a little over 1
    return f"{share:.1%}" if 0.0005 <= share < 0.00995 or 0.995 <= share < 0.9995 else f"{share:.0%}"


def scale_in_words(scale: ScaleOption, shown: str = "this picture") -> str:
    """Say what colours mean.

    Args:
        scale: As in `overlay`.
        shown: What they are stretched over.

    Returns:
        A sentence.

    Example:
        >>> scale_in_words("minmax", "all panels")
        'Colours from the least to the most of all panels.'
    """
    if not isinstance(scale, str):
        return f"Colours from {scale[0]:.4g} to {scale[1]:.4g}."
    kind = choose(Scale, scale, "scale")
    if kind is Scale.UNIFORM:
        return f"Colours from 0 to {UNIFORM_TOP:g} times uniform attention (1/N)."
    return _STRETCHES[kind].format(shown)


def check_scale(scale: ScaleOption, *, mass: bool, shown: str) -> None:
    """Refuse multiples of uniform attention where values are no attention.

    Args:
        scale: As in `overlay`.
        mass: Whether the values are shares of a mass of 1.
        shown: What the map is of, for the message.

    Raises:
        ValueError: If they are none, and the scale is `"uniform"`.
    """
    if scale == Scale.UNIFORM and not mass:
        raise ValueError(
            f"scale='uniform' shows multiples of uniform attention: expected a map of attention, got one of {shown}. Use scale='minmax', "
            "'robust' or (vmin, vmax)."
        )


def adds_up(heads: HeadsOption) -> bool:
    """Whether a map fused so is a share of a mass of 1: a mean of softmax rows or one of them, not the most or the least of several."""
    return heads is None or isinstance(heads, int) or heads == HeadFusion.MEAN


def rows_in_words(maps: AttentionMaps) -> str:
    """Say whose rows are shown, as `caption_of` reads it.

    Args:
        maps: What was captured; of whole matrices the readout's row is shown.

    Returns:
        `cls`, `pool`, `mean`, `all`, or the chosen tokens and patches.
    """
    if not isinstance(maps.rows, Rows):
        return str(list(maps.rows))
    shown = maps.readout.rows if maps.rows is Rows.ALL else maps.rows
    return "all" if shown is None else shown.value


def reads_block(method: str) -> bool:
    """Whether a method is of one block."""
    return bool(method_options(method, {"block": None}))


def _blocks_in_words(settings: dict[str, Any]) -> str:
    block: str = settings["block"]
    return block if reads_block(settings["method"]) else f"the blocks up to {block}"


def _row_in_words(settings: dict[str, Any]) -> str:
    return f"{settings['rows']} row" if NEEDS[settings["method"]].readout else "all queries"


def _heads_in_words(heads: HeadsOption) -> str:
    return f"head {heads}" if isinstance(heads, int) else f"{heads} over heads"
