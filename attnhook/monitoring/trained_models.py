"""Finds what a monitor is to look at in the model that a trainer really trains."""

from torch import nn

from attnhook.capture.wrapped_models import unwrapped
from attnhook.errors import UnsupportedModelError


def matching(monitored: nn.Module, trained: nn.Module) -> nn.Module:
    """The monitored model, if it is trained (it shares a parameter); else the module of its class in the model that is."""
    own = {id(parameter) for parameter in monitored.parameters()}
    if any(id(parameter) in own for parameter in trained.parameters()):
        return monitored
    kind = type(unwrapped(monitored))
    alike = [module for module in unwrapped(trained).modules() if type(module) is kind]
    if len(alike) != 1:
        raise UnsupportedModelError(
            f"the trainer does not train the monitor's model: expected one {kind.__name__} in {type(trained).__name__}, got "
            f"{len(alike)}. Create the monitor with the model that is trained, or with one of the same class."
        )
    return alike[0]
