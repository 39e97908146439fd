"""Between photos and patch maps: reading, geometry, interpolation, colour. Knows nothing of models or hooks."""

from attnhook._deprecated import IMAGING
from attnhook.names import lazy_names

_names, __getattr__ = lazy_names(__name__, IMAGING)

__all__ = sorted(_names)  # noqa: PLE0605 (strings, read from the stub)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
