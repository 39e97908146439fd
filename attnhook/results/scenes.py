"""What the viewer shows of one photo: rows of every block at 16 bits, and matrices at 8 bits, from which the page makes a patch's rollout."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnhook.attribution.map_making import placed
from attnhook.attribution.propagation import readout_queries
from attnhook.attribution.raw_maps import readout_row, received_attention
from attnhook.attribution.rollouts import rollout_by_block
from attnhook.capture.block_choice import choose_blocks
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.windows import WindowLayout
from attnhook.errors import AttnhookError, GeometryError, NoReadoutError, RowsNotKeptError, TokenLayoutError
from attnhook.imaging.encoded_pictures import data_url, encoded, shrunk_to
from attnhook.imaging.geometry import ImageGeometry
from attnhook.options import BlocksOption, Rows
from attnhook.pages.documents import packed_html
from attnhook.pages.quantisation import MATRIX_BITS, ROW_BITS, Payload, quantise

AUTO = "auto"
"""As `matrices`: every block's matrix where all rows were captured, none otherwise. As `matrix_heads`: see `MOST_VALUES`."""
MOST_VALUES = 6_000_000
"""The most values for which `matrix_heads="auto"` stores every head of the last of the matrices; of the others it stores the mean over heads."""
_QUALITY = 90
_LENGTHENED = (
    3  # an elongated photo may be this many times as long as asked for: its shorter edge would have too few pixels
)
_ADDS_UP = 1e-4
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
    maps, photo, geometry = scene.maps, scene.image, scene.geometry
    if not len(maps):
        raise RowsNotKeptError("nothing to view: expected at least one block, got none.")
    if all(isinstance(one.token_layout, TokenLayout) for one in maps) and any(one.shape[0] != 1 for one in maps):
        raise RowsNotKeptError(
            f"a scene is one photo: expected a batch of 1, got {maps[0].shape[0]}. Make one result per photo."
        )
    if (photo.height, photo.width) != tuple(geometry.image_size):
        raise GeometryError(
            f"the photo and its geometry differ: expected {tuple(geometry.image_size)}, got {(photo.height, photo.width)}."
        )
    whole = _chosen(maps, matrices)
    every = _with_every_head(whole, matrix_heads)
    payload = Payload()
    rollouts, no_rollout = _rollouts(maps)
    blocks = [
        {"number": block.number or (at, len(maps)), "pooling": block.pooling}
        | _pack_block(scene, block, payload, rolled, full=block in whole, fused=block not in every)
        for at, (block, rolled) in enumerate(zip(maps, rollouts, strict=True), 1)
    ]
    if not any("grid" in block for block in blocks):
        raise TokenLayoutError(
            f"no block has its tokens on one patch grid: expected at least one, got {blocks[-1]['refused']}."
        )
    text, length = payload.text()
    header = {
        "name": scene.name,
        "named": _names(maps) if any("rows" in block for block in blocks) else [],
        "blocks": blocks,
        "no_rollout": no_rollout,
        "length": length,
        **_photo(scene, longest),
    }
    return header, text


def _chosen(maps: AttentionMaps, matrices: BlocksOption) -> list[BlockAttention]:
    """The blocks whose whole matrices are stored."""
    if isinstance(matrices, Sequence) and not matrices:
        return []
    if (rows := maps.selected_rows) is not Rows.ALL:
        if matrices == AUTO:
            return []
        raise RowsNotKeptError(
            "cannot show whole matrices: expected a capture with rows='all', got "
            f"rows={rows.value if isinstance(rows, Rows) else list(rows)}. Run attend(..., rows='all'), or pass matrices=()."
        )
    chosen = choose_blocks(tuple(maps), None if matrices == AUTO else matrices)
    names = {block.name for block in chosen}
    return [block for block in maps if block.name in names and _between_tokens(maps, block)]


def _between_tokens(maps: AttentionMaps, block: BlockAttention) -> bool:
    return isinstance(_gridded(maps, block), TokenLayout) and not block.pooling and block.shape[2] == block.shape[3]


