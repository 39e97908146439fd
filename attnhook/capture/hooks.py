"""The hooks that a capture registers: objects whose copies do nothing, so that a model can be copied and saved inside a context."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from attnhook.capture.interception import Scope
from attnhook.capture.recording import SiteRecorder


class _Hook:
    """A hook whose copies do nothing: `deepcopy(model)` (EMA) and `torch.save(model)` work inside a context."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return InertHook, ()


class Reports(_Hook):
    """Hands what happened on to the capture."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        """Hand it on."""
        self._function(*args)


class OpensScope(_Hook):
    """Before an attention module runs."""

    __slots__ = ("_listens", "_scope")

    def __init__(self, listens: Callable[[], bool], scope: Scope) -> None:
        self._listens = listens
        self._scope = scope

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Open the scope, if this forward is recorded."""
        if self._listens():
            self._scope.open()


class ClosesScope(_Hook):
    """After an attention module ran, or raised."""

    __slots__ = ("_recorder", "_scope")

    def __init__(self, recorder: SiteRecorder, scope: Scope) -> None:
        self._recorder = recorder
        self._scope = scope

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        """Close the scope; note that the module ran if it was open."""
        if self._scope.close():
            self._recorder.record.ran.add(self._recorder.site.name)


class SeesInputs(_Hook):
    """Before the module runs whose inputs tell what a site's tokens are."""

    __slots__ = ("_listens", "_recorder")

    def __init__(self, listens: Callable[[], bool], recorder: SiteRecorder) -> None:
        self._listens = listens
        self._recorder = recorder

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the inputs, of floating-point tensors only the shapes."""
        if self._listens():
            self._recorder.inputs = _shapes((*args, *kwargs.values()))


def _shapes(value: Any) -> Any:
    """The same with shapes instead of floating-point tensors, in tuples, lists and dicts, too."""
    if isinstance(value, Tensor):
        return value.shape if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(map(_shapes, value))
    return {key: _shapes(one) for key, one in value.items()} if isinstance(value, dict) else value


class ReadsMultihead(_Hook):
    """After an `nn.MultiheadAttention` ran, or raised (its output is then None)."""

    __slots__ = ("_listens", "_recorder")

    def __init__(self, listens: Callable[[], bool], recorder: SiteRecorder) -> None:
        self._listens = listens
        self._recorder = recorder

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take what the module's inputs and weights say."""
        if self._listens():
            self._recorder.record.ran.add(self._recorder.site.name)
            if output is not None and isinstance(module, nn.MultiheadAttention):
                self._recorder.multihead(module, args, kwargs, output)


class InertHook:
    """What is left of a hook in a copy of the model."""

    def __call__(self, *args: Any) -> None:
        """Do nothing."""
