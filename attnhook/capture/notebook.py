"""How captured attention looks in a notebook: a table of the blocks, and the kept rows of every head as small grey maps."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.capture.softmax_matrix import SoftmaxMatrix

_CELL, _GAP = 32, 3
_MOST_BLOCKS, _MOST_HEADS = 24, 16
_WHITE = 255


def blocks_table(blocks: Sequence[Any], summary: str) -> str:
    """Blocks, `BlockAttention`, as an HTML table that needs nothing else, their maps and what they are together above it."""
    rows = "".join(
        f"<tr><td>{number}</td><td>{html.escape(block.name)}</td><td>{', '.join(map(str, block.shape))}</td>"
        f"<td>{html.escape(_tokens(block))}</td><td>{html.escape(block.kernel)}</td></tr>"
        for number, block in enumerate(blocks)
    )
    picture = contact_sheet(blocks)
    image = ""
    if picture is not None:
        data = base64.b64encode(picture).decode("ascii")
        image = (
            f'<img src="data:image/png;base64,{data}" alt="one small map for each head of each block" style="max-width:100%">'
            '<div style="font-size:90%;opacity:.8">blocks down, heads across; the darker, the more attention; each map on its own range</div>'
        )
    return (
        f"<div><strong>{html.escape(summary)}</strong><br>{image}<details><summary>{len(blocks)} blocks</summary><table><thead><tr>"
        "<th>block</th><th>name</th><th>batch, heads, queries, keys</th><th>keys</th><th>kernel</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></details></div>"
    )


def contact_sheet(blocks: Sequence[Any]) -> bytes | None:
    """A PNG of the first image's first kept row on the patch grid, of the first 16 heads of the last 24 blocks; None if none has a grid.

    Of whole matrices it is the class token's row, or the mean over the patches' rows.
    """
    from PIL import Image

    drawn = [maps for maps in map(_small_maps, blocks[-_MOST_BLOCKS:]) if maps is not None]
    if not drawn:
        return None
    step = _CELL + _GAP
    width = max(len(maps) for maps in drawn) * step - _GAP
    sheet = Image.new("L", (width, len(drawn) * step - _GAP), _WHITE)
    for row, maps in enumerate(drawn):
        height, width = maps.shape[1:]
        zoom = _CELL / max(height, width)
        size = max(1, round(width * zoom)), max(1, round(height * zoom))
        for column, one in enumerate(maps):
            cell = Image.fromarray(one.numpy()).resize(size, Image.Resampling.NEAREST)
            sheet.paste(cell, (column * step, row * step))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _tokens(block: Any) -> str:
    layout = block.token_layout
    return layout if isinstance(layout, str) else layout.describe()


def _small_maps(block: Any) -> Tensor | None:
    """`(heads, h, w)` uint8, dark where attention is."""
    layout = block.token_layout
    if not isinstance(layout, TokenLayout) or layout.frames > 1:
        return None
    maps = layout.patches(_row(block, layout))[0, :_MOST_HEADS]
    known = torch.nan_to_num(maps)
    low, high = known.amin((-2, -1), keepdim=True), known.amax((-2, -1), keepdim=True)
    return (_WHITE - (known - low) / (high - low).clamp_min(1e-12) * (_WHITE - 15)).round().to("cpu", torch.uint8)


def _row(block: Any, layout: TokenLayout) -> Tensor:
    """One row a head, `(batch, heads, keys)`."""
    kept: Tensor | SoftmaxMatrix = block.captured
    if isinstance(kept, Tensor):
        return kept[:, :, 0]
    if kept.shape[2] != kept.shape[3] or block.pooling:
        return kept.rows([0])[:, :, 0]
    if layout.cls is not None:
        return kept.rows([layout.class_token()])[:, :, 0]
    return kept.mean_rows(layout.patch_tokens)[:, :, 0]
