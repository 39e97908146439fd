"""The model inside its wrappers, and what no hook can run in."""

import torch
from torch import nn

from attnhook.capture.torch_internals import compiled_module
from attnhook.errors import UnsupportedModelError


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and DDP wrappers; `UnsupportedModelError` if its forward cannot run hooks."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"cannot capture an object of type {type(model).__name__}: expected a torch.nn.Module. Pass the model itself, such as "
            "attnhook.load(...).model."
        )
    for kind, reason in _REFUSED.items():
        if isinstance(model, kind):
            raise UnsupportedModelError(reason)
    inner = compiled_module(model)
    if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


_REFUSED = {
    torch.jit.ScriptModule: "cannot capture a torch.jit.ScriptModule: scripted and traced models run no Python hooks. Capture the eager model.",
    torch.fx.GraphModule: (
        "cannot capture an fx.GraphModule (torch.export, fx feature extraction): it has lost its attention modules. Capture the model that "
        "it was made from."
    ),
    nn.DataParallel: (
        "cannot capture nn.DataParallel: it runs copies of the model on other threads. Capture model.module on one device, or use "
        "DistributedDataParallel."
    ),
    nn.TransformerEncoderLayer: (
        "cannot capture an nn.TransformerEncoderLayer on its own: expected a module around it, because hooks on the layer would switch off "
        "its fast path. Capture model = nn.Sequential(layer), and call that."
    ),
}
