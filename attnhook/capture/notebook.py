"""How captured attention looks in a notebook: a table of the blocks, and one row of every head as a small grey map."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnhook.capture.layout import TokenLayout

_CELL, _GAP = 32, 3
_MOST_BLOCKS, _MOST_HEADS = 24, 16


def blocks_table(blocks: Sequence[Any], summary: str) -> str:
    """`BlockAttention`s as an HTML table that needs nothing else, with the summary and their maps above it."""
    rows = []
    for number, block in enumerate(blocks):
        layout = block.token_layout
        tokens = layout if isinstance(layout, str) else layout.describe()
        cells = str(number), block.name, ", ".join(map(str, block.shape)), tokens, block.kernel
        rows.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
    picture, image = contact_sheet(blocks), ""
    if picture is not None:
        image = (
            f'<img src="data:image/png;base64,{base64.b64encode(picture).decode("ascii")}" alt="one small map per head of each block" '
            'style="max-width:100%"><div style="font-size:90%;opacity:.8">blocks down, heads across; darker means more attention; each map '
            "has its own scale</div>"
        )
    return (
        f"<div><strong>{html.escape(summary)}</strong><br>{image}<details><summary>{len(blocks)} blocks</summary><table><thead><tr>"
        "<th>block</th><th>name</th><th>batch, heads, queries, keys</th><th>keys</th><th>kernel</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></details></div>"
    )


def contact_sheet(blocks: Sequence[Any]) -> bytes | None:
    """A PNG of the first image's first stored row on the patch grid, for the first 16 heads of the last 24 blocks; None if none has a grid.

    Of whole matrices it is the class token's row, or the mean over the patches' rows.
    """
    from PIL import Image

    lines = [line for line in map(_line, blocks[-_MOST_BLOCKS:]) if line is not None]
    if not lines:
        return None
    width = max(line.shape[1] for line in lines)
    sheet = torch.cat([F.pad(line, (0, width - line.shape[1]), value=255) for line in lines])
    buffer = io.BytesIO()
    Image.fromarray(sheet[:-_GAP, :-_GAP].numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def _line(block: Any) -> Tensor | None:
    """The maps of a block from left to right, a gap after each: `(cell, heads * cell)` uint8, dark where attention is."""
    layout, captured = block.token_layout, block.captured
    if not isinstance(layout, TokenLayout) or layout.frames > 1:
        return None
    square = captured.shape[2] == captured.shape[3] and not block.pooling
    if isinstance(captured, Tensor):
        row = captured
    elif square and layout.cls is None:
        row = captured.mean_rows(layout.patch_tokens)
    else:
        row = captured.rows([layout.class_token() if square else 0])
    maps = torch.nan_to_num(layout.patches(row[:, :, 0])[:1, :_MOST_HEADS])
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    grey = 255 - (maps - low) / (high - low).clamp_min(1e-12) * 240
    height, width = (max(1, round(length * _CELL / max(layout.grid))) for length in layout.grid)
    step = _CELL + _GAP
    cells = F.pad(F.interpolate(grey.round().cpu(), (height, width)), (0, step - width, 0, step - height), value=255)
    return cells[0].movedim(0, 1).flatten(1).to(torch.uint8)
