"""Shares and scales in words, for captions."""

from attnhook.imaging.overlays import UNIFORM_TOP
from attnhook.options import Scale, ScaleOption, choose

_STRETCHES = {
    Scale.MINMAX: "Colours from the minimum to the maximum of {}.",
    Scale.ROBUST: "Colours from the 1st to the 99th percentile of {}; values beyond take the end colours.",
}


def share_in_words(share: float) -> str:
    """Write a share so that a small one does not read as zero, or a large one as all.

    Example:
        >>> [share_in_words(share) for share in (0.0, 0.0002, 0.004, 0.07, 0.993, 0.998)]
        ['0%', '<0.1%', '0.4%', '7%', '99%', '99.8%']
    """
    if 0.00001 < share < 0.0005:
        return "<0.1%"
    share = max(0.0, share)  # a sum of softmax weights may round to a little over 1
    return f"{share:.1%}" if 0.0005 <= share < 0.00995 or 0.995 <= share < 0.9995 else f"{share:.0%}"


def scale_in_words(scale: ScaleOption, shown: str = "this picture") -> str:
    """Say what the colours mean.

    Example:
        >>> scale_in_words("minmax", "all panels")
        'Colours from the minimum to the maximum of all panels.'
    """
    if not isinstance(scale, str):
        return f"Colours from {scale[0]:.4g} to {scale[1]:.4g}."
    kind = choose(Scale, scale, "scale")
    if kind is Scale.UNIFORM:
        return f"Colours from 0 to {UNIFORM_TOP:g} times uniform attention (1/N)."
    return _STRETCHES[kind].format(shown)
