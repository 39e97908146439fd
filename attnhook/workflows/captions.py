"""What a picture has to say about itself, in one line."""

import math
from typing import Any

from attnhook.attribution.methods import NEEDS, method_options
from attnhook.options import HeadsOption


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
        f"{_heads_in_words(settings['heads'])}, {_rows_in_words(settings)}",
    ]
    if not math.isnan(outside):
        words.append(f"{outside:.0%} of the attention outside the patches")
    return "; ".join(words)


def reads_block(method: str) -> bool:
    """Whether a method is of one block."""
    return bool(method_options(method, {"block": None}))


def _blocks_in_words(settings: dict[str, Any]) -> str:
    block: str = settings["block"]
    return block if reads_block(settings["method"]) else f"the blocks up to {block}"


def _rows_in_words(settings: dict[str, Any]) -> str:
    return f"{settings['rows']} row" if NEEDS[settings["method"]].readout else "all queries"


def _heads_in_words(heads: HeadsOption) -> str:
    return f"head {heads}" if isinstance(heads, int) else f"{heads} over heads"
