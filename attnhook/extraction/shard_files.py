"""The shards' tensors, read from mapped memory: a few files stay open, and only what is asked for is read."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from attnhook.errors import ExtractionError
from attnhook.extraction import indices
from attnhook.extraction.containers import OpenFiles


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
            f"cannot read {path}: expected the shard that the index describes, got {error}. If extract runs, or ran, in that folder again, "
            "open_maps again."
        ) from error
    header = json.loads(metadata["attnhook"])
    if header["mark"] != mark:
        raise ExtractionError(
            f"cannot read {path}: expected the shard that the index describes, got one that was written again since. open_maps again."
        )
    return file, header["groups"]
