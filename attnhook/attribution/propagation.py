"""What the methods that propagate attention through blocks share: which blocks they can pass through, and the row that they start with."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.sites import Queries
from attnhook.errors import NoReadoutError, RowsNotKeptError, TokenLayoutError, UnsupportedModelError
from attnhook.options import Rows


def require_all_rows(maps: AttentionMaps, method: str, wanted: str = "rows='all'") -> None:
    """Refuse maps that hold only some rows."""
    if maps.selected_rows is not Rows.ALL:
        captured = maps.selected_rows.value if isinstance(maps.selected_rows, Rows) else list(maps.selected_rows)
        raise RowsNotKeptError(
            f"{method} needs whole matrices: expected a capture with {wanted}, got rows={captured!r}. Capture with {wanted}."
        )


def require_softmax_weights(block: BlockAttention, method: str) -> None:
    """Refuse a block that does not multiply its values by its softmax rows alone."""
    if block.value_multiplier:
        raise UnsupportedModelError(
            f"{method} cannot pass through block {block.name!r}: expected values multiplied by softmax rows, got {block.value_multiplier}. "
            "Look at single rows with raw_attention."
        )


def blocks_from(maps: AttentionMaps, method: str, start: int | str = 0) -> list[BlockAttention]:
    """The blocks from `start` on, without attention poolings."""
    first = maps.block_names.index(maps[start].name)
    blocks = [block for block in maps[first:] if not block.pooling]
    if not blocks:
        raise NoReadoutError(
            f"{method} has no block to pass through: expected attention between tokens from start={start!r} on, got an attention pooling "
            "only. Choose an earlier start."
        )
    return blocks


def with_pooling(maps: AttentionMaps, blocks: list[BlockAttention]) -> list[BlockAttention]:
    """The blocks, and the attention pooling if the readout is one."""
    return [*blocks, *(block for block in maps if block.pooling and maps.readout.rows is Rows.POOL)]


def shared_layout(blocks: list[BlockAttention], method: str) -> TokenLayout:
    """The token layout that all blocks share."""
    last = blocks[-1]
    for block in blocks:
        require_softmax_weights(block, method)
        layout, (_, _, queries, keys) = block.layout, block.shape
        between_tokens = block.queries in (Queries.TOKENS, Queries.PATCHES) and queries == keys
        if not isinstance(layout, TokenLayout) or not between_tokens or block.query_token_layout is not None:
            raise TokenLayoutError(
                f"{method} cannot pass through block {block.name!r}: expected attention of all tokens to all tokens, got {queries} queries "
                f"by {keys} keys ({block.queries} to {layout.describe()}). Use raw_attention or received_attention on one block."
            )
        same_tokens = layout == last.layout
        if not same_tokens or not _same_order(layout.order, getattr(last.layout, "order", None)):
            got = layout.describe() + (" in another order" if same_tokens else "")
            raise TokenLayoutError(
                f"{method} cannot pass through block {block.name!r}: expected the tokens of {last.name!r}, {last.layout.describe()}, got {got}. "
                "Capture blocks of one token sequence with blocks=."
            )
        shared = layout
    return shared


def _same_order(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second or (first is not None and second is not None and torch.equal(first, second))


def initial_row(
    maps: AttentionMaps,
    last: BlockAttention,
    layout: TokenLayout,
    pooled_row: Callable[[BlockAttention], Tensor],
    method: str,
) -> tuple[Tensor, int | None]:
    """The readout as a row over the tokens of the last block, `(batch, tokens)` float64, and the index of the class token if it is that one's.

    It is 1 at the class token, the same for all patches, or `pooled_row(pooling)`, `(batch, keys)` float64 over the tokens that a pooling reads.
    """
    batch, _, tokens, _ = last.shape
    row = torch.zeros(batch, tokens, dtype=torch.float64, device=last.matrix.device)
    kind = maps.readout.rows
    if kind is Rows.CLS:
        row[:, layout.class_token()] = 1.0
        return row, layout.class_token()
    if kind is Rows.MEAN:
        row[:, layout.patch_tokens] = 1.0 / layout.num_patch_tokens
        return row, None
    if kind is not Rows.POOL:
        raise NoReadoutError(
            f"{method} has no readout to start from: {maps.readout.reason}. Expected a class token, an attention pooling or the mean over "
            "patches. Use received_attention on one block."
        )
    pooled = pooled_row(_attention_pooling(maps, method))
    if pooled.shape[1] not in (tokens, layout.num_patch_tokens):
        raise TokenLayoutError(
            f"{method} cannot start from the attention pooling: expected it to read the {tokens} tokens of {last.name!r} or its "
            f"{layout.num_patch_tokens} patches, got {pooled.shape[1]} keys. Use raw_attention on the pooling."
        )
    row[:, layout.patch_tokens if pooled.shape[1] == layout.num_patch_tokens else slice(None)] = pooled
    return row, None


def _attention_pooling(maps: AttentionMaps, method: str) -> BlockAttention:
    poolings = [block for block in maps if block.pooling]
    if not poolings:
        raise NoReadoutError(
            f"{method} starts from the attention pooling ({maps.readout.reason}): expected it among the captured blocks, got "
            f"{', '.join(maps.block_names)}. Capture all blocks, or add the pooling to blocks=."
        )
    require_softmax_weights(poolings[-1], method)
    return poolings[-1]


def readout_queries(maps: AttentionMaps, block: BlockAttention) -> slice:
    """The queries of a block that the model's head reads; if there are several, it reads their mean."""
    if block.queries in (Queries.POOL, Queries.CLASS):
        return block.readout_rows or slice(None)
    if maps.readout.rows in (Rows.CLS, Rows.MEAN):
        layout = block.query_layout
        layout.check(block.shape[2], where=f"block {block.name!r}'s queries")
        if maps.readout.rows is Rows.MEAN:
            return layout.patch_tokens
        token = layout.class_token()
        return slice(token, token + 1)
    raise NoReadoutError(
        f"block {block.name!r} has no readout row: {maps.readout.reason}. Choose the pooling block, pass row=, or capture with rows='cls' or "
        "rows='mean'."
    )
