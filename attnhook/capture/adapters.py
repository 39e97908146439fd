"""What capture has to be told about a model, who tells it, and how the teller is found.

An adapter answers four questions about a model: which modules compute token attention, which special tokens stand in its sequence, where the
patch grid can be seen, and which tokens the head reads. Adapters are looked up by the model's type along its MRO. Those of the libraries live
in `attnhook.zoo` and are imported when a model of that library turns up, never before; none of them imports its library.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnhook.capture.packing import PackedLayout
from attnhook.capture.sites import AttentionSite
from attnhook.errors import UnknownBlockError, UnsupportedModelError
from attnhook.options import BlocksOption, Rows, Size, choose

_LIBRARIES = ("timm", "transformers", "torchvision", "open_clip")


@dataclass(frozen=True)
class Readout:
    """What the model's head reads.

    Attributes:
        rows: The class token, the pooling query, the mean over patches; None if none of the three.
        reason: Why, in words: shown by `describe` and in the error where `rows` is None.
    """

    rows: Rows | None
    reason: str

    def __post_init__(self) -> None:
        if self.rows is not None:
            object.__setattr__(self, "rows", choose(Rows, self.rows, "rows"))


@dataclass(frozen=True, eq=False)
class SeenTokens:
    """What one call of a model's token module showed of the sequence.

    Attributes:
        order: Which patches were kept, and in which order: `(batch, kept)` int64; None if all, in order.
        grid: Patch rows and columns, where no patch embedding shows them; None if one does.
        area: Pixels that this grid covers.
        padding: Number of padding tokens behind the patches.
        packed: The layout of images of several sizes, or None.
        problem: Why this sequence has no one grid, or None.
    """

    order: Tensor | None = None
    grid: Size | None = None
    area: Size | None = None
    padding: int = 0
    packed: PackedLayout | None = None
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class ModelAnatomy:
    """An adapter's answer. Only `sites` is needed for rows; the rest makes grids and readouts.

    Attributes:
        sites: The attention modules in the order in which they run.
        cls: Index of the class token, or None.
        registers: Number of register tokens.
        distillation: Whether there is a distillation token after the class token.
        suffix: Number of tokens behind the patches.
        readout: What the head reads.
        image_module: The module whose first input of four or five dimensions is the image or video batch, `(batch, ..., height, width)`.
        grid_module: The module whose output is the patch embedding, `(batch, width, h, w)` or `(batch, width, frames, h, w)`.
        token_module: The module whose call says which patches were kept, or how many there are, where the patch embedding cannot.
        tokens_of: Turns that call `(args, kwargs, output)` into `SeenTokens`.
    """

    sites: tuple[AttentionSite, ...]
    cls: int | None = 0
    registers: int = 0
    distillation: bool = False
    suffix: int = 0
    readout: Readout = field(default=Readout(None, "nothing is known about what reads its tokens"))
    image_module: nn.Module | None = None
    grid_module: nn.Module | None = None
    token_module: nn.Module | None = None
    tokens_of: Callable[[tuple[Any, ...], dict[str, Any], Any], SeenTokens] | None = None

    def under(self, prefix: str) -> "ModelAnatomy":
        """The same anatomy inside a larger model, with the sites' names prefixed."""
        if not prefix:
            return self
        return replace(self, sites=tuple(replace(site, name=f"{prefix}.{site.name}") for site in self.sites))


class Adapter(Protocol):
    """A callable that describes the models of one type."""

    def __call__(self, model: Any, /) -> ModelAnatomy:
        """Describe `model`; raise `UnsupportedModelError` saying what it does instead, if it has no token attention."""


_registry: dict[str, Adapter] = {}
_libraries: dict[str, tuple[Adapter, Callable[[nn.Module], bool]]] = {}


