"""Attention modules in models without an adapter, recognised by type or by what their code calls."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from attnhook.capture.block_choice import are_names, choose_blocks
from attnhook.capture.sites import AttentionSite
from attnhook.options import BlocksOption

_CALLS = frozenset({"softmax", "scaled_dot_product_attention"})
_FUNCTIONS = (F.scaled_dot_product_attention, F.softmax, torch.softmax, torch.special.softmax)


def class_of(module: nn.Module) -> type[Any]:
    """The class that the author of a module wrote; FSDP2 puts a subclass in front."""
    kinds = (kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed"))
    return next(kinds, type(module))


def attends(
    module: nn.Module, *, calls: frozenset[str] = _CALLS, base: str | None = None, helpers: bool = False
) -> bool:
    """Whether a module is an `nn.MultiheadAttention`, or the code of its class, not of a child, names one of `calls`.

    Classes from the one named `base` upwards are ignored. With `helpers`, code also counts if it calls these functions by another name
    (`import ... as sdpa`), or a function outside the class that calls one of them.
    """
    for kind in class_of(module).__mro__:
        if kind.__module__.startswith("torch.") or kind.__name__ == base:
            return isinstance(module, nn.MultiheadAttention)
        functions = [inspect.unwrap(f) for f in vars(kind).values() if inspect.isfunction(f)]
        if any(calls & set(f.__code__.co_names) for f in functions) or (helpers and any(map(_calls_helper, functions))):
            return True
    return False


def _calls_helper(function: Any, *, deeper: bool = True) -> bool:
    """Whether a function calls an attention kernel or a softmax by a global name, or another global function that does."""
    named = [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]
    others = [inspect.unwrap(one) for one in named if deeper and inspect.isfunction(one)]
    return any(one is kernel for one in named for kernel in _FUNCTIONS) or any(
        _CALLS & set(other.__code__.co_names) or _calls_helper(other, deeper=False) for other in others
    )


def guess_sites(model: nn.Module, blocks: BlocksOption, *, by_code: bool) -> tuple[AttentionSite, ...]:
    """The attention modules of a model that no adapter knows, as `named_modules()` orders them: those that the user names, or all recognised.

    Every `nn.MultiheadAttention` is recognised and, `by_code`, what calls a softmax. A predicate that chooses none of those may choose others.
    """
    modules = tuple(AttentionSite(name, module) for name, module in model.named_modules())
    if are_names(blocks):
        return choose_blocks(modules, blocks)
    recognised = tuple(
        AttentionSite(name, module, guessed=not isinstance(module, nn.MultiheadAttention))
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) or (by_code and attends(module, helpers=True))
    )
    if len(recognised) > 1 and recognised[0].guessed and not recognised[0].name:
        recognised = recognised[1:]  # the model's own softmax is over its classes
    if callable(blocks) and not any(blocks(site.name) for site in recognised):  # not visible in their code
        return tuple(site for site in modules if site.name)
    return recognised
