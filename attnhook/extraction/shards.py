"""Shards of tensors: written whole, in a thread that runs next to the model, and read from mapped memory, a few files open at a time."""

import hashlib
import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attnhook.attribution.statistics import attention_statistics
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import BlockAttention, header_of
from attnhook.capture.windows import WindowLayout
from attnhook.errors import ExtractionError
from attnhook.extraction import indices
from attnhook.extraction.batch_attention import BatchAttention
from attnhook.extraction.batches import Batch
from attnhook.extraction.containers import OpenFiles
from attnhook.extraction.indices import fragment_path, tensors_path, write_fragment
from attnhook.extraction.settings import MANIFEST_NAME, Settings, encode
from attnhook.files import replacing
from attnhook.imaging.model_inputs import ModelInputs

_MASSES = ("class_mass", "register_mass", "patch_mass", "other_mass", "top_mass")
STATISTICS = ("entropy", "relative_entropy", "distance_patches", *_MASSES, "effective_patches")
"""The fields of `attention_statistics` that are stored, in this order: one number per photo, block and head."""

_MAX_WAITING = 5  # batches that are being written or wait for it: then the model waits for the disk


class BackgroundWriter:
    """Writes batches in order in one thread, each shard once its last photo is in. Errors are raised by the next `add`, or at the end."""

    def __init__(self, folder: Path, settings: Settings, shards: dict[int, range]) -> None:
        self._target = (folder, settings)
        self._sizes = {number: len(rows) for number, rows in shards.items()}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="attnhook extraction")
        self._waiting: deque[Future[None]] = deque()
        self._shard: _Shard | None = None
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._executor.shutdown(cancel_futures=kind is not None)
        while kind is None and self._waiting:
            self._waiting.popleft().result()

    def add(self, batch: Batch, attentions: list[BatchAttention]) -> None:
        """Hand a batch over; waits while too many are waiting."""
        while self._waiting and (len(self._waiting) >= _MAX_WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()
        nothing = ModelInputs(torch.empty(0, device="cpu"))
        without_pixels = Batch(batch.shard, batch.photos, [(places, nothing) for places, _ in batch.groups])
        self._waiting.append(self._executor.submit(self._write, without_pixels, attentions))

    @torch.no_grad()
    def _write(self, batch: Batch, attentions: list[BatchAttention]) -> None:
        if self._failed:  # what follows an error is not written
            return
        self._failed = True
        if self._shard is None or self._shard.number != batch.shard:
            self._shard = _Shard(batch.shard, *self._target)
        self._shard.add(batch, attentions)
        if len(self._shard.rows) == self._sizes[batch.shard]:
            self._shard.write()
            self._shard = None
        self._failed = False


@dataclass
class _Group:
    """Photos of a shard whose tensors have the same shapes."""

    header: dict[str, Any]  # as header_of returns it, and the facts of methods
    layout: dict[str, Tensor]  # the header's tensors
    parts: dict[str, list[Tensor]] = field(default_factory=dict)  # by name, one piece per forward
    count: int = 0  # photos


class _Shard:
    """Gathers one shard and writes it."""

    def __init__(self, number: int, folder: Path, settings: Settings) -> None:
        self.number = number
        self.rows: list[dict[str, Any]] = []  # of the index
        self._folder, self._settings = folder, settings
        self._groups: dict[str, _Group] = {}

    def add(self, batch: Batch, attentions: list[BatchAttention]) -> None:
        """Take over the attention of a batch."""
        for (places, _), attention in zip(batch.groups, attentions, strict=True):
            attention.wait()
            group, first = self._add_tensors(attention, len(places))
            layout = attention.maps[-1].token_layout  # of the last block's keys
            grid = list(layout.grid) if isinstance(layout, TokenLayout | WindowLayout) else None
            for i, place in enumerate(places):
                batch.photos[place] |= {"group": group, "offset": first + i, "grid": grid}
                if attention.targets is not None:
                    batch.photos[place]["target"] = attention.targets[i]
        self.rows += batch.photos

    def _add_tensors(self, attention: BatchAttention, photos: int) -> tuple[int, int]:
        """Add to the group of photos like these; returns its number, and the place of the first photo in it."""
        header, layout = header_of(attention.maps)
        header["methods"] = attention.method_facts
        tensors = self._tensors(attention, photos)
        for key, tensor in tensors.items():
            if len(tensor) != photos:
                raise ExtractionError(
                    f"{key} of a batch cannot be separated by photo: expected {photos} entries, one per photo, got {len(tensor)}. Extract other "
                    "blocks, or without statistics or methods."
                )
        kind = _content(header, layout, {key: tuple(tensor.shape[1:]) for key, tensor in tensors.items()})
        group = self._groups.setdefault(kind, _Group(header, layout))
        first = group.count
        group.count += photos
        for key, tensor in tensors.items():
            group.parts.setdefault(key, []).append(tensor)
        return list(self._groups).index(kind), first

    def _tensors(self, attention: BatchAttention, photos: int) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for block in attention.maps:
            rows, scales = encode(self._rows_of(block, photos), self._settings.dtype)
            tensors[f"rows.{block.name}"] = rows
            if scales is not None:
                tensors[f"scales.{block.name}"] = scales
        if self._settings.statistics:
            statistics = attention_statistics(attention.maps, diversity=False)
            for block, numbers in zip(attention.maps, statistics, strict=True):
                columns = [getattr(numbers, name) for name in STATISTICS]
                tensors[f"statistics.{block.name}"] = torch.stack(columns, dim=-1).float()
        return tensors | {f"maps.{name}": patch_map.values for name, patch_map in attention.methods.items()}

    def _rows_of(self, block: BlockAttention, photos: int) -> Tensor:
        rows = block.rows if self._settings.heads is None else block.rows.mean(dim=1, keepdim=True)
        one_entry = len(rows) == photos and not isinstance(block.token_layout, WindowLayout)
        return rows if one_entry else rows.reshape(photos, -1, *rows.shape[1:])

    def write(self) -> None:
        """Write the tensors, then the part of the index that says that they are whole."""
        path = tensors_path(self._folder, self.number)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fragment_path(self._folder, self.number).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            mark = _mark(self.rows)
            for row in self.rows:
                row["mark"] = mark
            if self._groups:
                self._write_tensors(path, mark)
            write_fragment(self._folder, self.number, self.rows)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            raise ExtractionError(
                f"cannot write {path}: expected free space on the disk, got {error}. The other shards are whole; free some space, and run "
                "extract again."
            ) from error

    def _write_tensors(self, path: Path, mark: int) -> None:
        tensors: dict[str, Tensor] = {}
        for number, group in enumerate(self._groups.values()):
            tensors |= {f"{number}.layout.{name}": tensor for name, tensor in group.layout.items()}
            for name in list(group.parts):
                tensors[f"{number}.{name}"] = torch.cat(group.parts.pop(name))
        header = {"mark": mark, "groups": [group.header for group in self._groups.values()]}
        with replacing(path, durable=True) as temporary:
            save_file(tensors, temporary, metadata={"attnhook": json.dumps(header)})
            temporary.chmod(
                (self._folder / MANIFEST_NAME).stat().st_mode
            )  # safetensors makes it readable by its owner alone


def _content(header: dict[str, Any], layout: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> str:
    """A hash of what the photos of a group have in common."""
    content = hashlib.sha256(json.dumps([header, shapes], sort_keys=True).encode())
    for name, tensor in sorted(layout.items()):
        content.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()


def _mark(rows: list[dict[str, Any]]) -> int:
    """A hash of a shard's photos and their places in it, by which a reader notices that the shard was written again."""
    content = json.dumps([[row[name] for name in ("key", "digest", "group", "offset")] for row in rows])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big", signed=True)


class ShardFiles:
    """The shards of an extraction, by what the index says of a photo (`record`)."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, OpenFiles(limit=16)

    def header(self, record: dict[str, Any]) -> dict[str, Any]:
        """Everything that is stored about a photo's maps besides tensors."""
        header: dict[str, Any] = self._open(record)[1][record["group"]]
        return header

    def layout(self, record: dict[str, Any]) -> dict[str, Tensor]:
        """The header's tensors."""
        file, _ = self._open(record)
        prefix = f"{record['group']}.layout."
        return {name[len(prefix) :]: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118

    def tensors(self, record: dict[str, Any], *wanted: str) -> dict[str, Tensor]:
        """A photo's tensors, by name (`"maps.rollout"`) or kind (`"rows"`)."""
        file, _ = self._open(record)
        prefix, tensors = f"{record['group']}.", {}
        for stored in sorted(file.keys()):
            name = stored.removeprefix(prefix)
            if name != stored and (name in wanted or name.partition(".")[0] in wanted):
                with torch.device("cpu"):  # whatever the process's default
                    tensors[name] = torch.as_tensor(file.get_slice(stored)[record["offset"]])
        return tensors

    def _open(self, record: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
        """The file of a photo's shard, and the headers of its groups."""
        path = indices.tensors_path(self._folder, record["shard"])
        opened: tuple[Any, list[dict[str, Any]]] = self._files.get(path, lambda: _open_shard(path, record["mark"]))
        return opened


def _open_shard(path: Path, mark: int) -> tuple[Any, list[dict[str, Any]]]:
    try:
        file = safe_open(path, framework="pt")
        metadata: dict[str, str] = file.metadata()  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise ExtractionError(
            f"cannot read {path}: expected the shard that the index describes, got {error}. If extract runs, or has run, in that folder again, "
            "call open_maps again."
        ) from error
    header = json.loads(metadata["attnhook"])
    if header["mark"] != mark:
        raise ExtractionError(
            f"cannot read {path}: expected the shard that the index describes, got one that was rewritten since. Call open_maps again."
        )
    return file, header["groups"]
