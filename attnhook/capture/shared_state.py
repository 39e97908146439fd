"""Process-wide state that captures change temporarily: the first holder sets it, and the last one to release it restores it.

Every operation may be repeated: Ctrl-C may come between any two lines, and the cleanup then releases again.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from attnhook.capture.torch_internals import compiler_stance, set_compiler_stance

LOCK = threading.RLock()
"""Taken wherever captures of several threads change the same thing. Reentrant, because a signal handler may capture, too."""


class SharedState(ABC):
    """One piece of process-wide state."""

    def __init__(self) -> None:
        self._holders: set[object] = set()

    def hold(self, holder: object) -> None:
        """Set the state until `holder` releases it."""
        with LOCK:
            self._holders.add(holder)
            self._set()

    def release(self, holder: object) -> None:
        """Release the state; the last holder restores it."""
        with LOCK:
            self._holders.discard(holder)
            if not self._holders:
                self._restore()

    @abstractmethod
    def _set(self) -> None: ...
    @abstractmethod
    def _restore(self) -> None: ...


class EagerStance(SharedState):
    """`torch.compiler.set_stance("force_eager")`: everything compiled runs eagerly, on all threads."""

    _before: Any = None

    def _set(self) -> None:
        if self._before is None:
            self._before = compiler_stance()
        torch.compiler.set_stance("force_eager")

    def _restore(self) -> None:
        if self._before is not None:
            if compiler_stance().stance == "force_eager":  # else someone has set another one since
                set_compiler_stance(self._before)
            self._before = None


EAGER = EagerStance()
"""The one that every kind of capture holds: two would each take the other's stance for the user's."""

Call = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class ReplacedFunction(SharedState):
    """A function that callers look up by name: while held, replaced by a wrapper. `read` and `write` get and set it, `call` reports a call."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None], call: Call) -> None:
        super().__init__()
        self._read, self._write, self._call = read, write, call
        self._replacement: Any = None  # reused: guards of compiled code refer to it
        self._active = False

    def _set(self) -> None:
        if self._active:
            return
        original = self._read()
        if self._replacement is None or self._replacement.__wrapped__ is not original:
            self._replacement = self._passing(original)
        self._write(self._replacement)
        self._active = True

    def _restore(self) -> None:
        self._active = False
        # Else someone replaced it, who will restore it.
        if self._replacement is not None and self._read() is self._replacement:
            self._write(self._replacement.__wrapped__)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Restore the original for operands that check for it; calls on other threads are missed meanwhile, and reading their maps raises."""
        self._write(self._replacement.__wrapped__)
        try:
            yield
        finally:
            with LOCK:
                if self._active:
                    self._write(self._replacement)

    def _passing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def passing(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():  # so that no compiled graph contains the wrapper
                return original(*args, **kwargs)
            if self._active and passing is self._replacement:
                return self._call(original, args, kwargs)
            with LOCK:  # someone who had replaced it in between has put this one back
                if not self._active and self._read() is passing:
                    self._write(original)
            return original(*args, **kwargs)

        passing.__wrapped__ = original  # type: ignore[attr-defined]
        return passing
