"""Figures of one result: its heads, its blocks, its methods, its patches; each with a caption that says what is shown on which scale.

Panels that are compared share one range of colours: by default 1 to 16 times uniform attention (1/N, the share of each of N tokens if attention
were uniform), so that figures of different photos and models can be compared, too. Larger values get the top colour.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attnhook.attribution.map_making import block_in_words, heads_in_words, make_map, query_in_words, row_in_words
from attnhook.attribution.methods import METHODS, NEEDS, check_method, reads_block
from attnhook.attribution.raw_maps import fuse_heads, raw_attention
from attnhook.attribution.statistics import attention_statistics, received_mass
from attnhook.capture.block_choice import choose_blocks
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import BlockAttention
from attnhook.errors import AttnhookError, RowsNotKeptError, TokenLayoutError
from attnhook.imaging.depth_figures import depth_figure, map_grid
from attnhook.imaging.figures import overlay_figure, sheet, shown_at, styled
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.looks import Look, caption_of, scale_in_words, share_in_words
from attnhook.imaging.overlays import common_look
from attnhook.imaging.patch_maps import PatchMap
from attnhook.imaging.picture_grids import cell_size
from attnhook.imaging.prepared import view_in_words
from attnhook.options import BlocksOption, HeadsOption, PatchIndex, Rows, Scale, ScaleOption
from attnhook.results.display import captioned, class_in_words
from attnhook.results.results import AttentionResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ALL = "all panels"
_OUTSIDE = "outside: attention on tokens that are not patches."
_ENTROPY = "entropy (nats)"


def photo_figure(result: AttentionResult, *, scale: ScaleOption = Scale.ROBUST, **options: Any) -> "Figure":
    """Draw the photo, the map and the overlay, with a colour bar: the same as `result.figure()`.

    Args:
        result: The result.
        scale: Which values the colours stand for, as `overlay` takes it.
        **options: What `PatchMap.figure` takes.

    Returns:
        The figure.

    Example:
        >>> from attnhook import attend
        >>> figure = photo_figure(attend("demo", "cat.jpg")[0])  # doctest: +SKIP
    """
    return result.figure(scale=scale, **options)


def heads_figure(
    result: AttentionResult, *, block: int | str | None = None, scale: ScaleOption = Scale.UNIFORM, **options: Any
) -> "Figure":
    """Draw every head of a block, on one scale.

    Args:
        result: The result.
        block: The block; None takes the result's own.
        scale: Which values the colours stand for; "minmax" and "robust" stretch all heads together.
        **options: `caption`, `columns`, `photo_title`, `label`; of the look and of the figure, what `PatchMap.figure` takes.

    Returns:
        The figure.
    """
    options = styled(options)
    chosen = result.maps[result.settings.block if block is None else block]
    patches = raw_attention(result.maps, block=chosen.name, heads=None)[0]
    caption = f"{_raw(result, block_in_words(chosen), heads_in_words(None, len(patches)))}; {_OUTSIDE}"
    titles = [f"head {head}{_outside(one)}" for head, one in enumerate(patches)]
    return _compared(result, [patches], titles, caption, scale=scale, options=options)


def blocks_figure(
    result: AttentionResult,
    *,
    blocks: BlocksOption = None,
    heads: HeadsOption = "mean",
    scale: ScaleOption = Scale.UNIFORM,
    **options: Any,
) -> "Figure":
    """Draw where the readout looks in every block, on one scale, and how much of its attention falls outside the patches.

    Args:
        result: The result.
        blocks: Which of the captured blocks to draw, as `AttentionCapture` takes them; None draws all that share the map's grid.
        heads: How heads become one map.
        scale: Which values the colours stand for; "minmax" and "robust" stretch all blocks together.
        **options: `caption`, `columns`, `photo_title`, `label`; of the look and of the figure, what `PatchMap.figure` takes.

    Returns:
        The figure.
    """
    options = styled(options)
    shown = _same_grid(result, blocks)
    maps = [raw_attention(result.maps, block=block.name, heads=heads)[0] for _, block in shown]
    pairs = zip(shown, maps, strict=True)
    titles = [f"block {number} of {count}{_outside(one)}" for ((number, count), _), one in pairs]
    fused = heads_in_words(heads, shown[-1][1].shape[1])
    caption = f"{_raw(result, f'{len(maps)} blocks', fused)}{f'; {_OUTSIDE}' if maps[-1].adds_up else '.'}"
    return _compared(result, maps, titles, caption, scale=scale, options=options)


def blocks_heads_figure(
    result: AttentionResult, *, blocks: BlocksOption = None, scale: ScaleOption = Scale.UNIFORM, **options: Any
) -> "Figure":
    """Draw every head of every block as a small map on the patch grid, on one scale.

    Args:
        result: The result.
        blocks: Which of the captured blocks to draw, as `AttentionCapture` takes them; None draws all that share the map's grid.
        scale: Which values the colours stand for; "minmax" and "robust" stretch all maps together.
        **options: `caption`, `row_labels`, `column_labels`, `label`; of the look and of the figure, what `PatchMap.figure` takes.

    Returns:
        The figure.

    Raises:
        TokenLayoutError: If the blocks differ in their numbers of heads.
    """
    options = styled(options)
    shown = _same_grid(result, blocks)
    maps = [raw_attention(result.maps, block=block.name, heads=None)[0] for _, block in shown]
    counts = {len(one) for one in maps}
    if len(counts) != 1:
        raise TokenLayoutError(
            f"cannot draw blocks by heads: expected as many heads in every block, got {sorted(counts)}."
        )
    grid = result.patch_map.grid
    outside = torch.stack([one.outside for one in maps if one.outside is not None])
    said: dict[str, Any] = {
        "caption": f"{_raw(result, 'every head of every block', f'{grid[0]} x {grid[1]} patches')}; "
        f"{share_in_words(float(outside.min()))} to {share_in_words(float(outside.max()))} of it outside the patches. "
        f"{scale_in_words(_look(options, scale, maps[-1].uniform), _ALL)}",
        "image": _seen(result),
        "row_labels": [str(number) for (number, _), _ in shown],
        "column_labels": [str(head) for head in range(counts.pop())],
    }
    return map_grid(
        torch.stack([one.values for one in maps]), scale=scale, uniform=maps[-1].uniform, **(said | options)
    )


def methods_figure(
    result: AttentionResult, methods: Sequence[str] | None = None, *, scale: ScaleOption = Scale.ROBUST, **options: Any
) -> "Figure":
    """Draw the maps of several methods side by side. Their units differ, so each has a range of its own, and the figure says so.

    Args:
        result: The result; what a method needs must have been captured. A result of `attend(..., method="gradient_rollout")` has what every
            method needs.
        methods: One or several names in `METHODS`; None draws all that this capture allows, and the caption names the others.
        scale: Which values the colours stand for. The default cuts off the sinks (tokens that draw most of the attention) of some models, which
            would otherwise take all of a rollout's colours.
        **options: `caption`, `columns`, `photo_title`, `label`; of the look and of the figure, what `PatchMap.figure` takes.

    Returns:
        The figure.

    Raises:
        ValueError: If a method is unknown.
        RowsNotKeptError: If this capture allows no method.
    """
    options = styled(options)
    methods = (methods,) if isinstance(methods, str) else methods
    for name in methods or ():
        check_method(name)
    maps: dict[str, PatchMap] = {}
    left_out = []
    for name in METHODS if methods is None else methods:
        try:
            maps[name] = METHODS[name](result.maps)[0]
        except AttnhookError:
            if methods is not None:
                raise
            left_out.append(name)
    if not maps:
        raise RowsNotKeptError(
            "no method can be computed from this capture: expected what at least one needs, got none. Capture with rows='all'."
        )
    photo, geometry = shown_result(result, options)
    pixels = _pixels(geometry, [one.to("cpu") for one in maps.values()], result.mode)
    titles = [name.replace("_", " ") + _outside(one, before="\n") for name, one in maps.items()]
    said: dict[str, Any] = {"caption": _methods_in_words(result, list(maps), left_out), "scale": scale}
    return sheet(photo, pixels, titles, **(said | options))


def query_figure(
    result: AttentionResult,
    patches: PatchIndex | Sequence[PatchIndex],
    *,
    block: int | str | None = None,
    heads: HeadsOption = "mean",
    scale: ScaleOption = Scale.ROBUST,
    **options: Any,
) -> "Figure":
    """Draw where patches look: each is marked in its panel, over its own row of the attention matrix.

    Args:
        result: A result of `attend(..., rows="all")`.
        patches: `(row, column)` of one patch, or several.
        block: The block; None takes the result's own.
        heads: How heads become one map.
        scale: Which values the colours stand for; "minmax" and "robust" stretch several patches together.
        **options: `caption`, `label`; for several patches `columns` and `photo_title`; of the look and of the figure, what `PatchMap.figure`
            takes.

    Returns:
        The figure.

    Raises:
        RowsNotKeptError: Unless all rows were captured.
        TokenLayoutError: If the block's tokens are not on one patch grid.
    """
    options = styled(options)
    several = cast(list[PatchIndex], [patches] if isinstance(patches[0], int) else list(patches))
    chosen = result.maps[result.settings.block if block is None else block]
    layout = chosen.layout
    if not isinstance(layout, TokenLayout):
        raise TokenLayoutError(f"block {chosen.name!r} attends in windows: expected one grid, got {layout.describe()}.")
    if result.maps.selected_rows is not Rows.ALL:
        raise RowsNotKeptError("the rows of single patches were not captured: expected attend(..., rows='all').")
    rows = chosen.matrix.rows([layout.token_of(patch) for patch in several])
    uniform = 1 / chosen.shape[-1]
    values = layout.patches(fuse_heads(rows, heads))[0]
    row = "marked patch to patches"
    fused = make_map(result.maps, values, [chosen], "raw attention", heads=heads, row=row, uniform=uniform)
    photo, geometry = shown_result(result, options, 5.0 if len(several) == 1 else 1.8)
    boxes = [fused.box(geometry, patch) for patch in several]
    outside = fused.outside if len(several) == 1 else None
    description = captioned(fused, result.settings.model).description
    caption = caption_of(description, outside, view_in_words(result.geometry))
    if len(several) == 1:
        words = scale_in_words(_look(options, scale, uniform))
        said: dict[str, Any] = {"caption": f"{caption}. {words}", "mark": boxes[0]}
        (pixels,) = _pixels(geometry, [fused], result.mode)
        return overlay_figure(photo, pixels, scale=scale, uniform=uniform, **(said | options))
    pairs = zip(several, fused, strict=True)
    titles = [f"row {row}, column {column}" + _outside(one, before="\n") for (row, column), one in pairs]
    caption += f"; {_OUTSIDE}" if fused.adds_up else "."
    return _compared(result, [fused], titles, caption, scale=scale, options={"marks": boxes, **options})


def statistics_figure(result: AttentionResult, *, blocks: BlocksOption = None, **options: Any) -> "Figure":
    """Draw statistics over depth, a dot for each head: entropy, attention distance, and the mass of the largest sink.

    Args:
        result: A result of `attend(..., rows="all")` gives means over all queries, any other the means over the rows that were captured.
        blocks: Which of the captured blocks to draw, as `AttentionCapture` takes them; None draws all.
        **options: `caption`, `references`, `title`, `width`, `dpi`, `style`, `ax`.

    Returns:
        The figure. It leaves out statistics that this capture does not allow: no attention distance without a patch's row.
    """
    options = styled(options)
    maps = result.maps.with_blocks(choose_blocks(tuple(result.maps), blocks))
    measured = attention_statistics(maps, diversity=False)
    keys = {block.shape[-1] for block in maps}
    tables = {
        _ENTROPY: _by_head([block.entropy for block in measured]),
        "attention distance (patches)": _by_head([block.distance_patches for block in measured]),
        "largest sink (share)": _by_head([received_mass(block).amax(dim=-1) for block in maps]),
    }
    queries = "all queries" if maps.selected_rows is Rows.ALL else f"query {query_in_words(maps)}"
    one_length = len(keys) == 1
    said: dict[str, Any] = {
        "caption": f"{result.settings.model}: {queries}; dots are heads, lines are their means"
        f"{', dashed: uniform attention' if one_length else ''}. Sink: the token that gets the most attention, averaged over the queries.",
        "references": {_ENTROPY: math.log(keys.pop())} if one_length else {},
    }
    return depth_figure({name: one for name, one in tables.items() if not one.isnan().all()}, **(said | options))


def _compared(
    result: AttentionResult,
    maps: Sequence[PatchMap],
    titles: Sequence[str],
    caption: str,
    *,
    scale: ScaleOption,
    options: dict[str, Any],
) -> "Figure":
    """A sheet of maps on one scale; the user's options win."""
    photo, geometry = shown_result(result, options)
    pixels, uniform = _pixels(geometry, maps, result.mode), maps[-1].uniform
    look = common_look(pixels, _look(options, scale, uniform))
    words = scale_in_words(_look(options, scale, uniform), _ALL)
    said = {"caption": f"{caption} {words}", "scale": look.scale, "floor": look.floor, "uniform": uniform}
    return sheet(photo, pixels, titles, **(said | options))


