"""The modules around attention that a capture follows: the model itself, what holds encoder layers, and what attends unexpectedly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attnhook.capture.encoder_layers import FUNCTIONS
from attnhook.capture.forward_records import ForwardRecord
from attnhook.capture.multihead import refuse_parametrised
from attnhook.capture.plan import CapturePlan
from attnhook.capture.recognition import class_of
from attnhook.capture.scopes import SDPA, Listener
from attnhook.capture.shared_state import ReplacedFunction
from attnhook.capture.sites import AttentionSite
from attnhook.errors import UnsupportedModelError


class Stranger:
    """A listener that notes the calls of a module whose code does not show that it attends."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._kind = name, type(module).__name__

    def fused(self, record: ForwardRecord, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Note it; reading the maps is then an error."""
        record.unexpected.setdefault(self._name, self._kind)

    def operands(self, *_: Any) -> None:
        """Nothing: only modules of transformers and encoder layers are told of these."""

    def softmax(self, *_: Any) -> None:
        """Nothing: softmaxes have other uses."""

    def refused(self, *_: Any) -> None:
        """Nothing: nothing was to be recorded."""


Layer = tuple[nn.MultiheadAttention, Any]  # the attention of an encoder layer, and who is told of its calls


@dataclass(frozen=True, eq=False)
class Surrounding:
    """A module that is followed although it is not captured: who is told of its own calls, what is replaced while it runs."""

    module: nn.Module
    listener: Listener | None = None
    holds: tuple[ReplacedFunction, ...] = ()


def modules_around(plan: CapturePlan) -> list[Surrounding]:
    """What has to be followed around and beside the captured modules, the model first."""
    model, chosen = plan.model, {site.name for site in plan.sites}
    others = {site.name for site in plan.anatomy.sites} - chosen
    layers = [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    in_layers = {id(module) for layer in layers for module in layer.modules()}
    for site in plan.sites:
        _check_layers(site, in_layers)
    watched = any(id(site.module) in in_layers for site in plan.sites)
    found = []
    for name, module in model.named_modules():
        if id(module) in in_layers:
            continue
        foreign = plan.guessed and name not in chosen | others and not class_of(module).__module__.startswith("torch.")
        around = watched and any(isinstance(one, nn.TransformerEncoderLayer) for one in module.modules())
        within = any(_is_inside(name, outer) for outer in chosen)
        left_out = name in others and (plan.guessed or within)
        # The function mode of a module around it would switch off its fast path.
        left_out = left_out or (within and name not in chosen and isinstance(module, nn.MultiheadAttention))
        if not name or foreign or around or left_out:
            holds = ((SDPA,) if foreign else ()) + (FUNCTIONS if around else ())
            found.append(Surrounding(module, Stranger(name, module) if foreign else None, holds))
    return found


def _check_layers(site: AttentionSite, in_layers: set[int]) -> None:
    """Refuse what cannot be watched without switching the fast path of an encoder layer off."""
    inner = any(isinstance(one, nn.TransformerEncoderLayer) for one in site.module.modules())
    if inner or (id(site.module) in in_layers and not isinstance(site.module, nn.MultiheadAttention)):
        where = "holds" if inner else "lies in"
        raise UnsupportedModelError(
            f"block {site.name!r} cannot be captured: expected an attention module apart from nn.TransformerEncoderLayer, got one that {where} "
            "such a layer, whose fast path would be switched off. Capture other blocks with blocks=."
        )


def _is_inside(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))


def encoder_layers(model: nn.Module, listeners: Mapping[int, Any]) -> list[Layer]:
    """Every `nn.MultiheadAttention` in an encoder layer, with who is told of its calls (by `id` of the module); None for nobody."""
    layers = [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    inside = {id(m): m for layer in layers for m in layer.modules() if isinstance(m, nn.MultiheadAttention)}
    return [(attention, listeners.get(number)) for number, attention in inside.items()]


def own_forwards(recorders: Sequence[Any]) -> list[Layer]:
    """The captured `nn.MultiheadAttention` modules whose class brings a forward of its own."""
    return [(r.site.module, r) for r in recorders if overrides_forward(r.site.module)]


def overrides_forward(module: nn.Module) -> bool:
    """Whether an `nn.MultiheadAttention` may pass something else on than it is given."""
    own = "forward" in vars(module) or class_of(module).forward is not nn.MultiheadAttention.forward
    return isinstance(module, nn.MultiheadAttention) and own


def readable(layers: Sequence[Layer]) -> list[Layer]:
    """Those layers whose weights can be read to recognise them; raises for a captured one of which a weight is parametrised."""
    found = []
    for attention, listener in layers:
        try:
            refuse_parametrised(attention)
        except UnsupportedModelError:
            if listener is not None:
                raise
        else:
            found.append((attention, listener))
    return found


def compilable(model: nn.Module, plan: CapturePlan) -> tuple[nn.Module, ...]:
    """The modules which, if compiled, would hide a hook: those that hold a hooked module, and what attention modules hold."""
    anatomy = plan.anatomy
    hooked = {id(m) for m in (anatomy.image_module, anatomy.grid_module, anatomy.token_module) if m is not None}
    hooked |= {id(site.module) for site in plan.sites}
    inside = {id(m) for site in plan.sites for m in site.module.modules() if next(m.children(), None) is not None}
    chosen = []
    for module in model.modules():
        if id(module) in inside or any(id(m) in hooked for m in module.modules()):
            chosen.append(module)
    return tuple(chosen)
