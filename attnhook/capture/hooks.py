"""The hooks that a capture registers on a model. None relies on receiving keyword arguments.

Torch runs the hooks that a module had when its call began; another thread may have removed one since, and with it the `with_kwargs` flag.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling


@dataclass(slots=True, eq=False, repr=False)
class CaptureHook:
    """A hook of `capture`, except while a compiler traces it; its copies do nothing, so that models can be copied and saved in a context."""

    capture: object
    function: Callable[..., None]

    def __call__(self, *args: Any) -> None:
        """Call it."""
        if not is_compiling():
            self.function(*args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return InertHook, ()


class InertHook:
    """What a copy of the model has instead of a `CaptureHook`."""

    def __call__(self, *args: Any) -> None:
        """Do nothing."""


def shapes(value: Any) -> Any:
    """Replace floating-point tensors by their shapes, also in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.shape if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(map(shapes, value))
    return {key: shapes(item) for key, item in value.items()} if isinstance(value, dict) else value
