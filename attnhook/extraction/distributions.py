"""Statistics over a data set: exact means and percentiles of what the shards hold, one block at a time."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnhook.extraction import indices
from attnhook.extraction.manifests import Manifest
from attnhook.files import replacing

NAME = "statistics.json"
PERCENTILES = (5, 25, 50, 75, 95)


def over_photos(folder: Path, manifest: Manifest, percentiles: Sequence[float] = PERCENTILES) -> list[dict[str, Any]]:
    """Mean and percentiles of every statistic over all photos, by block and head.

    They are of the stored numbers themselves, in the order of the shards: the same to the last bit however many processes wrote them.
    """
    found = []
    for block, places in _places(folder).items():
        values = _values(places)
        for head in range(values.shape[1]):
            for place, name in enumerate(manifest.statistics):
                numbers = values[:, head, place]
                row = {"block": block, "head": head, "statistic": name}
                found.append(row | _summary(numbers[~np.isnan(numbers)].astype(np.float64), percentiles))
    return found


def _places(folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Where the statistics of every block stand: files and tensors' names, in the order of the shards."""
    from safetensors import safe_open

    found: dict[str, list[tuple[Path, str]]] = {}
    for fragment in indices.fragments(folder):
        tensors = fragment.with_suffix(".safetensors")
        if not tensors.exists():  # none of its photos could be read
            continue
        with safe_open(tensors, framework="numpy") as file:
            groups = json.loads(file.metadata()["attnhook"])["groups"]
        for number, group in enumerate(groups):
            for block in group["blocks"]:
                found.setdefault(block["name"], []).append((tensors, f"{number}.statistics.{block['name']}"))
    return found


def _values(places: list[tuple[Path, str]]) -> Any:
    """`(photos, heads, statistics)` float32 of one block, over all shards."""
    from safetensors import safe_open

    parts = []
    for path, name in places:
        with safe_open(path, framework="numpy") as file:
            parts.append(file.get_tensor(name))
    return np.concatenate(parts)


def _summary(numbers: Any, percentiles: Sequence[float]) -> dict[str, Any]:
    names = [f"p{percentile:g}" for percentile in percentiles]
    if not len(numbers):
        return {"photos": 0, "mean": None, "std": None} | dict.fromkeys(names)
    mean = math.fsum(numbers) / len(numbers)
    spread = math.sqrt(math.fsum((numbers - mean) ** 2) / len(numbers))
    values = np.percentile(numbers, percentiles).tolist()
    return {"photos": len(numbers), "mean": mean, "std": spread} | dict(zip(names, values, strict=True))


def write_distributions(folder: Path, manifest: Manifest) -> None:
    """Write `statistics.json`, if there are any."""
    if not manifest.statistics:
        return
    with replacing(folder / NAME, durable=True) as temporary:
        temporary.write_text(json.dumps(over_photos(folder, manifest), indent=1) + "\n", encoding="utf-8")
