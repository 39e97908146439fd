"""transformers' windowed models: windows cut by the layer around the attention (SAM and its kin) or before the first block (detectors).

A window's tokens are found from what the layer was given: `(batch, height, width, channels)`, or from the patch embedding's grid where the
tower put its tokens in the windows' order once and for all.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.layout import TokenLayout
from attnhook.capture.recognition import class_of
from attnhook.capture.sites import CallContext, Queries, SiteTokens
from attnhook.capture.windows import WindowLayout
from attnhook.options import Size
from attnhook.zoo.stages import pair, parents, windows

Facts = dict[str, Any]

_UNKNOWN_GRID = SiteTokens(
    "the patch grid is not known: no patch embedding was seen in this forward. Read `.rows` without a grid."
)


def layer_windows(model: nn.Module, name: str, axis: int = 1) -> Facts | None:
    """Facts of an attention whose layer cuts windows of its `window_size` by a function or method `window_partition`."""
    layer: Any = next((holder for holder in parents(model, name) if hasattr(holder, "window_size")), None)
    if layer is None:
        return None
    kind = class_of(layer)
    if not (hasattr(kind, "window_partition") or hasattr(sys.modules[kind.__module__], "window_partition")):
        return None
    stride = getattr(layer, "query_stride", None)

    def tokens_of(call: CallContext) -> SiteTokens:
        grid = (call.inputs[0][axis], call.inputs[0][axis + 1])
        size = pair(layer.window_size) if layer.window_size else grid
        keys = WindowLayout.partition(grid, window=size)
        if stride is None:
            return windows(lambda _: keys)(call)
        return _pooled_queries(call, keys, size, pair(stride))

    return {"queries": Queries.PATCHES, "tokens_of": tokens_of, "seen_module": layer}


def _pooled_queries(call: CallContext, keys: WindowLayout, window: Size, stride: Size) -> SiteTokens:
    """Windows whose queries are pooled, so that they stand on a coarser grid."""
    grid = (keys.grid[0] // stride[0], keys.grid[1] // stride[1])
    asking = WindowLayout.partition(grid, window=(window[0] // stride[0], window[1] // stride[1]))
    if (asking.num_windows, asking.num_tokens, keys.num_tokens) != (keys.num_windows, call.queries, call.keys):
        return SiteTokens(
            f"{call.queries} queries and {call.keys} keys do not fit {keys.describe()}, pooled by {stride[0]}x{stride[1]}."
        )
    return SiteTokens(WindowLayout(keys.grid, keys.positions, asking.positions, grid, keys.words))


def window_order(model: nn.Module, name: str, module: Any) -> Facts:
    """LW-DETR's backbone: tokens stand window by window from the start; some blocks attend over all of them."""
    layer: Any = next(holder for holder in parents(model, name) if hasattr(holder, "window"))
    side = int(module.config.num_windows_side)

    def tokens_of(call: CallContext) -> SiteTokens:
        if call.grid is None:
            return _UNKNOWN_GRID
        size = (call.grid[0] // side, call.grid[1] // side)
        cut = WindowLayout.partition(call.grid, window=size)
        if layer.window:
            return windows(lambda _: cut)(call)
        whole = TokenLayout(call.grid, cls=None, order=cut.positions.reshape(1, -1))
        return SiteTokens(
            whole if whole.num_tokens == call.keys else f"{call.keys} keys do not fit {whole.describe()}."
        )

    return {"queries": Queries.PATCHES, "tokens_of": tokens_of}


def windows_with_class_tokens(model: nn.Module, name: str, module: Any) -> Facts:
    """RF-DETR's backbone: each window has its own copy of the class token in front; some blocks attend over all windows."""
    layer: Any = next(holder for holder in parents(model, name) if hasattr(holder, "global_attention"))
    side = int(layer.num_windows)

    def cut(call: CallContext) -> WindowLayout:
        grid = call.grid or (1, 1)
        positions = nn.functional.pad(_their_windows(grid, side), (1, 0), value=-1)
        if layer.global_attention:
            return WindowLayout(
                grid, positions.reshape(1, -1), words="window of all tokens, window by window, a class token each,"
            )
        return WindowLayout(grid, positions, words=f"windows of {positions.shape[1] - 1} patches and a class token")

    def tokens_of(call: CallContext) -> SiteTokens:
        return _UNKNOWN_GRID if call.grid is None else windows(cut)(call)

    return {"queries": Queries.PATCHES, "tokens_of": tokens_of}


def _their_windows(grid: Size, side: int) -> Tensor:
    """Row-major index of each patch of each window, as transformers cuts them: on a grid that is not square, rows and columns are swapped."""
    index = torch.arange(grid[0] * grid[1], device="cpu").reshape(side, grid[1] // side, side, grid[0] // side)
    return index.transpose(1, 2).reshape(side * side, -1)
