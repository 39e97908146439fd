"""Which versions of which libraries computed something."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that maps depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
