"""What the viewer shows of one photo: rows of every block at 16 bits, whole matrices of chosen blocks at 8 bits, and rollout for both."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnhook.attribution.map_making import placed
from attnhook.attribution.propagation import readout_queries
from attnhook.attribution.raw_maps import readout_row
from attnhook.attribution.rollouts import rollout_by_block
from attnhook.capture.block_choice import choose_blocks
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.errors import AttnhookError, GeometryError, NoReadoutError, RowsNotKeptError, TokenLayoutError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.options import BlocksOption, Rows
from attnhook.pages.documents import packed_html
from attnhook.pages.quantisation import MATRIX_BITS, ROW_BITS, Payload, quantise
from attnhook.results.display import data_url, encoded, shrunk

AUTO = "auto"
"""As `matrices`: the last block's matrix where all rows were captured, none otherwise. As `matrix_heads`: see `MOST_VALUES`."""
MOST_VALUES = 6_000_000
"""The most values for which `matrix_heads="auto"` stores every head of a photo's matrices; beyond, it stores the mean over heads."""
_QUALITY = 90
_READOUT_NAMES = {Rows.CLS: "class token", Rows.POOL: "pooling query", Rows.MEAN: "mean over patches"}


@dataclass(frozen=True, eq=False)
class Scene:
    """One photo and its attention."""

    name: str  # any text
    image: Image.Image  # RGB, upright
    geometry: ImageGeometry  # where the model looked in it
    maps: AttentionMaps  # of this one image


def viewer_html(
    scenes: Sequence[Scene], *, model: str, matrices: BlocksOption = AUTO, matrix_heads: str = AUTO, longest: int = 1280
) -> str:
    """Make the viewer's page."""
    packed = [pack_scene(one, matrices=matrices, matrix_heads=matrix_heads, longest=longest) for one in scenes]
    return packed_html(packed, model=model)


def pack_scene(scene: Scene, *, matrices: BlocksOption, matrix_heads: str, longest: int) -> tuple[dict[str, Any], str]:
    """Pack one photo for the page: its header and its payload."""
    if matrix_heads not in ("all", "mean", AUTO):
        raise ValueError(f"unknown matrix_heads: expected 'all', 'mean' or 'auto', got {matrix_heads!r}.")
    maps = scene.maps
    if not len(maps):
        raise RowsNotKeptError("nothing to view: expected at least one block, got none.")
    if all(isinstance(one.token_layout, TokenLayout) for one in maps) and any(one.shape[0] != 1 for one in maps):
        raise RowsNotKeptError(
            f"a scene is one photo: expected a batch of 1, got {maps[0].shape[0]}. Make one result per photo."
        )
    whole = _chosen(maps, matrices)
    values = sum(block.shape[1] * block.shape[2] * block.shape[3] for block in maps if block.name in whole)
    fused = matrix_heads == "mean" or (matrix_heads == AUTO and values > MOST_VALUES)
    payload = Payload()
    rollouts, no_rollout = _rollouts(maps)
    blocks = [
        {"number": block.number or (at, len(maps))}
        | _pack_block(maps, block, payload, rolled, full=block.name in whole, fused=fused)
        for at, (block, rolled) in enumerate(zip(maps, rollouts, strict=True), 1)
    ]
    if not any("grid" in block for block in blocks):
        raise TokenLayoutError(
            f"no block has its tokens on one patch grid: expected at least one, got {blocks[-1]['refused']}."
        )
    text, length = payload.text()
    header = {
        "name": scene.name,
        "named": _names(maps),
        "blocks": blocks,
        "no_rollout": no_rollout,
        "length": length,
        **_photo(scene, blocks, longest),
    }
    return header, text


def _chosen(maps: AttentionMaps, matrices: BlocksOption) -> set[str]:
    if matrices == AUTO:
        kept = [block.name for block in maps if isinstance(block.token_layout, TokenLayout) and not block.pooling]
        return set(kept[-1:]) if maps.selected_rows is Rows.ALL else set()
    if isinstance(matrices, Sequence) and not matrices:
        return set()
    if (rows := maps.selected_rows) is not Rows.ALL:
        raise RowsNotKeptError(
            "cannot show whole matrices: expected a capture with rows='all', got "
            f"rows={rows.value if isinstance(rows, Rows) else list(rows)}. Run attend(..., rows='all'), or pass matrices=()."
        )
    return {block.name for block in choose_blocks(tuple(maps), matrices)}


