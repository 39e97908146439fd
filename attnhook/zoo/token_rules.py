"""The tokens of hierarchical and windowed models: rules that the models of several libraries share.

A rule is a function from a `CallContext` to `SiteTokens`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.layout import TokenLayout
from attnhook.capture.sites import Arrangement, CallContext, Queries, SiteTokens
from attnhook.capture.windows import WindowLayout
from attnhook.options import Size

TokensOf = Callable[[CallContext], SiteTokens]
SiteOptions = dict[str, Any]
"""Keyword arguments of `AttentionSite`."""


@dataclass(frozen=True)
class ModuleContext:
    """An attention module and the modules around it."""

    model: Any
    name: str
    module: Any

    @property
    def parents(self) -> tuple[Any, ...]:
        """The modules that contain it, innermost first."""
        parts = self.name.split(".")[:-1]
        return tuple(self.model.get_submodule(".".join(parts[:i])) for i in range(len(parts), -1, -1))

    def parent_with(self, attribute: str) -> Any:
        """The innermost parent that has an attribute, or None."""
        return next((parent for parent in self.parents if hasattr(parent, attribute)), None)


OptionsRule = Callable[[ModuleContext], SiteOptions]


def options_of(rule: SiteOptions | OptionsRule | None, context: ModuleContext) -> SiteOptions:
    """The options for a module, from the rule or the plain options of its class."""
    return rule(context) if callable(rule) else dict(rule or {})


def downsampled_grid(area: Size | None, tokens: int) -> Size | str:
    """The grid of an image of size `area` after height and width are divided by one factor and rounded; or why it cannot be told."""
    if area is None:
        return "the image size is unknown: no four-dimensional input was seen. Pass layout=TokenLayout(...)."
    fitting: set[Size] = set()
    for rows in range(1, tokens + 1):
        if tokens % rows:
            continue
        columns = tokens // rows
        # floor(H / r) == rows or ceil(H / r) == rows for some r > 0, and the same r for columns
        low = max(area[0] / (rows + 1), area[1] / (columns + 1))
        high = min(area[0] / max(rows - 1, 1e-9), area[1] / max(columns - 1, 1e-9))
        if low < high:
            fitting.add((rows, columns))
    exact = {grid for grid in fitting if grid[0] * area[1] == grid[1] * area[0]}
    fitting = exact or fitting
    if len(fitting) == 1:
        return fitting.pop()
    return (
        f"{tokens} tokens of a {area[0]}x{area[1]} input: expected one grid of that shape, got {sorted(fitting) or 'none'}. "
        "Pass layout=TokenLayout(...)."
    )


def downsampled(prefix: int = 0, cls: int | None = None, *, frames: int = 1) -> TokensOf:
    """Rule of a stage on a downsampled image, row by row after `prefix` special tokens; keys may be downsampled further than queries.

    With several `frames`, consecutive batch entries are the frames of one clip.
    """

    def layout(call: CallContext, tokens: int) -> TokenLayout | str:
        grid, registers = downsampled_grid(call.input_size, tokens - prefix), max(prefix - (cls is not None), 0)
        return grid if isinstance(grid, str) else TokenLayout(grid, cls, registers, frames_in_batch=frames)

    def tokens_of(call: CallContext) -> SiteTokens:
        queries = None if call.queries == call.keys else layout(call, call.queries)
        return SiteTokens(layout(call, call.keys), queries)

    return tokens_of


ON_GRID: SiteOptions = {"queries": Queries.PATCHES, "tokens_of": downsampled()}
"""Attention between all positions of a feature map."""

WITH_CLASS_TOKEN: SiteOptions = {"tokens_of": downsampled(1, 0)}
SINGLE_HEAD: SiteOptions = {**ON_GRID, "arrangement": Arrangement.SINGLE}
CLASS_ATTENTION: SiteOptions = {
    "queries": Queries.CLASS,
    "readout_rows": slice(0, 1),
    "tokens_of": lambda call: SiteTokens(downsampled(1, 0)(call).keys, "the only query is the class token"),
}


def unknown(reason: str, queries: Queries = Queries.PATCHES) -> SiteOptions:
    """Attention whose tokens are on no grid."""
    return {"queries": queries, "tokens_of": lambda _: SiteTokens(reason)}


def on_grid_to(queries: str) -> SiteOptions:
    """Cross-attention to the positions of a feature map."""
    rule, words = downsampled(), f"the queries are {queries}"
    return {"queries": Queries.OTHER, "tokens_of": lambda call: SiteTokens(rule(call).keys, words)}


def windows(cut: Callable[[CallContext], WindowLayout | str]) -> TokensOf:
    """Rule of a block that attends within windows."""

    def tokens_of(call: CallContext) -> SiteTokens:
        layout = cut(call)
        if isinstance(layout, str):
            return SiteTokens(layout)
        queries = call.queries if layout.query_positions is None else layout.query_positions.shape[1]
        if (layout.num_tokens, queries) != (call.keys, call.queries):
            return SiteTokens(
                f"{call.queries} queries and {call.keys} keys do not fit {layout.describe()}: expected {queries} queries and "
                f"{layout.num_tokens} keys. Read `.rows` without a grid."
            )
        return SiteTokens(layout)

    return tokens_of


def in_windows(seen: nn.Module, cut: Callable[[CallContext], WindowLayout | str], **options: Any) -> SiteOptions:
    """Options of a block that attends within windows, which `cut` finds from the inputs of `seen`."""
    return {"queries": Queries.PATCHES, "tokens_of": windows(cut), "seen_module": seen, **options}


def input_grid(call: CallContext, axis: int = 1) -> Size:
    """Height and width of the seen module's first input, at `axis` and the next."""
    height, width = call.inputs[0][axis : axis + 2]
    return height, width


