"""The errors of attnhook's own.

All derive from `AttnhookError`. Each also derives from the builtin exception that Python users would expect (`ValueError`, `LookupError`,
`RuntimeError`), so code that knows nothing about attnhook handles them well. Mistakes in a call raise builtin exceptions: `ValueError` for an
option with an unknown value, `TypeError` for an argument of the wrong type, and `IndexError` or `KeyError` for a number or a name that does
not exist in what was captured, extracted or compared.

Messages read: *what failed: expected X, got Y. What to do.*
"""


class AttnhookError(Exception):
    """Base of every error of this library."""


class NothingCapturedError(AttnhookError, RuntimeError):
    """No attention was recorded: no forward ran, or it ran where the capture could not see it."""


class BlockNotCapturedError(NothingCapturedError):
    """A block was asked for, and its attention was not seen in a forward that others completed."""


class NoReadoutError(AttnhookError, ValueError):
    """The row of a readout was asked for that the model does not have."""


class NoClassTokenError(NoReadoutError):
    """The class token's row was asked for, and the model has no class token."""


class TokenLayoutError(AttnhookError, ValueError):
    """The tokens of a sequence do not fit the layout: prefix tokens + grid + suffix tokens."""


class UnknownBlockError(AttnhookError, LookupError):
    """A block was named, or numbered, that the model does not have."""


class UnsupportedModelError(AttnhookError, TypeError):
    """The model, or the way it is run, cannot be captured; the message says what it does instead."""


class RowsNotKeptError(AttnhookError, ValueError):
    """A result needs rows that this capture did not keep (`rows=` chose others)."""


class GradientsNotKeptError(AttnhookError, ValueError):
    """A result needs values or gradients that this capture did not keep (`gradients=True`), or no backward has run."""


class TargetError(AttnhookError, ValueError):
    """The model does not have the class that was named, or has no classes at all."""


class ScoreError(AttnhookError, ValueError):
    """A map cannot be scored: its shape, its values or its mask do not allow it."""


class ImageError(AttnhookError, ValueError):
    """An image cannot be read, is damaged or too large, or does not have the shape of an image."""


class GeometryError(AttnhookError, ValueError):
    """A patch map and the geometry of its image do not match, or a preprocessing cannot be followed."""


class ModelLoadError(AttnhookError, ValueError):
    """A model specification could not be turned into a model; the message says what is missing."""


class MissingPackageError(ModelLoadError, ImportError):
    """An optional package is missing; the message contains the command that installs it."""


class ComparisonError(AttnhookError, ValueError):
    """Models cannot be compared: none of them could be measured, or there is nothing that all of them saw."""


class ExtractionError(AttnhookError, ValueError):
    """An extraction cannot begin, continue or be read: its source, its folder or its settings do not allow it."""


class ProbeError(AttnhookError, RuntimeError):
    """The forward of a training monitor's probe failed; `__cause__` is the model's own error."""


def counted(number: int, noun: str) -> str:
    """`1 block`, `2 blocks`: a number of things in a message."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
