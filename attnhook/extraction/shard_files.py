"""The shards' tensors, read from mapped memory: a few files stay open, and only what is asked for is read."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnhook.errors import ExtractionError
from attnhook.extraction import indices

_AT_ONCE = 16


class ShardFiles:
    """The shards of an extraction. Pickled without its files: mapped memory does not travel to worker processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: OrderedDict[Path, tuple[Any, list[dict[str, Any]]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": OrderedDict()}

    def header(self, record: dict[str, Any]) -> dict[str, Any]:
        """What a photo's maps say beside their numbers."""
        found: dict[str, Any] = self._open(record)[1][record["group"]]
        return found

    def layout(self, record: dict[str, Any]) -> dict[str, Tensor]:
        """The header's tensors."""
        file, _ = self._open(record)
        prefix = f"{record['group']}.layout."
        return {name[len(prefix) :]: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118

    def tensors(self, record: dict[str, Any], *wanted: str) -> dict[str, Tensor]:
        """A photo's tensors."""
        file, _ = self._open(record)
        prefix, found = f"{record['group']}.", {}
        for stored in sorted(file.keys()):
            name = stored.removeprefix(prefix)
            if name != stored and (name in wanted or name.partition(".")[0] in wanted):
                found[name] = torch.as_tensor(file.get_slice(stored)[record["offset"]])
        return found

    def _open(self, record: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
        from safetensors import SafetensorError, safe_open

        path = indices.tensors_path(self._folder, record["shard"])
        if path not in self._files:
            try:
                file = safe_open(path, framework="pt")
                metadata: dict[str, str] = file.metadata()  # type: ignore[no-untyped-call]
            except (OSError, SafetensorError) as error:
                raise ExtractionError(
                    f"cannot read {path}: expected the shard that the index speaks of, got {error}. If extract runs, or ran, in that folder "
                    "again, open_maps again."
                ) from error
            header = json.loads(metadata["attnhook"])
            if header["mark"] != record["mark"]:
                raise ExtractionError(
                    f"cannot read {path}: expected the shard that the index speaks of, got one that was written again since. open_maps again."
                )
            self._files[path] = (file, header["groups"])
            if len(self._files) > _AT_ONCE:
                self._files.popitem(last=False)
        self._files.move_to_end(path)
        return self._files[path]