def _gridded(maps: AttentionMaps, block: BlockAttention) -> TokenLayout | WindowLayout | None:
    """The layout of a block that has a map of the whole image."""
    layout = block.token_layout
    if isinstance(layout, TokenLayout) and layout.order is None and layout.frames == layout.frames_in_batch == 1:
        return layout
    return layout if isinstance(layout, WindowLayout) and maps.selected_rows is Rows.ALL else None


def _with_every_head(whole: list[BlockAttention], matrix_heads: str) -> list[BlockAttention]:
    """The blocks of which every head's matrix is stored, not their mean."""
    if matrix_heads == AUTO:
        return [block for block in whole[-1:] if math.prod(block.shape) <= MOST_VALUES]
    return whole if matrix_heads == "all" else []


def _names(maps: AttentionMaps) -> list[str]:
    """Name the rows that were captured of every block."""
    if not isinstance(maps.selected_rows, Rows):
        return [f"patch {row}" if isinstance(row, tuple) else f"token {row}" for row in maps.selected_rows]
    kind = maps.readout.rows if maps.selected_rows is Rows.ALL else maps.selected_rows
    return [] if kind is None else [_READOUT_NAMES[kind]]


def _pack_block(
    scene: Scene, block: BlockAttention, payload: Payload, rolled: Tensor | None, *, full: bool, fused: bool
) -> dict[str, Any]:
    maps, layout = scene.maps, _gridded(scene.maps, block)
    entry: dict[str, Any] = {"name": block.name, "heads": block.shape[1], "value_multiplier": block.value_multiplier}
    if layout is None:
        unknown = block.token_layout
        return entry | {"refused": unknown if isinstance(unknown, str) else unknown.describe()}
    try:
        place = placed(maps, torch.empty(layout.grid, device="cpu"), block)
        area = place.area_on(scene.geometry)
    except GeometryError:
        return entry | {
            "refused": f"{layout.grid[0]} x {layout.grid[1]} patches do not cover the model's input exactly"
        }
    entry |= {"grid": list(layout.grid), "area": list(area)} | asdict(place.overlap)
    if maps.selected_rows is Rows.ALL:
        entry["received"] = payload.add(quantise(_received(maps, block)[:, None], ROW_BITS))
    if isinstance(layout, WindowLayout):
        return entry | {"first": 0, "specials": []}
    entry |= {"first": layout.num_prefix_tokens, "specials": special_tokens(layout)}
    with suppress(NoReadoutError):
        rows = readout_row(maps, block)[0][:, None] if maps.selected_rows is Rows.ALL else block.rows[0]
        entry["rows"] = payload.add(quantise(rows, ROW_BITS))
    if full:
        heads = block.matrix.dense()[0]
        mean = heads.mean(dim=0, keepdim=True)
        entry["adds_up"] = bool(((mean.sum(dim=-1) - 1).abs() < _ADDS_UP).all())
        entry["matrix"] = payload.add(quantise(mean if fused else heads, MATRIX_BITS), columns=layout.grid[1])
    if rolled is not None:
        with suppress(NoReadoutError):
            named = rolled[:, readout_queries(maps, block)].mean(dim=1, keepdim=True)
            entry["rollout_rows"] = payload.add(quantise(named, ROW_BITS))
    return entry


def _received(maps: AttentionMaps, block: BlockAttention) -> Tensor:
    """What each key receives from the mean query, `(heads, keys)`; of windows, each position of the grid."""
    if isinstance(block.token_layout, WindowLayout):
        return received_attention(maps, block.name, heads=None).values[0].flatten(1)
    return block.matrix.column_sums()[0] / block.shape[2]


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


def _photo(scene: Scene, longest: int) -> dict[str, Any]:
    photo, geometry = scene.image, scene.geometry
    elongated = max(photo.size) / (2 * min(photo.size))
    shown = shrunk_to(photo, round(longest * min(max(elongated, 1), _LENGTHENED)))
    jpeg = encoded(shown, "JPEG", quality=_QUALITY, subsampling=0)
    return {
        "photo": data_url(jpeg),
        "photo_bytes": len(jpeg),
        "size": [shown.height, shown.width],
        "original": [photo.height, photo.width],
        "scale": list(geometry.scale),
        "offset": list(geometry.offset),
        "valid": list(geometry.valid),
    }