def _look(options: Mapping[str, Any], scale: ScaleOption, uniform: float | None) -> Look:
    """The look among a figure's options, for its caption."""
    given = {one.name: options[one.name] for one in fields(Look) if one.name in options}
    return Look(**{"scale": scale, "uniform": uniform} | given)


def shown_result(
    result: AttentionResult, options: Mapping[str, Any], width: float = 1.8
) -> tuple[Image.Image, ImageGeometry]:
    """The photo at the size of a panel, and the place of the model's input in it."""
    size = cell_size((result.image.height, result.image.width), options.get("cell_width", width))
    inches = max(options.get("width") or size[0], 5.0 if options.get("ax") is not None else 0.0)
    return shown_at(result.image, result.geometry, inches * options.get("dpi", 200))


def _seen(result: AttentionResult) -> Image.Image:
    """The part of the photo that the patches cover."""
    rows, columns = result.patch_map.edges(result.geometry)
    top, bottom = np.clip(np.rint(rows[[0, -1]]), 0, result.image.height).astype(int).tolist()
    left, right = np.clip(np.rint(columns[[0, -1]]), 0, result.image.width).astype(int).tolist()
    return result.image.crop((left, top, right, bottom))


def _by_head(values: list[Tensor]) -> Tensor:
    """Means over images, blocks by heads; NaN where a block has fewer."""
    return pad_sequence([one.mean(dim=0).double() for one in values], batch_first=True, padding_value=math.nan)


