"""Figures of one result: its heads, its blocks, its methods, its patches; each with a caption that says what is shown on which scale.

Panels that are compared share one range of colours. By default that is a fixed number of multiples of uniform attention, which also makes
figures of different photos and models comparable; values beyond its top get its colour, and the colour bar has an arrow there.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnhook.attribution.map_making import block_in_words, heads_in_words, make_map, row_in_words
from attnhook.attribution.methods import METHODS, NEEDS, check_method
from attnhook.attribution.raw_maps import fuse_heads, raw_attention
from attnhook.attribution.statistics import attention_statistics, received_mass
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import BlockAttention
from attnhook.errors import AttnhookError, RowsNotKeptError, TokenLayoutError
from attnhook.imaging.depth_figures import depth_figure, map_grid
from attnhook.imaging.figures import overlay_figure, sheet, triptych
from attnhook.imaging.overlays import common_range
from attnhook.imaging.patch_maps import PatchMap
from attnhook.imaging.wording import scale_in_words, share_in_words
from attnhook.options import HeadsOption, PatchIndex, Rows, Scale, ScaleOption
from attnhook.results.captions import reads_block
from attnhook.results.results import AttentionResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ALL = "all panels"
_OUTSIDE = "outside: mass on tokens that are no patches."
_ENTROPY = "entropy (nats)"


def photo_figure(result: AttentionResult, *, scale: ScaleOption = Scale.MINMAX, **options: Any) -> "Figure":
    """Draw the photo, the map and the overlay, with a colour bar.

    Args:
        result: The result.
        scale: As in `overlay`.
        **options: As in `attnhook.imaging.figures.triptych`.

    Returns:
        The figure.

    Example:
        >>> from attnhook import attend
        >>> figure = photo_figure(attend("demo", "cat.jpg")[0])  # doctest: +SKIP
    """
    said: dict[str, Any] = {"caption": f"{result.caption}. {scale_in_words(scale)}", "label": result.quantity}
    return triptych(result.image, result.heatmap, scale=scale, uniform=result.uniform, **(said | options))


def heads_figure(
    result: AttentionResult, *, block: int | str | None = None, scale: ScaleOption = Scale.UNIFORM, **options: Any
) -> "Figure":
    """Draw every head of a block, on one scale.

    Args:
        result: The result.
        block: The block; None takes the result's own.
        scale: As in `overlay`; "minmax" and "robust" stretch all heads together.
        **options: As in `attnhook.imaging.figures.sheet`.

    Returns:
        The figure.
    """
    chosen = result.maps[result.settings.block if block is None else block]
    patches = raw_attention(result.maps, block=chosen.name, heads=None)[0]
    maps, uniform = _pixels(result, [patches]), patches.uniform
    caption = f"{_start(result)}, raw attention of every head of {block_in_words(chosen)}; {_OUTSIDE} {scale_in_words(scale, _ALL)}"
    titles = [f"head {head}, {_outside(one)}" for head, one in enumerate(patches)]
    said: dict[str, Any] = {"caption": caption, "scale": common_range(maps, scale, uniform=uniform), "uniform": uniform}
    return sheet(result.image, maps, titles, **(said | options))


def blocks_figure(
    result: AttentionResult, *, heads: HeadsOption = "mean", scale: ScaleOption = Scale.UNIFORM, **options: Any
) -> "Figure":
    """Draw the readout's way through the blocks: where it looks in each, on one scale, and how much it gives to no patch.

    Args:
        result: The result.
        heads: How heads become one map.
        scale: As in `overlay`; "minmax" and "robust" stretch all blocks together.
        **options: As in `attnhook.imaging.figures.sheet`.

    Returns:
        The figure.
    """
    shown = _same_grid(result)
    maps = [raw_attention(result.maps, block=block.name, heads=heads)[0] for _, block in shown]
    titles = [
        f"block {number}" + (f", {_outside(one)}" if one.adds_up else "")
        for (number, _), one in zip(shown, maps, strict=True)
    ]
    pixels = _pixels(result, maps)
    caption = (
        f"{_start(result)}, raw attention of each block, {heads_in_words(heads, shown[-1][1].shape[1])}"
        f"{f'; {_OUTSIDE}' if maps[-1].adds_up else '.'} {scale_in_words(scale, _ALL)}"
    )
    uniform = maps[-1].uniform
    said: dict[str, Any] = {
        "caption": caption,
        "scale": common_range(pixels, scale, uniform=uniform),
        "uniform": uniform,
    }
    return sheet(result.image, pixels, titles, **(said | options))


def blocks_heads_figure(result: AttentionResult, *, scale: ScaleOption = Scale.UNIFORM, **options: Any) -> "Figure":
    """Draw every head of every block as a small map on the patch grid, on one scale.

    Args:
        result: The result.
        scale: As in `overlay`; "minmax" and "robust" stretch all maps together.
        **options: As in `attnhook.imaging.depth_figures.map_grid`.

    Returns:
        The figure.

    Raises:
        TokenLayoutError: If the blocks differ in their numbers of heads.
    """
    shown = _same_grid(result)
    maps = [raw_attention(result.maps, block=block.name, heads=None)[0] for _, block in shown]
    counts = {len(one) for one in maps}
    if len(counts) != 1:
        raise TokenLayoutError(
            f"cannot draw blocks by heads: expected as many heads in every block, got {sorted(counts)}."
        )
    grid = result.patch_map.grid
    outside = torch.stack([one.outside for one in maps if one.outside is not None])
    said: dict[str, Any] = {
        "caption": f"{_start(result)}, raw attention of every head of every block on the {grid[0]} x {grid[1]} patches; "
        f"{share_in_words(float(outside.min()))} to {share_in_words(float(outside.max()))} of it outside the patches. "
        f"{scale_in_words(scale, _ALL)}",
        "image": _seen(result),
        "row_labels": [str(number) for number, _ in shown],
        "column_labels": [str(head) for head in range(counts.pop())],
    }
    return map_grid(
        torch.stack([one.values for one in maps]), scale=scale, uniform=maps[-1].uniform, **(said | options)
    )


def methods_figure(
    result: AttentionResult,
    methods: Sequence[str] | None = None,
    *,
    scale: ScaleOption = Scale.ROBUST,
    **options: Any,
) -> "Figure":
    """Draw the maps of several methods side by side. Their units differ, so each has a range of its own, and the figure says so.

    Args:
        result: The result; what a method needs must have been captured. A class's score run backward through a capture of all rows with
            values, as `attend(..., method="gradient_rollout")` keeps it, gives all methods that have no option beyond it.
        methods: Names in `METHODS`; None takes all that can be had from this capture, and the caption names the others.
        scale: As in `overlay`. The default cuts the sinks of some models, which take all of a rollout's colours otherwise.
        **options: As in `attnhook.imaging.figures.sheet`.

    Returns:
        The figure.

    Raises:
        ValueError: If a method is unknown.
        RowsNotKeptError: If no method can be had from this capture.
    """
    names = list(METHODS) if methods is None else list(methods)
    for name in names:
        check_method(name)
    maps: dict[str, PatchMap] = {}
    left_out = []
    for name in names:
        try:
            maps[name] = METHODS[name](result.maps)[0]
        except AttnhookError:
            if methods is not None:
                raise
            left_out.append(name)
    if not maps:
        raise RowsNotKeptError(
            "no method can be had from this capture: expected at least one, got none. Capture with rows='all'."
        )
    pixels = _pixels(result, [one.to("cpu") for one in maps.values()])
    titles = [name.replace("_", " ") + (f"\n{_outside(one)}" if one.adds_up else "") for name, one in maps.items()]
    said: dict[str, Any] = {"caption": _methods_in_words(result, list(maps), left_out), "scale": scale}
    return sheet(result.image, pixels, titles, **(said | options))


def query_figure(
    result: AttentionResult,
    patches: PatchIndex | Sequence[PatchIndex],
    *,
    block: int | str | None = None,
    heads: HeadsOption = "mean",
    scale: ScaleOption = Scale.MINMAX,
    **options: Any,
) -> "Figure":
    """Draw where patches look: each marked in its panel, with its own row of attention.

    Args:
        result: A result of `attend(..., rows="all")`.
        patches: `(row, column)` of one patch, or several.
        block: The block; None takes the result's own.
        heads: How heads become one map.
        scale: As in `overlay`. "minmax" and "robust" stretch several patches together.
        **options: As in `attnhook.imaging.figures.overlay_figure` for one patch, `sheet` for several.

    Returns:
        The figure.

    Raises:
        RowsNotKeptError: Unless all rows were captured.
        TokenLayoutError: If the block's tokens lie on no patch grid.
    """
    several = cast(list[PatchIndex], [patches] if isinstance(patches[0], int) else list(patches))
    chosen = result.maps[result.settings.block if block is None else block]
    layout = chosen.layout
    if not isinstance(layout, TokenLayout):
        raise TokenLayoutError(f"block {chosen.name!r} attends in windows: expected one grid, got {layout.describe()}.")
    if result.maps.selected_rows is not Rows.ALL:
        raise RowsNotKeptError("rows of single patches were not kept: expected attend(..., rows='all').")
    rows = chosen.matrix.rows([layout.token_of(patch) for patch in several])
    uniform = 1 / chosen.shape[-1]
    values = layout.patches(fuse_heads(rows, heads))[0]
    fused = make_map(result.maps, values, [chosen], "raw attention", heads=heads, row="patches", uniform=uniform)
    maps = _pixels(result, [fused])
    boxes = [fused.box(result.geometry, patch) for patch in several]
    caption = f"{result.settings.model}, raw attention of the marked patch in {block_in_words(chosen)}, {heads_in_words(heads, chosen.shape[1])}"
    outside = [_outside(one) if one.adds_up else "" for one in fused]
    if len(several) == 1:
        left = f", {outside[0]} the patches" if outside[0] else ""
        said: dict[str, Any] = {"caption": f"{caption}{left}. {scale_in_words(scale)}", "mark": boxes[0]}
        return overlay_figure(result.image, maps[0], scale=scale, uniform=uniform, **(said | options))
    titles = [
        f"row {row}, column {column}\n{left}".rstrip() for (row, column), left in zip(several, outside, strict=True)
    ]
    said = {
        "caption": f"{caption}{f'; {_OUTSIDE}' if fused.adds_up else '.'} {scale_in_words(scale, _ALL)}",
        "marks": boxes,
        "scale": common_range(maps, scale, uniform=uniform),
        "uniform": uniform,
    }
    return sheet(result.image, maps, titles, **(said | options))


def statistics_figure(result: AttentionResult, **options: Any) -> "Figure":
    """Draw statistics over depth, a dot for each head: entropy, attention distance, and the mass of the largest sink.

    Args:
        result: A result of `attend(..., rows="all")` for means over all queries; other captures have those of their rows.
        **options: As in `attnhook.imaging.depth_figures.depth_figure`.

    Returns:
        The figure. A statistic that this capture does not have (no distance without a patch's row) is left out.
    """
    blocks = attention_statistics(result.maps, diversity=False)
    keys = {block.shape[-1] for block in result.maps}
    tables = {
        _ENTROPY: _by_head([block.entropy.mean(dim=0) for block in blocks]),
        "attention distance (patches)": _by_head([block.distance_patches.mean(dim=0) for block in blocks]),
        "largest sink (share)": _by_head([received_mass(block).amax(dim=-1).mean(dim=0) for block in result.maps]),
    }
    queries = "all queries" if result.maps.selected_rows is Rows.ALL else row_in_words(result.maps)
    one_length = len(keys) == 1
    said: dict[str, Any] = {
        "caption": f"{result.settings.model}, {queries}; dots are heads, lines their means"
        f"{', dashed: uniform attention' if one_length else ''}. Sink: the token that gets the most, in the mean over the queries.",
        "references": {_ENTROPY: math.log(keys.pop())} if one_length else {},
    }
    return depth_figure({name: one for name, one in tables.items() if not one.isnan().all()}, **(said | options))


def _seen(result: AttentionResult) -> Image.Image:
    """The part of the photo that lies under the patches."""
    rows, columns = result.patch_map.edges(result.geometry)
    top, bottom = np.clip(np.rint(rows[[0, -1]]), 0, result.image.height).astype(int).tolist()
    left, right = np.clip(np.rint(columns[[0, -1]]), 0, result.image.width).astype(int).tolist()
    return result.image.crop((left, top, right, bottom))


def _by_head(rows: list[Tensor]) -> Tensor:
    """Blocks by heads; NaN where a block has fewer."""
    table = torch.full((len(rows), max(map(len, rows))), math.nan, dtype=torch.float64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def _methods_in_words(result: AttentionResult, shown: list[str], left_out: list[str]) -> str:
    of_one = [name for name in shown if reads_block(name)]
    words = [f"{_start(result)}, mean over heads; defaults of each method"]
    if of_one:
        words.append(f"{', '.join(of_one)}: {result.maps[-1].name}")
    if len(of_one) < len(shown):
        words.append(f"{'the others: ' if of_one else ''}all {len(result.maps)} blocks captured")
    if any(NEEDS[name].mass for name in shown):
        words.append(_OUTSIDE.removesuffix("."))
    text = f"{'; '.join(words)}."
    return f"{text} Not from this capture: {', '.join(left_out)}." if left_out else text


def _pixels(result: AttentionResult, maps: Sequence[PatchMap]) -> list[Tensor]:
    """The maps at the photo's size, one after the other."""
    return [
        one
        for each in maps
        for one in each.heatmap(result.geometry, mode=result.mode).reshape(-1, result.image.height, result.image.width)
    ]


def _outside(patch_map: PatchMap) -> str:
    return "" if patch_map.outside is None else f"{share_in_words(float(patch_map.outside))} outside"


def _start(result: AttentionResult) -> str:
    return f"{result.settings.model}, {row_in_words(result.maps)}"


def _same_grid(result: AttentionResult) -> list[tuple[int, BlockAttention]]:
    """The blocks whose keys lie on the result's grid and that have the readout's row."""
    grid = result.patch_map.grid
    found = []
    for number, block in enumerate(result.maps):
        layout = block.token_layout
        if isinstance(layout, TokenLayout) and layout.frames == 1 and layout.grid == grid:
            try:
                raw_attention(result.maps, block=block.name)
            except AttnhookError:
                continue
            found.append((number, block))
    if not found:
        raise TokenLayoutError(f"no block's keys lie on the map's grid: expected {grid}. Capture blocks that do.")
    return found
