"""Towers of transformers that take the patches of several images one behind the other, with each image's grid: Qwen-VL and its like, Pixtral.

The patches of an image come in blocks that a merger joins later, or row by row; within windows they are put in the windows' order first. Each
image, or frame, or window, is one call of the attention; where the kernel gets all of them in one call, a mask holds them apart.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.capture.packing import PackedLayout
from attnhook.capture.recognition import class_of
from attnhook.capture.sites import CallContext, SiteTokens
from attnhook.capture.windows import WindowLayout
from attnhook.options import Size
from attnhook.zoo._transformers_towers import SpecialTokens, Tower

_GRIDS = ("grid_thw", "image_grid_thw", "target_sizes", "image_sizes")
# Towers that keep the patches row by row although their configuration has a merge size.
_ROW_BY_ROW = ("Kimi", "PaddleOCR", "Step3p", "MiniCPM", "HunYuan", "HYV4")
_CLIPS = ("Kimi",)  # all frames of a clip attend to each other

Chunk = TokenLayout | WindowLayout


@dataclass(frozen=True)
class Packing:
    """How a tower orders and cuts its patches.

    Attributes:
        merge: Rows and columns of the blocks that a merger joins; 1: row by row.
        window: Blocks along a window's side; 0 for a tower without windows.
        clips: Whether frames attend to each other.
        patch: Pixels along a patch's side, where sizes are given in pixels; 0 where they are given in patches.
        joined: Patches along a side of what the given grids count.
        shrunk: Patches along a side of what is one token by now.
    """

    merge: int = 1
    window: int = 0
    clips: bool = False
    patch: int = 0
    joined: int = 1
    shrunk: int = 1


def packing_of(tower: Tower) -> Packing | None:
    """How a tower packs its images; None if it takes a batch of images."""
    module, kind = tower.module, class_of(tower.module).__name__
    names = inspect.signature(class_of(tower.module).forward).parameters
    if not any(name in names for name in _GRIDS):
        return None
    config = module.config
    if "image_sizes" in names:
        return Packing(patch=int(config.patch_size))
    merge = getattr(module, "spatial_merge_size", getattr(config, "spatial_merge_size", 1))
    merge = 1 if kind.startswith(_ROW_BY_ROW) else int(merge)
    windowed = hasattr(config, "fullatt_block_indexes") or "window_attention" in (
        getattr(config, "layer_types", None) or ()
    )
    window = int(getattr(module, "window_size", getattr(config, "window_size", 0)) or 0) if windowed else 0
    return Packing(
        merge,
        window // merge // int(config.patch_size),
        bool(getattr(module, "merge_temporal", False)) or kind.startswith(_CLIPS),
        joined=merge if "image_grid_thw" in names else 1,
    )


def packing_at(packing: Packing, tower: Tower, name: str) -> tuple[Packing, bool]:
    """How the patches of one block are ordered and cut."""
    inner = name[len(tower.name) :]
    number = next((int(part) for part in inner.split(".") if part.isdigit()), 0)
    merges_after = getattr(
        tower.module.config, "insert_layer_id", None
    )  # MiniCPM: windows attend, and become one token each
    if merges_after is None:
        return packing, _whole_images(tower, number)
    side = int(tower.module.config.window_kernel_size[0])
    if "merger" in inner:
        return replace(packing, window=side), False
    return (replace(packing, shrunk=side) if 0 <= merges_after < number else packing), True


def _whole_images(tower: Tower, number: int) -> bool:
    """Whether a block of a tower with windows attends over whole images."""
    config = tower.module.config
    whole = getattr(config, "fullatt_block_indexes", None)
    if whole is not None:
        return number in whole
    kinds = getattr(config, "layer_types", None)
    return kinds is None or kinds[number] == "full_attention"


def tokens_of_call(packing: Packing, special: SpecialTokens, call: CallContext, *, whole: bool) -> SiteTokens:
    """What the tokens of one call are."""
    grids = _grids(call.inputs, packing)
    if grids is None:
        return SiteTokens("the images' grids are not known: the tower was called without them.")
    merges = next((v.tolist() for v in call.inputs if isinstance(v, Tensor) and v.shape == (len(grids),)), None)
    chunks: list[Chunk] = []
    for number, grid in enumerate(grids):
        own = packing if merges is None else replace(packing, merge=merges[number])
        chunks += _chunks(grid, own, special, whole=whole)
    images = tuple(chunk for chunk in chunks if isinstance(chunk, TokenLayout))
    total = sum(chunk.num_tokens for chunk in images)
    if len(images) > 1 and call.keys == total and call.number == 0:
        return SiteTokens(PackedLayout.behind_each_other(images))
    if call.number >= len(chunks) or chunks[call.number].num_tokens != call.keys:
        return SiteTokens(
            f"call {call.number} has {call.keys} tokens: expected those of one of {len(chunks)} images, frames or windows, of "
            f"{sorted({chunk.num_tokens for chunk in chunks})} tokens. Read `.rows` without a grid."
        )
    return SiteTokens(chunks[call.number])


def _grids(inputs: Sequence[Any], packing: Packing) -> list[tuple[int, int, int]] | None:
    """Frames, rows and columns of each image, from the arguments of the tower."""
    for value in inputs:
        sizes = value.tolist() if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] in (2, 3) else value
        if not isinstance(sizes, list) or not all(
            isinstance(size, list | tuple) and len(size) in (2, 3) for size in sizes
        ):
            continue
        grids = [(1, *map(int, size)) if len(size) == 2 else tuple(map(int, size)) for size in sizes]
        if packing.patch:
            return [(1, rows // packing.patch, columns // packing.patch) for _, rows, columns in grids]
        more, fewer = packing.joined, packing.shrunk
        return [(frames, rows * more // fewer, columns * more // fewer) for frames, rows, columns in grids]
    if packing.patch:  # no sizes: all images fill the batch
        shape = next((value for value in inputs if isinstance(value, torch.Size) and len(value) == 4), None)
        return None if shape is None else [(1, shape[2] // packing.patch, shape[3] // packing.patch)] * shape[0]
    return None


def _chunks(size: tuple[int, int, int], packing: Packing, special: SpecialTokens, *, whole: bool) -> list[Chunk]:
    """What attends to itself of one image or clip."""
    frames, grid = size[0], size[1:]
    if packing.window:
        windows = _windows(grid, packing)
        order = torch.cat(windows).unsqueeze(0)
        words = f"windows of {packing.window * packing.merge}x{packing.window * packing.merge}, one a call,"
        apart: list[Chunk] = [WindowLayout(grid, window.unsqueeze(0), words=words) for window in windows]
        return [special.layout(grid, order=order)] * frames if whole else apart * frames
    blocks = _blocks(grid, packing.merge).flatten() if packing.merge > 1 else None
    if packing.clips:
        cells = grid[0] * grid[1]
        every = None if blocks is None else torch.cat([blocks + frame * cells for frame in range(frames)]).unsqueeze(0)
        return [special.layout(grid, order=every, frames=frames)]
    return [special.layout(grid, order=None if blocks is None else blocks.unsqueeze(0))] * frames


def _blocks(grid: Size, merge: int) -> Tensor:
    """Row-major index of each patch of each block: `(block rows, block columns, merge * merge)`."""
    index = torch.arange(grid[0] * grid[1], device="cpu").reshape(grid[0] // merge, merge, grid[1] // merge, merge)
    return index.transpose(1, 2).reshape(grid[0] // merge, grid[1] // merge, merge * merge)


def _windows(grid: Size, packing: Packing) -> list[Tensor]:
    """Row-major index of each patch of each window, the patches of a block together; windows at the edges are smaller."""
    blocks, side = _blocks(grid, packing.merge), packing.window
    return [
        blocks[row : row + side, column : column + side].flatten()
        for row in range(0, blocks.shape[0], side)
        for column in range(0, blocks.shape[1], side)
    ]
