"""The hooks that a capture registers, and the modules that it watches without capturing them.

Those are the model itself, what holds encoder layers, and what attends unexpectedly. No hook relies on receiving keyword arguments: torch runs
the hooks that a module had when its call began, and another thread may have removed one since, and with it the `with_kwargs` flag.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.compiler import is_compiling

from attnhook.capture.encoder_layers import FUNCTIONS
from attnhook.capture.forward_records import ForwardRecord
from attnhook.capture.multihead import refuse_parametrised
from attnhook.capture.plan import CapturePlan
from attnhook.capture.recognition import class_of
from attnhook.capture.scopes import SDPA, Listener
from attnhook.capture.shared_state import ReplacedFunction
from attnhook.errors import UnsupportedModelError


class UnexpectedAttention:
    """A listener that notes fused calls of a module that was not recognised; reading the maps is an error then."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._type = name, type(module).__name__

    def fused(self, record: ForwardRecord, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Note it."""
        record.unexpected.setdefault(self._name, self._type)

    def _ignore(self, *_: Any) -> None:
        pass

    operands = softmax = refused = _ignore  # softmaxes have other uses; no module is watched for the rest


def modules_to_watch(plan: CapturePlan) -> list[tuple[nn.Module, Listener | None, tuple[ReplacedFunction, ...]]]:
    """The modules to watch besides the captured ones, the model first: with their listeners, and the functions to replace while they run."""
    model, chosen = plan.model, {site.name for site in plan.sites}
    others = {site.name for site in plan.anatomy.sites} - chosen
    in_layers = {module for layer in model.modules() if _is_layer(layer) for module in layer.modules()}
    for site in plan.sites:
        # Watching these would switch off the fast path of an encoder layer.
        inner = any(map(_is_layer, site.module.modules()))
        if inner or (site.module in in_layers and not isinstance(site.module, nn.MultiheadAttention)):
            raise UnsupportedModelError(
                f"block {site.name!r} cannot be captured: expected an attention module apart from nn.TransformerEncoderLayer, got one that "
                f"{'holds' if inner else 'lies in'} such a layer, whose fast path would be switched off. Capture other blocks with blocks=."
            )
    watched = any(site.module in in_layers for site in plan.sites)
    found = []
    for name, module in model.named_modules():
        if module in in_layers:
            continue
        foreign = plan.guessed and name not in chosen | others and not class_of(module).__module__.startswith("torch.")
        around = watched and any(map(_is_layer, module.modules()))
        within = any(name != outer and (not outer or name.startswith(f"{outer}.")) for outer in chosen)
        left_out = name in others and (plan.guessed or within)
        # The function mode of a module around it would switch off its fast path.
        left_out = left_out or (within and name not in chosen and isinstance(module, nn.MultiheadAttention))
        if not name or foreign or around or left_out:
            holds = ((SDPA,) if foreign else ()) + (FUNCTIONS if around else ())
            found.append((module, UnexpectedAttention(name, module) if foreign else None, holds))
    return found


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.TransformerEncoderLayer)


def attention_in_layers(model: nn.Module) -> list[nn.MultiheadAttention]:
    """Every `nn.MultiheadAttention` in an encoder layer."""
    layers = filter(_is_layer, model.modules())
    return [m for layer in layers for m in layer.modules() if isinstance(m, nn.MultiheadAttention)]


def overrides_forward(module: nn.Module) -> bool:
    """Whether it is an `nn.MultiheadAttention` that may pass on something else than it is given."""
    own = "forward" in vars(module) or class_of(module).forward is not nn.MultiheadAttention.forward
    return isinstance(module, nn.MultiheadAttention) and own


def with_readable_weights(by_weights: Mapping[Any, Any]) -> dict[Any, Any]:
    """Those modules whose weights can be read to recognise them; raises if one with a listener has a parametrised weight."""
    found = {}
    for attention, listener in by_weights.items():
        try:
            refuse_parametrised(attention)
        except UnsupportedModelError:
            if listener is not None:
                raise
        else:
            found[attention] = listener
    return found


def compilable(model: nn.Module, plan: CapturePlan) -> list[nn.Module]:
    """The modules which, if compiled, would hide a hook: those that hold a hooked module, and what attention modules hold."""
    anatomy = plan.anatomy
    attention = {site.module for site in plan.sites}
    hooked = attention | {anatomy.image_module, anatomy.grid_module, anatomy.token_module}
    inside = {m for module in attention for m in module.modules() if next(m.children(), None) is not None}
    return [m for m in model.modules() if m in inside or not hooked.isdisjoint(m.modules())]


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
