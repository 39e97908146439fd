"""Vision towers of transformers that take the patches of several images in one sequence, with each image's grid (Qwen-VL, Pixtral, ...).

Attention is called once per image, frame or window, or once for all of them with a mask.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.capture.recognition import class_of
from attnhook.capture.sites import CallContext, SiteTokens
from attnhook.capture.windows import PackedLayout, WindowLayout
from attnhook.options import Size
from attnhook.zoo._transformers_towers import SpecialTokens, Tower

_GRIDS = ("grid_thw", "image_grid_thw", "target_sizes", "image_sizes")
# Towers with patches row by row although their configuration has a merge size.
_ROW_BY_ROW = ("Kimi", "PaddleOCR", "Step3p", "MiniCPM", "HunYuan", "HYV4")
_CLIPS = ("Kimi",)  # all frames of a clip attend to each other

Chunk = TokenLayout | WindowLayout


@dataclass(frozen=True)
class Packing:
    """How a tower orders and cuts its patches; all lengths are those of a side."""

    merge: int = 1  # patches of a block that is merged later; 1: row by row
    window: int = 0  # blocks of a window; 0 for a tower without windows
    clips: bool = False  # whether frames attend to each other
    patch_size: int = 0  # pixels of a patch if sizes are given in pixels; 0 if they are given in patches
    unit: int = 1  # patches of what the given grids count
    merged: int = 1  # patches that are one token in this block


def packing_of(tower: Tower) -> Packing | None:
    """How a tower packs its images; None if it takes a batch of images instead."""
    module, kind = tower.module, class_of(tower.module).__name__
    names = inspect.signature(class_of(tower.module).forward).parameters
    if not any(name in names for name in _GRIDS):
        return None
    config = module.config
    if "image_sizes" in names:
        return Packing(patch_size=int(config.patch_size))
    merge = getattr(module, "spatial_merge_size", getattr(config, "spatial_merge_size", 1))
    merge = 1 if kind.startswith(_ROW_BY_ROW) else int(merge)
    kinds = getattr(config, "layer_types", None) or ()
    windowed = hasattr(config, "fullatt_block_indexes") or "window_attention" in kinds
    window = int(getattr(module, "window_size", getattr(config, "window_size", 0)) or 0) if windowed else 0
    return Packing(
        merge,
        window // merge // int(config.patch_size),
        bool(getattr(module, "merge_temporal", False)) or kind.startswith(_CLIPS),
        unit=merge if "image_grid_thw" in names else 1,
    )


def packing_at(packing: Packing, tower: Tower, name: str) -> tuple[Packing, bool]:
    """The packing in one block, and whether the block attends over whole images."""
    inner = name[len(tower.name) :]
    number = next((int(part) for part in inner.split(".") if part.isdigit()), 0)
    config = tower.module.config
    # MiniCPM: attention within windows, then each becomes one token.
    merges_after = getattr(config, "insert_layer_id", None)
    if merges_after is None:
        whole, kinds = getattr(config, "fullatt_block_indexes", None), getattr(config, "layer_types", None)
        return packing, number in whole if whole is not None else kinds is None or kinds[number] == "full_attention"
    side = int(config.window_kernel_size[0])
    if "merger" in inner:
        return replace(packing, window=side), False
    return (replace(packing, merged=side) if 0 <= merges_after < number else packing), True


def tokens_of_call(packing: Packing, special: SpecialTokens, call: CallContext, *, whole: bool) -> SiteTokens:
    """The tokens of one attention call."""
    grids = _grids(call.inputs, packing)
    if grids is None:
        return SiteTokens(
            f"the patch grids are unknown: expected one of the arguments {', '.join(_GRIDS)}, got none. Pass it to the model."
        )
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
            f"the tokens of call {call.number} do not fit: expected one of {len(chunks)} images, frames or windows of "
            f"{sorted({chunk.num_tokens for chunk in chunks})} tokens, got {call.keys}. Read `.rows` without a grid."
        )
    return SiteTokens(chunks[call.number])


def _grids(inputs: Sequence[Any], packing: Packing) -> list[tuple[int, int, int]] | None:
    """Frames, rows and columns of each image, from the tower's arguments."""
    for value in inputs:
        sizes = value.tolist() if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] in (2, 3) else value
        if isinstance(sizes, list) and all(isinstance(one, list | tuple) and len(one) in (2, 3) for one in sizes):
            grids = [(1, *map(int, one)) if len(one) == 2 else tuple(map(int, one)) for one in sizes]
            by, size = packing.unit, packing.patch_size or packing.merged
            return [(frames, rows * by // size, columns * by // size) for frames, rows, columns in grids]
    shape = next((value for value in inputs if isinstance(value, torch.Size) and len(value) == 4), None)
    if shape is None or not packing.patch_size:
        return None
    return [(1, shape[2] // packing.patch_size, shape[3] // packing.patch_size)] * shape[0]  # all images fill the batch


def _chunks(size: tuple[int, int, int], packing: Packing, special: SpecialTokens, *, whole: bool) -> list[Chunk]:
    """The parts of one image or clip that attend to themselves."""
    frames, grid = size[0], size[1:]
    if packing.window:
        windows = _windows(grid, packing)
        order = torch.cat(windows).unsqueeze(0)
        if whole:
            return [special.layout(grid, order=order)] * frames
        words = f"windows of {packing.window * packing.merge}x{packing.window * packing.merge}, one per call,"
        apart: list[Chunk] = [WindowLayout(grid, window.unsqueeze(0), words=words) for window in windows]
        return apart * frames
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
    """Row-major index of each patch of each window, block by block; windows at the edges are smaller."""
    blocks, side = _blocks(grid, packing.merge), packing.window
    return [
        blocks[row : row + side, column : column + side].flatten()
        for row in range(0, blocks.shape[0], side)
        for column in range(0, blocks.shape[1], side)
    ]