def register_adapter(model_type: type | str, adapter: Adapter) -> None:
    """Teach capture a new type of model.

    Args:
        model_type: The class of the models, or its full name (`"package.module.Class"`), so that registering imports nothing. Subclasses
            are covered; the closest registered class along the MRO wins, and a later registration of the same class replaces the earlier.
        adapter: Called with the model, answers with its `ModelAnatomy`.

    Example:
        >>> from torch import nn
        >>> from attnhook import AttentionSite, ModelAnatomy, register_adapter
        >>> class MyViT(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.patches = nn.Conv2d(3, 8, 4, 4)
        ...         self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> def my_vit(model):
        ...     site = AttentionSite("attention", model.attention)
        ...     return ModelAnatomy(sites=(site,), cls=None, image_module=model.patches, grid_module=model.patches)
        >>> register_adapter(MyViT, my_vit)
    """
    _registry[model_type if isinstance(model_type, str) else _full_name(model_type)] = adapter


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def register_library(package: str, adapter: Adapter, is_model: Callable[[nn.Module], bool]) -> None:
    """Teach capture all models of a top-level package that have no adapter of their own; `is_model` tells them from their layers."""
    _libraries[package] = (adapter, is_model)


def find_adapter(model: nn.Module) -> Adapter | None:
    """The adapter of the closest registered class along the MRO of `model`'s type, or its library's, or None."""
    packages = []
    for kind in type(model).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _LIBRARIES:
            importlib.import_module(f"attnhook.zoo._{package}")  # registers its adapters, once
            packages.append(package)
        adapter = _registry.get(_full_name(kind))
        if adapter is not None:
            return adapter
    for package in packages:
        if package in _libraries and _libraries[package][1](model):
            return _libraries[package][0]
    return None


