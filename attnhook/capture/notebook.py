"""How captured attention looks in a notebook: a table of the blocks, and one row of every head as a small map."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnhook.capture.layout import TokenLayout
from attnhook.errors import counted

_CELL, _GAP = 32, 3
_MOST_BLOCKS, _MOST_HEADS = 24, 16
_LABEL_POINTS, _LABEL_WIDTH, _LABEL_HEIGHT = (
    11,
    62,
    16,
)  # pixels, beside the first map of a block and above the first block


def blocks_table(blocks: Sequence[Any], summary: str) -> str:
    """`BlockAttention`s as an HTML table that needs nothing else, with the summary and their maps above it."""
    rows = [("block", "name", "batch, heads, queries, keys", "keys", "kernel")]
    for number, block in enumerate(blocks):
        layout = block.token_layout
        tokens = layout if isinstance(layout, str) else layout.describe()
        rows.append((str(number), block.name, ", ".join(map(str, block.shape)), tokens, block.kernel))
    picture, image = contact_sheet(blocks), ""
    if picture is not None:
        image = (
            f'<img src="data:image/png;base64,{base64.b64encode(picture).decode("ascii")}" alt="one small map per head of each block" '
            'style="max-width:100%"><div style="font-size:90%;opacity:.8">brighter means more attention; each map has its own scale</div>'
        )
    return (
        f"<div><strong>{html.escape(summary)}</strong><br>{image}<details><summary>{counted(len(blocks), 'block')}</summary>{html_table(rows)}"
        "</details></div>"
    )


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, whose first row is its head."""
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    head = lines[0].replace("td>", "th>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines[1:])}</tbody></table>"


def contact_sheet(blocks: Sequence[Any]) -> bytes | None:
    """A PNG of the first image's first stored row on the patch grid, for the first 16 heads of the last 24 blocks; None if none has a grid.

    Of whole matrices it is the class token's row, or the mean over the patches' rows.
    """
    from PIL import Image, ImageDraw, ImageFont

    lines = [
        (place, line)
        for place, block in list(enumerate(blocks, 1))[-_MOST_BLOCKS:]
        if (line := _line(block)) is not None
    ]
    if not lines:
        return None
    width = max(line.shape[1] for _, line in lines)
    maps = torch.cat([F.pad(line, (0, width - line.shape[1]), value=255) for _, line in lines])
    sheet = Image.new("L", (_LABEL_WIDTH + width - _GAP, _LABEL_HEIGHT + len(maps) - _GAP), 255)
    sheet.paste(Image.fromarray(maps[:-_GAP, :-_GAP].numpy()), (_LABEL_WIDTH, _LABEL_HEIGHT))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LABEL_POINTS)
    top = _LABEL_HEIGHT
    for place, line in lines:
        number = blocks[place - 1].number
        draw.text((0, top + line.shape[0] / 2), f"block {number[0] if number else place}", 0, font, anchor="lm")
        top += line.shape[0]
    for head in range(width // (_CELL + _GAP)):
        across = _LABEL_WIDTH + head * (_CELL + _GAP) + _CELL / 2
        draw.text((across, _LABEL_HEIGHT - 3), str(head) if head else "head 0", 0, font, anchor="ms")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _line(block: Any) -> Tensor | None:
    """The maps of a block from left to right, a gap after each: `(cell, heads * cell)` uint8, bright where attention is."""
    layout, captured = block.token_layout, block.captured
    if not isinstance(layout, TokenLayout) or max(layout.frames, layout.frames_in_batch) > 1:
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
    grey = (maps - low) / (high - low).clamp_min(1e-12) * 240
    height, width = (max(1, round(length * _CELL / max(layout.grid))) for length in layout.grid)
    step = _CELL + _GAP
    cells = F.pad(F.interpolate(grey.round().cpu(), (height, width)), (0, step - width, 0, step - height), value=255)
    return cells[0].movedim(0, 1).flatten(1).to(torch.uint8)
