"""The vision towers of transformers' models: where they are, their special tokens, and the grid that a call of their embeddings shows."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.anatomy import SequenceInfo
from attnhook.capture.layout import TokenLayout
from attnhook.capture.recognition import class_of
from attnhook.capture.windows import PackedLayout
from attnhook.options import Size
from attnhook.zoo.token_rules import pair

_PATCHES = frozenset(
    {"patch_embeddings", "patch_embedding", "patch_embed", "patch_embedder", "patch_conv", "patch_projection"}
)
_WORDS = frozenset({"word_embeddings", "embed_tokens", "token_embedding", "tok_embeddings", "wte", "shared"})
_CLASS_TOKENS = ("cls_token", "class_embedding", "cls_embedding", "cls_register_token")
CONVOLUTIONS = nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a tower."""

    cls: int | None  # index of the class token
    registers: int  # number of register tokens, further class tokens included
    distillation: bool
    suffix: int  # number of tokens after the patches

    def layout(self, grid: Size, *, order: Tensor | None = None, frames: int = 1) -> TokenLayout:
        """The layout of a sequence with these tokens."""
        return TokenLayout(grid, self.cls, self.registers, self.distillation, self.suffix, frames, order)


@dataclass(frozen=True, eq=False)
class Tower:
    """A vision tower."""

    name: str  # its path in the model; empty for the model itself
    module: Any  # contains embeddings and blocks
    embeddings: Any  # makes tokens from pixels
    projection: nn.Module  # the convolution or linear layer that embeds patches

    def contains(self, name: str) -> bool:
        """Whether the module with that path is in the tower."""
        return not self.name or name.startswith(f"{self.name}.")

    @property
    def convolves(self) -> bool:
        """Whether patches are embedded by a convolution over the image, whose output shows the grid."""
        return isinstance(self.projection, CONVOLUTIONS)

    @property
    def patch_size(self) -> Size | None:
        """Height and width of a patch in pixels, if the tower says."""
        holders = (self.embeddings, self.module, getattr(self.module, "config", None))
        sizes = (getattr(holder, "patch_size", None) for holder in holders)
        return next((pair(size) for size in sizes if size is not None), None)

    @property
    def special_tokens(self) -> SpecialTokens:
        """The tokens besides the patches."""
        cls = self._tokens(*_CLASS_TOKENS)
        last = class_of(self.module).__name__ == "Llama4VisionModel"
        return SpecialTokens(
            cls=None if cls is None else -1 if last else 0,
            registers=(0 if cls is None or cls.dim() < 2 else cls.shape[-2] - 1) + self._count("register_tokens"),
            distillation=self._count("distillation_token") > 0,
            suffix=self._count("detection_tokens"),
        )

    def _tokens(self, *names: str) -> Tensor | None:
        found = (getattr(holder, name, None) for holder in (self.embeddings, self.module) for name in names)
        return next((tokens for tokens in found if isinstance(tokens, Tensor)), None)

    def _count(self, name: str) -> int:
        tokens = self._tokens(name)
        return 0 if tokens is None else int(tokens.shape[-2])