def find_anatomy(model: nn.Module) -> ModelAnatomy | None:
    """The anatomy of a model, or of the one known model inside it (wrappers, `torch.compile`, DDP), with names relative to `model`.

    None if nothing in it is known; `UnsupportedModelError` if several known models stand side by side, or an adapter's answer is none.
    """
    found: list[tuple[str, ModelAnatomy]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") or not outer for outer, _ in found)
        adapter = None if inside else find_adapter(module)
        if adapter is not None:
            found.append((name, _checked(adapter(module), module)))
    if len(found) > 1:
        names = ", ".join(repr(name) for name, _ in found)
        raise UnsupportedModelError(
            f"{type(model).__name__} holds several models with attention: expected one, got {names}. Capture one of them: "
            f"AttentionCapture(model.{found[0][0]})."
        )
    return found[0][1].under(found[0][0]) if found else None


def _checked(answer: Any, model: nn.Module) -> ModelAnatomy:
    """An adapter's answer, unless it is none: they are written by users."""
    said = f"the adapter of {type(model).__name__}"
    if not isinstance(answer, ModelAnatomy):
        raise UnsupportedModelError(
            f"{said} describes no model: expected a ModelAnatomy, got {answer!r}. Return one from the function given to register_adapter."
        )
    if not isinstance(answer.readout, Readout):
        raise UnsupportedModelError(
            f"{said} gives no readout: expected a Readout or none, got readout={answer.readout!r}. Pass Readout(rows, reason), as in "
            'Readout("cls", "its head reads the class token").'
        )
    sites: Any = answer.sites
    listed = isinstance(sites, tuple | list)
    if not (listed and sites and all(isinstance(site, AttentionSite) for site in sites)):
        got = f"({', '.join(type(site).__name__ for site in sites)})" if listed else repr(sites)
        raise UnsupportedModelError(
            f"{said} names no attention modules: expected a tuple of AttentionSite, at least one, got sites={got}. Give an "
            "AttentionSite(name, module) for each module that attends."
        )
    return answer


_CALLS = frozenset({"softmax", "scaled_dot_product_attention"})
_FUNCTIONS = (F.scaled_dot_product_attention, F.softmax, torch.softmax, torch.special.softmax)


def class_of(module: nn.Module) -> type[Any]:
    """The class that the author of a module wrote: FSDP2 puts one of its own in front."""
    return next(
        (kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed")), type(module)
    )


def attends(
    module: nn.Module, *, calls: frozenset[str] = _CALLS, base: str | None = None, helpers: bool = False
) -> bool:
    """Whether a module is an `nn.MultiheadAttention`, or the code of its class, not of a child, names one of `calls`.

    Classes from the one named `base` upwards are not looked at. With `helpers`, code counts, too, that names these functions otherwise
    (`import ... as sdpa`), or a function outside the class that calls one of them itself.
    """
    for kind in class_of(module).__mro__:
        if kind.__module__.startswith("torch.") or kind.__name__ == base:
            return isinstance(module, nn.MultiheadAttention)
        functions = [inspect.unwrap(f) for f in vars(kind).values() if inspect.isfunction(f)]
        if any(calls & set(f.__code__.co_names) for f in functions) or (helpers and any(map(_calls_helper, functions))):
            return True
    return False


def _calls_helper(function: Any, *, deeper: bool = True) -> bool:
    """Whether a function calls an attention kernel or a softmax by a name of its file's, or another function of its file's that does."""
    named = [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]
    others = [inspect.unwrap(one) for one in named if deeper and inspect.isfunction(one)]
    return any(one is kernel for one in named for kernel in _FUNCTIONS) or any(
        _CALLS & set(other.__code__.co_names) or _calls_helper(other, deeper=False) for other in others
    )


def are_names(blocks: BlocksOption) -> TypeGuard[str | Sequence[str]]:
    """Whether a block selector is a name, or names alone."""
    return isinstance(blocks, str) or (
        isinstance(blocks, Sequence) and len(blocks) > 0 and all(isinstance(block, str) for block in blocks)
    )


def guess_sites(model: nn.Module, blocks: BlocksOption, *, by_code: bool) -> tuple[AttentionSite, ...]:
    """The attention modules of a model that no adapter knows, as `named_modules()` orders them: those that the user names, or all recognised.

    Recognised is every `nn.MultiheadAttention` and, `by_code`, what calls a softmax; a predicate that chooses none of those may choose others.
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
        recognised = recognised[1:]  # the model's own softmax is that of its classes
    if callable(blocks) and not any(blocks(site.name) for site in recognised):  # their code does not show it
        return tuple(site for site in modules if site.name)
    return recognised


def choose_blocks(sites: Sequence[AttentionSite], blocks: BlocksOption) -> tuple[AttentionSite, ...]:
    """The sites that a block selector chooses, in the order of the model; `UnknownBlockError`, with the legal ones, if it chooses none.

    It has timm's meaning: None = all, int n = the last n, a name, indices (negative from the end) and names, or a predicate over names.
    """
    if blocks is None:
        return tuple(sites)
    names = [site.name for site in sites]
    if callable(blocks):
        chosen = {i for i, name in enumerate(names) if blocks(name)}
    elif isinstance(blocks, bool):
        raise UnknownBlockError(f"unknown block {blocks!r}: expected an index or a name.")
    elif isinstance(blocks, int):
        if not 0 < blocks <= len(names):
            raise UnknownBlockError(
                f"blocks={blocks} means the last {blocks}: expected 1 to {len(names)}. For one, pass [index]."
            )
        chosen = set(range(len(names) - blocks, len(names)))
    else:
        chosen = {block_index(names, block) for block in ([blocks] if isinstance(blocks, str) else blocks)}
    if not chosen:
        said = f"the predicate blocks={getattr(blocks, '__name__', 'given')}" if callable(blocks) else f"{blocks=}"
        raise UnknownBlockError(f"{said} selects no block: expected at least one of {_summary(names)}.")
    return tuple(site for i, site in enumerate(sites) if i in chosen)


def block_index(names: Sequence[str], block: int | str) -> int:
    """Index in `names` of a block given by name or number (negative from the end); `UnknownBlockError` if there is none."""
    if isinstance(block, str):
        if block in names:
            return list(names).index(block)
        raise UnknownBlockError(f"unknown block {block!r}: expected one of {_summary(names)}.")
    if isinstance(block, bool) or not -len(names) <= block < len(names):
        raise UnknownBlockError(
            f"unknown block {block!r}: expected an index from {-len(names)} to {len(names) - 1}, or one of {_summary(names)}."
        )
    return block % len(names)


def _summary(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= 6 else [*names[:3], "...", names[-1]]
    return ", ".join(name if name == "..." else repr(name) for name in shown)
