"""One shard: what was seen of its photos, gathered in memory, then written whole."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution.statistics import attention_statistics
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import AttentionMaps, BlockAttention, header_of
from attnhook.capture.windows import WindowLayout
from attnhook.errors import ExtractionError
from attnhook.extraction.batch_results import Seen
from attnhook.extraction.batches import Batch
from attnhook.extraction.encodings import encode
from attnhook.extraction.indices import fragment_path, numbers_of, tensors_path, write_fragment
from attnhook.extraction.listings import Listing
from attnhook.extraction.manifests import NAME
from attnhook.extraction.settings import Settings
from attnhook.files import replacing

STATISTICS = (
    "entropy",
    "relative_entropy",
    "distance_patches",
    "class_mass",
    "register_mass",
    "patch_mass",
    "other_mass",
    "top_mass",
    "effective_patches",
)
"""What is stored of `attention_statistics`, in this order: one number a photo, block and head."""


@dataclass
class _Group:
    """Photos of a shard whose tensors are alike.

    Attributes:
        header: What the maps say beside their rows.
        layout: The header's tensors.
        parts: Of each tensor, a piece a forward.
        count: How many photos.
    """

    header: dict[str, Any]
    layout: dict[str, Tensor]
    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    count: int = 0


class ShardWriter:
    """Gathers one shard and writes it."""

    def __init__(self, folder: Path, shard: int, listing: Listing, settings: Settings) -> None:
        self.shard = shard
        self._folder, self._listing, self._settings = folder, listing, settings
        self._groups: dict[str, _Group] = {}
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, batch: Batch, seen: list[Seen]) -> None:
        """Take over what was seen of a batch."""
        rows = [self._failed(photo.row, photo.digest, photo.problem) for photo in batch.photos]
        for (places, _), one in zip(batch.groups, seen, strict=True):
            one.wait()
            number, first = self._keep(one, len(places))
            grid = _grid(one.maps)
            for i, place in enumerate(places):
                geometry = batch.photos[place].geometry
                rows[place] |= {
                    "group": number,
                    "offset": first + i,
                    "grid": grid,
                    "geometry": None if geometry is None else numbers_of(geometry),
                    "target": None if one.targets is None else one.targets[i],
                    "error": None,
                }
        self._rows += rows

    def _failed(self, row: int, digest: str, problem: str | None) -> dict[str, Any]:
        item = self._listing.item(row)
        found = {
            name: getattr(item, name) for name in ("key", "label", "member", "container", "number", "size", "stamp")
        }
        unread = {"shard": self.shard, "group": -1, "offset": -1, "grid": None, "geometry": None, "target": None}
        return found | unread | {"digest": digest or None, "error": problem, "mark": 0}

    def _keep(self, seen: Seen, photos: int) -> tuple[int, int]:
        header, layout = header_of(seen.maps)
        header["methods"] = seen.made
        tensors = self._tensors(seen, photos)
        for key, tensor in tensors.items():
            if len(tensor) != photos:
                raise ExtractionError(
                    f"{key} of a batch cannot be told apart by photo: expected {photos} entries, one a photo, got {len(tensor)}. Extract other "
                    "blocks, or without statistics or methods."
                )
        name = _content(header, layout, {key: tuple(tensor.shape[1:]) for key, tensor in tensors.items()})
        group = self._groups.setdefault(name, _Group(header, layout))
        first = group.count
        group.count += photos
        for key, tensor in tensors.items():
            group.parts.setdefault(key, []).append(tensor)
        return list(self._groups).index(name), first

    def _tensors(self, seen: Seen, photos: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for block in seen.maps:
            rows, scales = encode(self._fused(block, photos), self._settings.dtype)
            found[f"rows.{block.name}"] = rows
            if scales is not None:
                found[f"scales.{block.name}"] = scales
        if self._settings.statistics:
            for block, one in zip(seen.maps, attention_statistics(seen.maps, diversity=False), strict=True):
                found[f"statistics.{block.name}"] = torch.stack(
                    [getattr(one, name) for name in STATISTICS], dim=-1
                ).float()
        return found | {f"maps.{name}": one.values for name, one in seen.methods.items()}

    def _fused(self, block: BlockAttention, photos: int) -> Tensor:
        rows = block.rows
        rows = rows if self._settings.heads is None else rows.mean(dim=1, keepdim=True)
        whole = len(rows) == photos and not isinstance(block.token_layout, WindowLayout)
        return rows if whole else rows.reshape(photos, -1, *rows.shape[1:])

    def write(self) -> None:
        """Write the tensors, then the part of the index that says that they are whole."""
        from safetensors import SafetensorError

        path = tensors_path(self._folder, self.shard)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fragment_path(self._folder, self.shard).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            mark = _mark(self._rows)
            for row in self._rows:
                row["mark"] = mark
            if self._groups:
                self._write_tensors(path, mark)
            write_fragment(self._folder, self.shard, self._rows)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            raise ExtractionError(
                f"cannot write {path}: expected room on the disk, got {error}. The other shards are whole; free some space, and run the same "
                "again."
            ) from error

    def _write_tensors(self, path: Path, mark: int) -> None:
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for number, group in enumerate(self._groups.values()):
            tensors |= {f"{number}.layout.{name}": tensor for name, tensor in group.layout.items()}
            for name in list(group.parts):
                tensors[f"{number}.{name}"] = torch.cat(group.parts.pop(name))
        header = {"mark": mark, "groups": [group.header for group in self._groups.values()]}
        with replacing(path, durable=True) as temporary:
            save_file(tensors, temporary, metadata={"attnhook": json.dumps(header)})
            temporary.chmod((self._folder / NAME).stat().st_mode)  # safetensors lets nobody else read


def _content(header: dict[str, Any], layout: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> str:
    """What a group's photos have in common."""
    content = hashlib.sha256(json.dumps([header, shapes], sort_keys=True).encode())
    for name, tensor in sorted(layout.items()):
        content.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def _mark(rows: list[dict[str, Any]]) -> int:
    """Of which photos a shard is, and where in it they are: the index of another state of the shard has another."""
    content = json.dumps([[row[name] for name in ("key", "digest", "group", "offset")] for row in rows])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big", signed=True)


def _grid(maps: AttentionMaps) -> list[int] | None:
    """The grid of the last block's keys, where there is one."""
    layout = maps[-1].token_layout
    return list(layout.grid) if isinstance(layout, TokenLayout | WindowLayout) else None
