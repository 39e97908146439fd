"""The hooks that a capture registers: a pre-hook and a hook on every module whose run it follows, and a few that only report.

A copy of a hook does nothing, so that a model can be copied and saved inside a context. Torch runs the hooks that a module had when its call
began. Another thread's capture may have removed its hook since, and with it the `with_kwargs` flag, so no hook relies on receiving keyword
arguments. A hook does something only in the context that entered its capture.
"""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from torch.compiler import is_compiling

from attnhook.capture.scopes import Scope


class Follower(Protocol):
    """What a capture is to its hooks."""

    def _here(self) -> Scope | None:
        """The innermost scope of this capture in this context; None where nothing is to be recorded."""

    def _opened_by(self, opener: object) -> Scope | None:
        """The innermost scope of this capture in this context that `opener` has opened; None if there is none."""


class Hook:
    """A hook whose copies do nothing."""

    __slots__ = ("follower",)

    def __init__(self, follower: Follower) -> None:
        self.follower = follower

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return InertHook, ()


class Before(Hook):
    """A pre-hook: opens the scope of a module's run, which `make` makes of the scope around it and of this hook."""

    __slots__ = ("_make",)

    def __init__(self, follower: Follower, make: Callable[[Scope, object], Scope]) -> None:
        super().__init__(follower)
        self._make = make

    def __call__(self, module: nn.Module, *_: Any) -> None:
        """Open it, if anything is to be recorded."""
        around = None if is_compiling() else self.follower._here()
        if around is not None:
            self._make(around, self).open()


class After(Hook):
    """A hook that is always called: closes what `before` opened, and hands it to `then` with what torch gives a hook (no output: None)."""

    __slots__ = ("_before", "_then")

    def __init__(self, before: Before, then: Callable[..., None] | None = None) -> None:
        super().__init__(before.follower)
        self._before = before
        self._then = then

    def __call__(self, *args: Any) -> None:
        """Close it, if it was opened."""
        scope = None if is_compiling() else self.follower._opened_by(self._before)
        if scope is not None:
            scope.close()
            if self._then is not None:
                self._then(scope, *args)


class Reports(Hook):
    """Hands the scope in which something happened to `function`, with what torch gives a hook."""

    __slots__ = ("_function",)

    def __init__(self, follower: Follower, function: Callable[..., None]) -> None:
        super().__init__(follower)
        self._function = function

    def __call__(self, *args: Any) -> None:
        """Hand it on."""
        scope = None if is_compiling() else self.follower._here()
        if scope is not None:
            self._function(scope, *args)


def shapes(value: Any) -> Any:
    """The same with shapes instead of floating-point tensors, in tuples, lists and dicts, too."""
    if isinstance(value, Tensor):
        return value.shape if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(map(shapes, value))
    return {key: shapes(one) for key, one in value.items()} if isinstance(value, dict) else value


class InertHook:
    """What is left of a hook in a copy of the model."""

    def __call__(self, *args: Any) -> None:
        """Do nothing."""