def _names(maps: AttentionMaps) -> list[str]:
    """Name the rows that were captured of every block."""
    if not isinstance(maps.selected_rows, Rows):
        return [f"patch {row}" if isinstance(row, tuple) else f"token {row}" for row in maps.selected_rows]
    kind = maps.readout.rows if maps.selected_rows is Rows.ALL else maps.selected_rows
    return [] if kind is None else [_READOUT_NAMES[kind]]


def _pack_block(
    maps: AttentionMaps, block: BlockAttention, payload: Payload, rolled: Tensor | None, *, full: bool, fused: bool
) -> dict[str, Any]:
    layout = block.token_layout
    entry: dict[str, Any] = {"name": block.name}
    if not isinstance(layout, TokenLayout) or layout.order is not None or layout.frames > 1:
        return entry | {"refused": layout if isinstance(layout, str) else layout.describe()}
    square = block.shape[2] == block.shape[3]
    entry |= {
        "grid": list(layout.grid),
        "first": layout.num_prefix_tokens,
        "specials": special_tokens(layout),
        "value_multiplier": block.value_multiplier,
    }
    with suppress(NoReadoutError):
        rows = readout_row(maps, block)[0][:, None] if maps.selected_rows is Rows.ALL else block.rows[0]
        entry["rows"] = payload.add(quantise(rows, ROW_BITS))
    if full and square:
        dense = block.matrix.dense()[0]
        entry["matrix"] = payload.add(quantise(dense.mean(dim=0, keepdim=True) if fused else dense, MATRIX_BITS))
    if rolled is not None:
        with suppress(NoReadoutError):
            named = rolled[:, readout_queries(maps, block)].mean(dim=1, keepdim=True)
            entry["rollout_rows"] = payload.add(quantise(named, ROW_BITS))
        if full and square:
            entry["rollout_matrix"] = payload.add(quantise(rolled, MATRIX_BITS))
    return entry


def special_tokens(layout: TokenLayout) -> list[list[Any]]:
    """Name the tokens that are not patches, by their index."""
    found: list[list[Any]] = []
    cls = None if layout.cls is None else layout.class_token()
    others = [index for index in range(layout.num_prefix_tokens) if index != cls]
    names = ["distillation token"] if layout.distillation else []
    names += [f"register {number + 1}" for number in range(len(others) - len(names))]
    if cls is not None:
        found.append([cls, "class token"])
    found += [[index, name] for index, name in zip(others, names, strict=True)]
    behind = [index for index in range(layout.patch_tokens.stop, layout.num_tokens) if index != cls]
    return found + [[index, f"token {index}"] for index in behind]


def _rollouts(maps: AttentionMaps) -> tuple[Iterable[Tensor | None], str | None]:
    """The rollout of every token up to each block; or none, and why."""
    try:
        return rollout_by_block(maps), None
    except AttnhookError as error:
        return [None] * len(maps), str(error)


def _photo(scene: Scene, blocks: Sequence[dict[str, Any]], longest: int) -> dict[str, Any]:
    photo, geometry = scene.image, scene.geometry
    if (photo.height, photo.width) != tuple(geometry.image_size):
        raise GeometryError(
            f"the photo and its geometry differ: expected {tuple(geometry.image_size)}, got {(photo.height, photo.width)}."
        )
    shown = shrunk(photo, longest)
    jpeg = encoded(shown, "JPEG", quality=_QUALITY, subsampling=0)
    grid = next(tuple(block["grid"]) for block in blocks if "grid" in block)
    area = placed(scene.maps, torch.empty(grid, device="cpu")).area_on(geometry)
    return {
        "photo": data_url(jpeg),
        "photo_bytes": len(jpeg),
        "size": [shown.height, shown.width],
        "original": [photo.height, photo.width],
        "scale": list(geometry.scale),
        "offset": list(geometry.offset),
        "valid": list(geometry.valid),
        "area": list(area),
    }
