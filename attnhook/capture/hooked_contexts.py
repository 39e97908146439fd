"""What every capture does as a context manager: it hooks modules while it is open, and its scopes are open while they run."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from torch import nn

from attnhook.capture.forward_records import ForwardRecord
from attnhook.capture.scopes import ActiveCapture, Scope, forget_closed, innermost
from attnhook.capture.shared_state import EAGER, LOCK
from attnhook.capture.torch_internals import finish_interrupted_functions, in_backward, remove_hooks
from attnhook.capture.watched_modules import CaptureHook
from attnhook.errors import NothingCapturedError


class HookedContext(ABC):
    """Entering registers hooks; leaving removes them and closes what an aborted forward left open. Ctrl-C may come at any point of either."""

    def __init__(self) -> None:
        self._active: ActiveCapture | None = None
        self._hooked: list[nn.Module] = []

    def __enter__(self) -> Self:
        if self._active is not None:
            raise NothingCapturedError(
                f"this capture is already open: expected one `with` at a time. Make a second {type(self).__name__}."
            )
        try:
            self._open()
            return self  # noqa: TRY300 (here, where Ctrl-C is still caught)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, KeyboardInterrupt):
                finish_interrupted_functions(trace)
            self._undo()
        except BaseException:  # Ctrl-C while it was undone
            self._undo()
            raise

    @abstractmethod
    def _open(self) -> None:
        """Make `_active`, and hook the modules."""

    def _undo(self) -> None:
        """Undo what entering did, as far as it came; may be repeated."""
        if self._active is not None:
            self._active.close()
            with LOCK:
                for module in dict.fromkeys(self._hooked):
                    remove_hooks(module, lambda hook: isinstance(hook, CaptureHook) and hook.capture is self)
            forget_closed()
            EAGER.release(self._active)
            self._hooked.clear()
            self._active = None

    def _add_hook(self, module: nn.Module, function: Callable[..., None], *, pre: bool = False, **flags: bool) -> None:
        self._hooked.append(module)
        register = module.register_forward_pre_hook if pre else module.register_forward_hook
        register(CaptureHook(self, function), **flags)

    def _open_scope_during(
        self,
        module: nn.Module,
        make: Callable[[Scope, object], Scope | None],
        then: Callable[..., None] | None = None,
        **flags: bool,
    ) -> None:
        """Have a scope open while a module runs: `make` builds it inside the scope around, `then` receives it with the hook's arguments."""
        opener = object()

        def before(*_: Any) -> None:
            around = self._scope()
            made = None if around is None else make(around, opener)
            if made is None and (outer := HookedContext._scope(self, opener)) is not None:
                made = Scope(outer.capture, ForwardRecord(), opener)  # `after` ends this run, not the one around it
            if made is not None:
                made.open()

        def after(*args: Any) -> None:
            recorded = self._scope(opener) is not None
            if (scope := HookedContext._scope(self, opener)) is not None:  # also of a capture paused meanwhile
                scope.close()
                if recorded and then is not None:
                    then(scope, *args)

        self._add_hook(module, before, pre=True)
        self._add_hook(module, after, always_call=True, **flags)

    def _scope(self, opener: object = None) -> Scope | None:
        """The innermost scope of this capture in this context, opened by `opener` if given; None where nothing is recorded."""
        active = self._active
        return None if active is None or active.closed or in_backward() else innermost(active, opener)
