"""Runs a model in between, in eval mode, such that a training which goes on afterwards does not notice.

What is put back: each module's `training` flag and other attributes, buffers that the forward wrote to or replaced, the random numbers of
torch (CPU and accelerators), NumPy and Python, the state of FSDP2's parameters. What is kept from happening: autograd, and autocast, whose
cache of cast weights would hold casts without a graph. What cannot be seen: changes inside lists and other objects that a module holds, and
what hooks of others do.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SEED = 0
"""Of the random numbers that the model sees: one that masks at random (MAE) masks alike at every step."""


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, its random numbers fixed; on leaving put everything back, also after an exception.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
        >>> with untouched(model):
        ...     answer = model(torch.ones(1, 2))
        >>> [module.training for module in model.modules()]
        [True, True, False]
    """
    with ExitStack() as stack:
        modules = list(model.modules())
        stack.callback(_restore_flags, [(module, module.training) for module in modules])
        stack.callback(_restore, [_Found.of(module) for module in modules if _is_ours_to_restore(module)])
        stack.callback(_reshard, model)
        stack.enter_context(_own_random_numbers(model))
        for kind in _device_types(model):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.no_grad())  # not inference mode: what a module caches now must serve its training
        for module in modules:
            module.training = False  # not eval(): a module may have its own idea of train()
        yield


def _restore_flags(flags: list[tuple[nn.Module, bool]]) -> None:
    for module, training in flags:
        module.training = training


# --- attributes and buffers ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """One module as it was found.

    Attributes:
        module: The module.
        attributes: Everything in its `__dict__`, by reference: `training`, and whatever it remembers in plain attributes.
        buffers: By name the buffer, its version, and a copy of what it held.
    """

    module: nn.Module
    attributes: dict[str, Any]
    buffers: dict[str, tuple[Tensor | None, int, Tensor | None]]

    @classmethod
    def of(cls, module: nn.Module) -> "_Found":
        """Look at a module."""
        with torch.no_grad():
            return cls(module, dict(vars(module)), {name: _saved(buffer) for name, buffer in module._buffers.items()})

    def restore(self) -> None:
        """Put back what was replaced, added or written to; buffers that nobody touched are not written, so graphs that hold them stay valid."""
        now = vars(self.module)
        for name in [name for name in now if name not in self.attributes]:
            del now[name]
        now.update(self.attributes)
        for name in [name for name in self.module._buffers if name not in self.buffers]:
            del self.module._buffers[name]
        with torch.no_grad():
            for name, (buffer, version, copy) in self.buffers.items():
                self.module._buffers[name] = buffer
                if buffer is not None and copy is not None and buffer._version != version:
                    buffer.copy_(copy)


def _saved(buffer: Tensor | None) -> tuple[Tensor | None, int, Tensor | None]:
    if buffer is None or buffer.is_inference():
        return buffer, 0, None
    return buffer, buffer._version, buffer.detach().clone()


def _restore(found: list[_Found]) -> None:
    for one in found:
        one.restore()


def _is_ours_to_restore(module: nn.Module) -> bool:
    """Wrappers of torch.distributed set themselves up in their first forward, whoever asks for it; FSDP2 wraps nothing, it adds a base class."""
    if isinstance(module, _fsdp_module()):
        return True
    return not type(module).__module__.startswith("torch.distributed") and not isinstance(
        module, nn.parallel.DistributedDataParallel
    )


# --- random numbers -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def _own_random_numbers(model: nn.Module) -> Iterator[None]:
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002 (the state that others draw from)
    generator = torch.get_rng_state()
    devices = [(module, module.get_rng_state_all()) for module in _device_modules(model)]
    try:
        torch.default_generator.manual_seed(SEED)  # torch.manual_seed would also seed devices that are not in use yet
        for module, _ in devices:
            module.manual_seed_all(SEED)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002
        torch.set_rng_state(generator)
        for module, states in devices:
            module.set_rng_state_all(states)


def _device_modules(model: nn.Module) -> list[Any]:
    """The modules such as `torch.cuda` whose generators the model may draw from."""
    found = []
    for kind in _device_types(model):
        module = getattr(torch, kind, None)
        started = getattr(module, "is_initialized", lambda: False)
        if kind != "cpu" and started() and hasattr(module, "get_rng_state_all"):
            found.append(module)
    return found


def _device_types(model: nn.Module) -> list[str]:
    kinds = {parameter.device.type for parameter in model.parameters()} | {"cpu"}
    return sorted(kinds - {"meta"})


# --- FSDP2 --------------------------------------------------------------------------------------------------------------------------------


def _fsdp_module() -> Any:
    """FSDP2's base class, for `isinstance`; nothing where no process group is."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return ()
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # before torch 2.6
        return ()
    return FSDPModule


def _reshard(model: nn.Module) -> None:
    """Free the gathered parameters: the root of FSDP2 keeps its own after a forward, and would not gather again after an optimizer's step."""
    kind = _fsdp_module()
    for module in model.modules():
        if isinstance(module, kind):
            module.reshard()
