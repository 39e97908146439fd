"""Where a model of transformers sees: its vision towers, what is no part of them, their special tokens, and what shows their grids."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.anatomy import SequenceInfo
from attnhook.capture.layout import TokenLayout
from attnhook.capture.packing import PackedLayout
from attnhook.capture.recognition import class_of
from attnhook.options import Size
from attnhook.zoo.stages import pair

_PATCHES = frozenset(
    {"patch_embeddings", "patch_embedding", "patch_embed", "patch_embedder", "patch_conv", "patch_projection"}
)
_WORDS = frozenset({"word_embeddings", "embed_tokens", "token_embedding", "tok_embeddings", "wte", "shared"})
_CLASS_TOKENS = ("cls_token", "class_embedding", "cls_embedding", "cls_register_token")
CONVOLUTIONS = nn.Conv2d | nn.Conv3d


@dataclass(frozen=True, eq=False)
class Tower:
    """A vision tower.

    Attributes:
        name: Its path in the model; empty for the model itself.
        module: The module that holds embeddings and blocks.
        embeddings: The module that makes tokens from pixels.
        projection: The convolution or linear layer that embeds patches.
    """

    name: str
    module: Any
    embeddings: Any
    projection: nn.Module

    def holds(self, name: str) -> bool:
        """Whether a module of that path stands in the tower."""
        return not self.name or name.startswith(f"{self.name}.")

    @property
    def convolves(self) -> bool:
        """Whether patches are embedded by a convolution over the image, whose output shows the grid."""
        return isinstance(self.projection, CONVOLUTIONS)


def text_parts(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that embed words and see no image: text towers and decoders beside a vision tower."""
    parts: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _WORDS:
            part = name
            for holder in _paths_up(name):
                if not holder or _sees(model.get_submodule(holder)):
                    break
                part = holder
            parts.append(part)
    return tuple(sorted({part for part in parts if not any(part.startswith(f"{other}.") for other in parts)}))


def _paths_up(name: str) -> Iterator[str]:
    while name:
        name = name.rpartition(".")[0]
        yield name


def _sees(module: nn.Module) -> bool:
    return "QFormer" in class_of(module).__name__ or any(
        isinstance(part, CONVOLUTIONS) or name.rpartition(".")[2] in _PATCHES for name, part in module.named_modules()
    )