def text_parts(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that embed words and see no image: text towers and decoders."""
    parts = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _WORDS:
            part = name
            while (parent := part.rpartition(".")[0]) and not _sees_images(model.get_submodule(parent)):
                part = parent
            parts.append(part)
    return tuple(sorted({part for part in parts if not any(part.startswith(f"{other}.") for other in parts)}))


def _sees_images(module: nn.Module) -> bool:
    return "QFormer" in class_of(module).__name__ or any(
        isinstance(part, CONVOLUTIONS) or name.rpartition(".")[2] in _PATCHES for name, part in module.named_modules()
    )


def inside(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a path is that of one of the parts, or of a module in one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def find_towers(model: nn.Module, text: tuple[str, ...]) -> list[Tower]:
    """The vision towers of a model, by their patch embeddings outside the text parts."""
    found: dict[str, Tower] = {}
    for name, module in model.named_modules():
        if inside(name, text) or class_of(module).__module__.startswith("timm."):
            continue
        if not (name.rpartition(".")[2] in _PATCHES or _embeds_directly(model, name, module)):
            continue
        projection = next((part for part in module.modules() if isinstance(part, CONVOLUTIONS | nn.Linear)), None)
        owner = name
        while "embed" in owner.rpartition(".")[0].rpartition(".")[2]:
            owner = owner.rpartition(".")[0]
        if projection is not None and owner not in found:
            tower = owner.rpartition(".")[0]
            found[owner] = Tower(tower, model.get_submodule(tower), model.get_submodule(owner), projection)
    return list(found.values())


def _embeds_directly(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Whether a module is the convolution of an embeddings module without a patch embedding in between."""
    holder = name.rpartition(".")[0]
    if not isinstance(module, CONVOLUTIONS) or not holder:
        return False
    owner = model.get_submodule(holder)
    children = {child for child, _ in owner.named_children()}
    return class_of(owner).__name__.endswith("Embeddings") and "embed" in holder and not children & _PATCHES


TokensOf = Callable[[tuple[Any, ...], dict[str, Any], Any], SequenceInfo]


def tokens_seen(tower: Tower) -> TokensOf:
    """What reads from a call `(args, kwargs, output)` of the embeddings what the convolution's output does not show."""
    special, patch, convolves = tower.special_tokens, tower.patch_size, tower.convolves
    names = tuple(inspect.signature(tower.embeddings.forward).parameters)

    def seen(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> SequenceInfo:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if "spatial_shapes" in names:
            return _from_shapes(given.get("spatial_shapes"), int(output.shape[1]), special, patch)
        if "pixel_position_ids" in names:
            return _from_positions(given["pixel_position_ids"], special)
        if "flattened_patches" in names:
            return _from_positions(given["flattened_patches"][..., :2].flip(-1).long() - 1, special)
        if convolves:
            return _from_masking(output)
        return SequenceInfo() if patch is None else _from_image((*args, *kwargs.values()), patch)

    return seen


def _from_masking(output: Any) -> SequenceInfo:
    """MAE's embeddings return (kept tokens, mask, ids_restore): patches are shuffled even if none is masked."""
    if not (isinstance(output, tuple) and len(output) == 3 and all(isinstance(part, Tensor) for part in output)):
        return SequenceInfo()
    tokens, _, restore = output
    return SequenceInfo(order=torch.argsort(restore.detach(), dim=1)[:, : tokens.shape[1] - 1])


def _from_image(inputs: tuple[Any, ...], patch: Size) -> SequenceInfo:
    """Embeddings that cut an image themselves."""
    image = next((value for value in inputs if isinstance(value, Tensor) and value.dim() == 4), None)
    if image is None:
        return SequenceInfo(
            problem="the patch grid is unknown: expected an image, got patches without their rows and columns. Pass layout=TokenLayout(...)."
        )
    grid = (image.shape[2] // patch[0], image.shape[3] // patch[1])
    return SequenceInfo(grid=grid, area=(grid[0] * patch[0], grid[1] * patch[1]))


def _from_shapes(shapes: Any, tokens: int, special: SpecialTokens, patch: Size | None) -> SequenceInfo:
    """Patches `(batch, patches, pixels)`, padded at the end, with each image's `(rows, columns)`."""
    if shapes is None:
        return SequenceInfo(
            problem="the patch grid is unknown: expected spatial_shapes, got none. Pass it, or layout=TokenLayout(...)."
        )
    grids = [(int(rows), int(columns)) for rows, columns in torch.as_tensor(shapes, device="cpu").tolist()]
    return _padded(grids, tokens, special, patch)


def _from_positions(positions: Any, special: SpecialTokens) -> SequenceInfo:
    """Patches with their columns and rows, `(batch, patches, 2)`; -1 for padding."""
    columns, rows = positions.unbind(-1)
    real = (columns >= 0) & (rows >= 0)
    grids = []
    for image in range(len(positions)):
        grid = (int(rows[image].max()) + 1, int(columns[image].max()) + 1)
        count = int(real[image].sum())
        cells = torch.arange(count, device=positions.device)
        in_order = (rows[image, :count] == cells // grid[1]) & (columns[image, :count] == cells % grid[1])
        if count != grid[0] * grid[1] or not bool(in_order.all()):
            return SequenceInfo(
                problem=f"the patches of image {image} are not on one grid: expected {grid[0]}x{grid[1]}, row by row, got {count} patches. "
                "Read the rows without a grid."
            )
        grids.append(grid)
    return _padded(grids, int(positions.shape[1]), special, None)


def _padded(grids: list[Size], tokens: int, special: SpecialTokens, patch: Size | None) -> SequenceInfo:
    if len(set(grids)) > 1:
        return SequenceInfo(packed=PackedLayout.padded(tuple(special.layout(grid) for grid in grids), tokens))
    grid = grids[0]
    area = None if patch is None else (grid[0] * patch[0], grid[1] * patch[1])
    return SequenceInfo(grid=grid, area=area, padding=tokens - special.layout(grid).num_tokens)
