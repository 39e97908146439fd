"""Where the methods that follow attention through blocks start, and which blocks they can follow.

A method of that kind needs one sequence of tokens in all blocks, and a readout: a row over those tokens that stands for what the head reads.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.sites import Layout, Queries
from attnhook.errors import NoReadoutError, RowsNotKeptError, TokenLayoutError, UnsupportedModelError
from attnhook.options import Rows


def check_whole_matrices(maps: AttentionMaps, method: str, wanted: str = "rows='all'") -> None:
    """Refuse maps that hold some rows only."""
    if maps.selected_rows is not Rows.ALL:
        kept = maps.selected_rows.value if isinstance(maps.selected_rows, Rows) else list(maps.selected_rows)
        raise RowsNotKeptError(
            f"{method} needs whole matrices: expected a capture with {wanted}, got rows={kept!r}. Capture with {wanted}."
        )


def followed_blocks(maps: AttentionMaps, method: str, start: int | str = 0) -> list[BlockAttention]:
    """The blocks of tokens from `start` on, poolings left out."""
    first = maps.block_names.index(maps[start].name)
    blocks = [block for block in maps[first:] if not block.pooling]
    if not blocks:
        raise NoReadoutError(
            f"{method} from start={start!r} follows no block: expected attention between tokens, got a pooling alone. Start earlier."
        )
    return blocks


def common_layout(blocks: list[BlockAttention], method: str) -> TokenLayout:
    """The one layout of the tokens of all blocks."""
    last = blocks[-1]
    for block in blocks:
        check_rows_multiply_values(block, method)
        layout, (_, _, queries, keys) = block.layout, block.shape
        between_tokens = block.queries in (Queries.TOKENS, Queries.PATCHES) and queries == keys
        if not isinstance(layout, TokenLayout) or not between_tokens or block.query_token_layout is not None:
            words = layout.describe()
            raise TokenLayoutError(
                f"{method} cannot follow block {block.name!r}: expected attention of all tokens to all tokens, got {queries} queries by "
                f"{keys} keys ({block.queries} to {words}). Use raw_attention or received_attention on one block."
            )
        alike = layout == last.layout
        if not alike or not _same_order(layout, last.layout):
            other = " in another order" if alike else ""
            raise TokenLayoutError(
                f"{method} cannot follow block {block.name!r}: expected the tokens of {last.name!r}, {last.layout.describe()}, "
                f"got {layout.describe()}{other}. Capture blocks of one token sequence with blocks=."
            )
    if not isinstance(last.layout, TokenLayout):  # for the type checker: the loop has refused it
        raise TokenLayoutError(f"{method} cannot follow block {last.name!r}.")
    return last.layout


def _same_order(first: TokenLayout, second: Layout) -> bool:
    """Whether the patches of two layouts that are equal stand in one order, which equality does not look at."""
    orders = [one.order for one in (first, second) if isinstance(one, TokenLayout) and one.order is not None]
    return not orders or (len(orders) == 2 and torch.equal(*orders))


def check_rows_multiply_values(block: BlockAttention, method: str) -> None:
    """Refuse a block that multiplies its values by something else than softmax rows."""
    if block.value_multiplier:
        raise UnsupportedModelError(
            f"{method} cannot follow block {block.name!r}: expected values multiplied by softmax rows, but what multiplies them is not: "
            f"{block.value_multiplier}. Look at its rows one by one with raw_attention."
        )


def first_row(
    maps: AttentionMaps,
    last: BlockAttention,
    layout: TokenLayout,
    pooled_row: Callable[[BlockAttention], Tensor],
    method: str,
) -> tuple[Tensor, int | None]:
    """The readout as a row over the tokens of the last block.

    Args:
        pooled_row: Gives a pooling's row over the tokens that it reads, `(batch, keys)` float64.

    Returns:
        The row, `(batch, tokens)` float64, and which token it is where it is one: the unit row of the class token, the same weight for every
        patch, or the pooling's own row.
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
            f"{method} has no readout to start from: {maps.readout.reason}. Expected a class token, an attention pooling or a mean over "
            "patches. Use received_attention on one block."
        )
    pooled = pooled_row(_pooling(maps, method))
    if pooled.shape[1] not in (tokens, layout.num_patch_tokens):
        raise TokenLayoutError(
            f"{method} cannot start at the attention pooling: expected it to read the {tokens} tokens of {last.name!r} or its "
            f"{layout.num_patch_tokens} patches, got {pooled.shape[1]} keys. Use raw_attention on the pooling."
        )
    row[:, layout.patch_tokens if pooled.shape[1] == layout.num_patch_tokens else slice(None)] = pooled
    return row, None


def _pooling(maps: AttentionMaps, method: str) -> BlockAttention:
    poolings = [block for block in maps if block.pooling]
    if not poolings:
        raise NoReadoutError(
            f"{method} starts at the attention pooling ({maps.readout.reason}): expected it among the captured blocks, got "
            f"{', '.join(maps.block_names)}. Capture all blocks, or add the pooling to blocks=."
        )
    check_rows_multiply_values(poolings[-1], method)
    return poolings[-1]


def readout_queries(maps: AttentionMaps, block: BlockAttention) -> slice:
    """Which queries of a block are the readout's; where they are several, the readout is their mean."""
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
        f"block {block.name!r} has no readout row: {maps.readout.reason}. Take the pooling block, give row=, or capture with rows='cls' or "
        "'mean'."
    )
