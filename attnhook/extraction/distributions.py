"""Statistics over a data set: exact means and percentiles of the stored numbers, one block at a time."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from attnhook.extraction import indices
from attnhook.extraction.settings import Manifest
from attnhook.files import replacing

NAME = "statistics.json"
PERCENTILES = (5, 25, 50, 75, 95)


def over_photos(folder: Path, manifest: Manifest, percentiles: Sequence[float] = PERCENTILES) -> list[dict[str, Any]]:
    """Mean and percentiles of every statistic, by block and head: the same to the last bit, whoever wrote the shards."""
    table = []
    for block, tensors in _tensors_by_block(folder).items():
        values = np.concatenate([_read(path, name) for path, name in tensors])  # (photos, heads, statistics) float32
        for head in range(values.shape[1]):
            for column, name in enumerate(manifest.statistics):
                numbers = values[:, head, column]
                row = {"block": block, "head": head, "statistic": name}
                table.append(row | _summary(numbers[~np.isnan(numbers)].astype(np.float64), percentiles))
    return table


def _tensors_by_block(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """The files and names of the tensors that hold a block's statistics, in the order of the shards."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for fragment in indices.fragments(folder):
        path = fragment.with_suffix(".safetensors")
        if not path.exists():  # none of its photos could be read
            continue
        with safe_open(path, framework="numpy") as file:
            groups = json.loads(file.metadata()["attnhook"])["groups"]
        for number, group in enumerate(groups):
            for block in group["blocks"]:
                found.setdefault(block["name"], []).append((path, f"{number}.statistics.{block['name']}"))
    return found


def _read(path: Path, name: str) -> Any:
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(name)


def _summary(numbers: Any, percentiles: Sequence[float]) -> dict[str, Any]:
    names = [f"p{percentile:g}" for percentile in percentiles]
    if not len(numbers):
        return {"photos": 0, "mean": None, "std": None} | dict.fromkeys(names)
    mean = math.fsum(numbers) / len(numbers)
    std = math.sqrt(math.fsum((numbers - mean) ** 2) / len(numbers))
    values = np.percentile(numbers, percentiles).tolist()
    return {"photos": len(numbers), "mean": mean, "std": std} | dict(zip(names, values, strict=True))


def write_distributions(folder: Path, manifest: Manifest) -> None:
    """Write `statistics.json`, if statistics were stored."""
    if manifest.statistics:
        with replacing(folder / NAME, durable=True) as temporary:
            temporary.write_text(json.dumps(over_photos(folder, manifest), indent=1) + "\n", encoding="utf-8")