def inside(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a path is one of some modules, or in one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def find_towers(model: nn.Module, outside: tuple[str, ...]) -> list[Tower]:
    """The vision towers of a model, by their patch embeddings."""
    found: dict[str, Tower] = {}
    for name, module in model.named_modules():
        if inside(name, outside) or class_of(module).__module__.startswith("timm."):
            continue
        if not (name.rpartition(".")[2] in _PATCHES or _embeds_itself(model, name, module)):
            continue
        projection = next((part for part in module.modules() if isinstance(part, CONVOLUTIONS | nn.Linear)), None)
        owner = name
        while "embed" in owner.rpartition(".")[0].rpartition(".")[2]:
            owner = owner.rpartition(".")[0]
        if projection is not None and owner not in found:
            tower = owner.rpartition(".")[0]
            found[owner] = Tower(tower, model.get_submodule(tower), model.get_submodule(owner), projection)
    return list(found.values())


def _embeds_itself(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether an embeddings module holds its convolution without a patch embedding between them."""
    holder = name.rpartition(".")[0]
    if not isinstance(module, CONVOLUTIONS) or not holder:
        return False
    owner = model.get_submodule(holder)
    children = {child for child, _ in owner.named_children()}
    return class_of(owner).__name__.endswith("Embeddings") and "embed" in holder and not children & _PATCHES


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tower.

    Attributes:
        cls: Index of the class token, or None.
        registers: Number of register tokens; further class tokens count as such.
        distillation: Whether there is a distillation token.
        suffix: Number of tokens behind the patches.
    """

    cls: int | None
    registers: int
    distillation: bool
    suffix: int

    def layout(self, grid: Size, *, order: Tensor | None = None, frames: int = 1) -> TokenLayout:
        """The layout of a sequence with these tokens."""
        return TokenLayout(
            grid, self.cls, self.registers, self.distillation, suffix=self.suffix, order=order, frames=frames
        )


def special_tokens(tower: Tower) -> SpecialTokens:
    """What a tower puts beside its patches."""
    holders = (tower.embeddings, tower.module)
    cls = next((t for h in holders for n in _CLASS_TOKENS if isinstance(t := getattr(h, n, None), Tensor)), None)
    last = class_of(tower.module).__name__ == "Llama4VisionModel"
    more = 0 if cls is None or cls.dim() < 2 else cls.shape[-2] - 1
    return SpecialTokens(
        cls=None if cls is None else -1 if last else 0,
        registers=more + _count(holders, "register_tokens"),
        distillation=_count(holders, "distillation_token") > 0,
        suffix=_count(holders, "detection_tokens"),
    )


def _count(holders: tuple[Any, ...], name: str) -> int:
    tokens = next((t for holder in holders if isinstance(t := getattr(holder, name, None), Tensor)), None)
    return 0 if tokens is None else int(tokens.shape[-2])


# --- what a call of the embeddings shows ---------------------------------------------------------------------------------------------------

Shows = Callable[[tuple[Any, ...], dict[str, Any], Any], SequenceInfo]


def shown_tokens(tower: Tower, special: SpecialTokens) -> Shows | None:
    """What tells the grid of a tower from a call of its embeddings, where the convolution's output does not.

    Returns:
        A function of `(args, kwargs, output)`; None if nothing is known.
    """
    names = tuple(inspect.signature(tower.embeddings.forward).parameters)

    def given(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
        return {**dict(zip(names, args, strict=False)), **kwargs}.get(name)

    if "spatial_shapes" in names:
        return lambda args, kwargs, output: _shaped(
            given(args, kwargs, "spatial_shapes"), int(output.shape[1]), special, _patch_size(tower)
        )
    if "pixel_position_ids" in names:
        return lambda args, kwargs, output: _positioned(given(args, kwargs, "pixel_position_ids"), special)
    if "flattened_patches" in names:
        return lambda args, kwargs, output: _positioned(
            given(args, kwargs, "flattened_patches")[..., :2].flip(-1).long() - 1, special
        )
    if tower.convolves:
        return _masked
    if _patch_size(tower) is not None:
        return lambda args, kwargs, output: _of_image(args, kwargs, _patch_size(tower))
    return None


def _patch_size(tower: Tower) -> Size | None:
    holders = (tower.embeddings, tower.module, getattr(tower.module, "config", None))
    return next((pair(size) for holder in holders if (size := getattr(holder, "patch_size", None)) is not None), None)


def _masked(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> SequenceInfo:
    """MAE's embeddings answer (kept tokens, mask, ids_restore): patches are shuffled even when none is masked."""
    if not (isinstance(output, tuple) and len(output) == 3 and all(isinstance(part, Tensor) for part in output)):
        return SequenceInfo()
    tokens, _, restore = output
    kept = tokens.shape[1] - 1
    return SequenceInfo(order=torch.argsort(restore.detach(), dim=1)[:, :kept])


def _of_image(args: tuple[Any, ...], kwargs: dict[str, Any], patch: Size | None) -> SequenceInfo:
    """Embeddings that cut an image themselves."""
    image = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim() == 4), None)
    if image is None or patch is None:
        return SequenceInfo(
            problem="the patch grid is not known: the patches came cut already, without their rows and columns. Pass "
            "layout=TokenLayout(...)."
        )
    grid = (image.shape[2] // patch[0], image.shape[3] // patch[1])
    return SequenceInfo(grid=grid, area=(grid[0] * patch[0], grid[1] * patch[1]))


def _shaped(shapes: Any, tokens: int, special: SpecialTokens, patch: Size | None) -> SequenceInfo:
    """Patches that are cut already, `(batch, patches, pixels)`, padded behind, with each image's `(rows, columns)`."""
    if shapes is None:
        return SequenceInfo(
            problem="the patch grid is not known: the embeddings got no spatial_shapes. Pass layout=TokenLayout(...)."
        )
    grids = [(int(rows), int(columns)) for rows, columns in torch.as_tensor(shapes, device="cpu").tolist()]
    return _padded(grids, tokens, special, patch)


def _padded(grids: list[Size], tokens: int, special: SpecialTokens, patch: Size | None) -> SequenceInfo:
    if len(set(grids)) > 1:
        return SequenceInfo(packed=PackedLayout.padded(tuple(special.layout(grid) for grid in grids), tokens))
    grid = grids[0]
    area = None if patch is None else (grid[0] * patch[0], grid[1] * patch[1])
    return SequenceInfo(grid=grid, area=area, padding=tokens - special.layout(grid).num_tokens)


def _positioned(places: Any, special: SpecialTokens) -> SequenceInfo:
    """Patches with their columns and rows, `(batch, patches, 2)`; -1 for padding."""
    columns, rows = places.unbind(-1)
    real = (columns >= 0) & (rows >= 0)
    grids = []
    for image in range(places.shape[0]):
        grid = (int(rows[image].max()) + 1, int(columns[image].max()) + 1)
        count = int(real[image].sum())
        cells = torch.arange(count, device=places.device)
        straight = (rows[image, :count] == cells // grid[1]) & (columns[image, :count] == cells % grid[1])
        if count != grid[0] * grid[1] or not bool(straight.all()):
            return SequenceInfo(
                problem=f"the patches of image {image} are not row by row on one grid: expected {grid[0]}x{grid[1]}, got {count} patches. "
                "Read the rows without a grid."
            )
        grids.append(grid)
    return _padded(grids, int(places.shape[1]), special, None)