def _methods_in_words(result: AttentionResult, shown: list[str], left_out: list[str]) -> str:
    of_one = [name for name in shown if reads_block(name)]
    row = row_in_words(result.maps)
    words = [
        f"{result.settings.model}: {row}, mean of heads, {view_in_words(result.geometry)}; defaults of each method"
    ]
    if of_one:
        words.append(f"{', '.join(of_one)}: {block_in_words(result.maps[-1])}")
    if len(of_one) < len(shown):
        words.append(f"{'the others: ' if of_one else ''}all {len(result.maps)} blocks captured")
    if result.settings.target is not None and any(NEEDS[name].gradients for name in shown):
        words.append(f"gradients for {class_in_words(result.settings.target, result.settings.score)}")
    if any(NEEDS[name].mass for name in shown):
        words.append(_OUTSIDE.removesuffix("."))
    text = f"{'; '.join(words)}."
    return f"{text} Not from this capture: {', '.join(left_out)}." if left_out else text


def _pixels(geometry: ImageGeometry, maps: Sequence[PatchMap], mode: str) -> list[Tensor]:
    """All maps at the photo's size, in one list."""
    return [one for each in maps for one in each.heatmap(geometry, mode=mode).reshape(-1, *geometry.image_size)]


def _outside(patch_map: PatchMap, *, before: str = ", ") -> str:
    return "" if patch_map.outside is None else f"{before}{share_in_words(float(patch_map.outside))} outside"


def _raw(result: AttentionResult, *what: str) -> str:
    """The caption of a sheet of raw attention."""
    return f"{result.settings.model}: {', '.join(['raw attention', row_in_words(result.maps), *what, view_in_words(result.geometry)])}"


def _same_grid(result: AttentionResult, blocks: BlocksOption) -> list[tuple[tuple[int, int], BlockAttention]]:
    """Chosen blocks whose keys are on the result's grid and that have the readout's row, each with its number and how many there are."""
    grid, chosen = result.patch_map.grid, {block.name for block in choose_blocks(tuple(result.maps), blocks)}
    found = []
    for at, block in enumerate(result.maps, 1):
        if block.name not in chosen:
            continue
        layout = block.token_layout
        if isinstance(layout, TokenLayout) and layout.frames == layout.frames_in_batch == 1 and layout.grid == grid:
            with suppress(AttnhookError):
                raw_attention(result.maps, block=block.name)
                found.append((block.number or (at, len(result.maps)), block))
    if not found:
        raise TokenLayoutError(f"no block has its keys on the map's grid: expected {grid}. Capture blocks that do.")
    return found