def pooled_queries(keys: WindowLayout, window: Size, stride: Size, grid: Size) -> WindowLayout:
    """Windows whose queries are pooled to a coarser grid (SAM 2)."""
    queries = WindowLayout.partition(grid, window=(window[0] // stride[0], window[1] // stride[1]))
    return WindowLayout(keys.grid, keys.positions, queries.positions, grid, keys.words)


def mask_units(size: Sequence[int], schedule: Sequence[Sequence[int]], tokens: int, call: CallContext) -> WindowLayout:
    """The mask units of Hiera (Ryali et al. 2023, arXiv 2306.00989); consecutive tokens belong to different units."""
    positions, grid = _unrolled(size, schedule, tokens)
    units = positions.numel() // call.keys
    keys = positions.reshape(call.keys, units).T
    words = "mask units" if units > 1 else "window of all tokens, in the order of mask units,"
    if call.queries == call.keys:
        return WindowLayout(grid, keys, words=words)
    queries, pooled_grid = _unrolled(size, schedule, units * call.queries)
    return WindowLayout(grid, keys, queries.reshape(call.queries, units).T, pooled_grid, words)


def _unrolled(size: Sequence[int], schedule: Sequence[Sequence[int]], tokens: int) -> tuple[Tensor, Size]:
    """Row-major index of each token of the stage with that many tokens, in Hiera's order; and the grid of the stage."""
    height, width = size
    left = list(schedule)
    while height * width > tokens and left:
        stride = left.pop(0)
        height, width = height // stride[0], width // stride[1]
    index = torch.arange(height * width, device="cpu").reshape(1, height, width)
    for rows, columns in left:
        batch, high, wide = index.shape
        index = index.reshape(batch, high // rows, rows, wide // columns, columns).permute(0, 2, 4, 1, 3)
        index = index.reshape(batch * rows * columns, high // rows, wide // columns)
    return index.reshape(-1), (height, width)


def pair(value: Any) -> Size:
    """Height and width from one number or two."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def stage_of(name: str, part: str) -> int:
    """The number after a part of a module's path: 2 for `encoder.stages.2.attn` and `stages`."""
    return int(name.split(f"{part}.")[1].split(".", maxsplit=1)[0])


def no_attention(model: str, found: Sequence[str]) -> str:
    """The message for a model without attention between tokens."""
    return (
        f"{model} has no softmax attention between tokens: expected queries that attend to keys, got {', '.join(found)}. There is no attention "
        "map to capture; use a gradient method such as Grad-CAM."
    )
