"""All private functions of torch that attnhook uses, and why: if one is missing, importing or using `attnhook.capture` fails with it.

They were checked on torch 2.6, 2.9, 2.14 and 2.15.
"""

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

SDPA = torch._C._nn.scaled_dot_product_attention
"""The kernel itself, as a function mode receives it, whatever `torch.nn.functional` points to when this file is imported."""

SOFTMAXES = frozenset({torch.softmax, F.softmax, torch.Tensor.softmax, torch.special.softmax})
"""All softmaxes as a function mode receives them (public)."""

torch_functions_disabled = torch._C.DisableTorchFunction
"""Context in which no function mode and no tensor subclass sees calls of torch. The public ones cover subclasses only."""

current_transform = torch._C._functorch.peek_interpreter_stack
"""The innermost running transform of `torch.func`, or None. Tensors in one lack its dimension. There is no public function."""


def in_backward() -> bool:
    """Whether this thread runs a backward: gradient checkpointing repeats forwards there. There is no public function."""
    return torch._C._current_graph_task_id() != -1


def in_vmap() -> bool:
    """Whether a `torch.func.vmap` is running."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)


def pop_mode(mode: TorchFunctionMode) -> int | None:
    """Remove a mode from this thread's stack, also from under others; returns how many were above it, None if it was not there.

    `with mode` alone cannot remove one that an interrupted forward left under others.
    """
    above: list[Any] = []
    while torch._C._len_torch_function_stack() > 0 and mode not in above:
        above.append(torch._C._pop_torch_function_stack())
    found = mode in above
    for other in reversed(above[:-1] if found else above):
        torch._C._push_on_torch_function_stack(other)
    return len(above) - 1 if found else None


def push_mode(mode: TorchFunctionMode, above: int = 0) -> None:
    """Push a mode on this thread's stack, with `above` of the present ones above it."""
    others = [torch._C._pop_torch_function_stack() for _ in range(min(above, torch._C._len_torch_function_stack()))]
    for other in (mode, *reversed(others)):
        torch._C._push_on_torch_function_stack(other)


def remove_modes(remove: Callable[[Any], bool]) -> None:
    """Remove the modes for which `remove` is true from this thread's stack."""
    modes = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    for mode in reversed(modes):
        if not remove(mode):
            torch._C._push_on_torch_function_stack(mode)


def finish_interrupted_functions(trace: TracebackType | None) -> None:
    """Have torch restore the modes that it had removed for a function that Ctrl-C interrupted.

    It does so when its frames are dropped, which the traceback would delay. No other frames are touched.
    """
    inside = False
    while trace is not None:
        code = trace.tb_frame.f_code
        if inside and code.co_filename == contextlib.__file__:
            trace.tb_frame.clear()
        inside = code.co_filename == torch.overrides.__file__
        trace = trace.tb_next


def remove_hooks(module: nn.Module, remove: Callable[[Any], bool]) -> None:
    """Remove the forward hooks of a module for which `remove` is true.

    A `RemovableHandle` is not enough: Ctrl-C may come after a hook is registered and before its handle has been returned.
    """
    for hooks, more in (
        (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,)),
        (module._forward_hooks, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)),
    ):
        for number in [number for number, hook in list(hooks.items()) if remove(hook)]:
            for flags in more:
                flags.pop(number, None)
            hooks.pop(number, None)  # last, so that a repeated call finishes an interrupted one


def is_compiled(module: nn.Module) -> bool:
    """Whether calling a module runs compiled code: `torch.compile(module)` and `module.compile()` leave these two names."""
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def compiled_module(module: nn.Module) -> nn.Module | None:
    """What `torch.compile(module)` wraps; None for any other module."""
    return module._modules.get("_orig_mod")


def shares_projection(module: nn.MultiheadAttention) -> bool:
    """Whether queries, keys and values are projected by one weight. Reading the public attributes may recompute them."""
    return bool(module._qkv_same_embed_dim)


def compiler_stance() -> Any:
    """What `torch.compiler.set_stance` has set, with the attribute `stance`. The public context restores it over what someone else set since."""
    import torch._dynamo.eval_frame

    return torch._dynamo.eval_frame._stance


def set_compiler_stance(stance: Any) -> None:
    """Set what `compiler_stance` returned."""
    import torch._dynamo.eval_frame

    torch._dynamo.eval_frame._set_stance(stance)
