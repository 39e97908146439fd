"""Runs a model in eval mode in the middle of training, without affecting it.

Put back are each module's attributes, buffers that the forward wrote to or replaced, the random numbers of torch (CPU and accelerators), NumPy
and Python, and the state of FSDP2's parameters. Changes inside objects that a module holds, and what hooks of others do, are not undone.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SEED = 0
"""For the random numbers that the model draws: one that masks at random (MAE) masks the same patches at every step."""


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode with fixed random numbers; on leaving put everything back, also after an exception."""
    with ExitStack() as stack:
        modules = list(model.modules())
        for module in modules:
            stack.callback(_restored_later(module))
        stack.callback(_reshard, model)
        stack.enter_context(_own_random_numbers(model))
        for device_type in _device_types(model):  # autocast's cache of cast weights would hold casts without a graph
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(torch.no_grad())  # not inference mode: what a module caches now must serve its training
        for module in modules:
            module.training = False  # not eval(): a module may override train()
            if "_original_forward" in vars(module) and not _is_wrapper(module):  # accelerate's own turns autocast on
                vars(module)["forward"] = module._original_forward
        yield


def _restored_later(module: nn.Module) -> Callable[[], None]:
    """Remember a module's attributes and buffers; the function that is returned puts them back."""
    if _is_wrapper(module):
        return lambda training=module.training: setattr(module, "training", training)  # type: ignore[misc]
    attributes = dict(vars(module))
    with torch.no_grad():
        buffers = {name: (buffer, *_copied(buffer)) for name, buffer in module._buffers.items()}

    def restore() -> None:
        for now, before in ((vars(module), attributes), (module._buffers, buffers)):
            for name in now.keys() - before.keys():
                del now[name]
        vars(module).update(attributes)
        with torch.no_grad():
            for name, (buffer, version, copy) in buffers.items():
                module._buffers[name] = buffer
                # A buffer that nobody wrote to is not written either: a graph that holds it stays valid.
                if buffer is not None and copy is not None and buffer._version != version:
                    buffer.copy_(copy)

    return restore


def _copied(buffer: Tensor | None) -> tuple[int, Tensor | None]:
    """The version and a copy of a buffer."""
    if buffer is None or buffer.is_inference():
        return 0, None
    return buffer._version, buffer.detach().clone()


def _is_wrapper(module: nn.Module) -> bool:
    """Whether this is a wrapper of torch.distributed, which sets itself up in its first forward. FSDP2 does not wrap: it adds a base class."""
    if isinstance(module, _fsdp_module()):
        return False
    parallel = isinstance(module, nn.parallel.DistributedDataParallel)
    return parallel or type(module).__module__.startswith("torch.distributed")


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
    modules: list[Any] = [getattr(torch, name, None) for name in _device_types(model) if name != "cpu"]
    known = (m for m in modules if hasattr(m, "get_rng_state_all") and hasattr(m, "is_initialized"))
    return [m for m in known if m.is_initialized()]


def _device_types(model: nn.Module) -> list[str]:
    return sorted({parameter.device.type for parameter in model.parameters()} - {"meta"} | {"cpu"})


def _fsdp_module() -> Any:
    """FSDP2's base class, for `isinstance`; empty without a process group."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return ()
    from torch.distributed.fsdp import FSDPModule

    return FSDPModule


def _reshard(model: nn.Module) -> None:
    """Free the gathered parameters: the root of FSDP2 keeps its own after a forward, and would not gather again after an optimizer's step."""
    for module in model.modules():
        if isinstance(module, _fsdp_module()):
            module.reshard()
