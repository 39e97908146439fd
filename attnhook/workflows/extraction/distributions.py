"""Statistics over a data set: exact means and percentiles of what the shards hold, one block at a time."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnhook.workflows.extraction import indices
from attnhook.workflows.extraction.manifests import Manifest
from attnhook.workflows.files import replacing

NAME = "statistics.json"
PERCENTILES = (5, 25, 50, 75, 95)


def distributions(folder: Path, manifest: Manifest, percentiles: Sequence[float] = PERCENTILES) -> list[dict[str, Any]]:
    """Mean and percentiles of every statistic over all photos, by block and head.

    They are of the stored numbers themselves, in the order of the shards: the same to the last bit however many processes wrote them.

    Args:
        folder: The extraction's.
        manifest: Its manifest.
        percentiles: Which, 0 to 100.

    Returns:
        A row a block, head and statistic: `block`, `head`, `statistic`, `photos` (those where it is defined), `mean`, `std`, and `p5` and so on;
        None where it is defined nowhere.
    """
    found = []
    for number, block in enumerate(manifest.blocks):
        values = _values(folder, number)
        if values is None:
            continue
        for head in range(values.shape[1]):
            for place, name in enumerate(manifest.statistics):
                numbers = values[:, head, place]
                row = {"block": block, "head": head, "statistic": name}
                found.append(row | _summary(numbers[~np.isnan(numbers)].astype(np.float64), percentiles))
    return found


def _values(folder: Path, block: int) -> Any:
    """`(photos, heads, statistics)` float32 of one block, over all shards."""
    from safetensors import safe_open

    parts = []
    for fragment in indices.fragments(folder):
        tensors = fragment.with_suffix(".safetensors")
        if not tensors.exists():
            continue
        with safe_open(tensors, framework="numpy") as file:
            groups = len(json.loads(file.metadata()["attnhook"])["groups"])
            names = (f"{group}.statistics.{block}" for group in range(groups))
            parts += [file.get_tensor(name) for name in names]
    return np.concatenate(parts) if parts else None


def _summary(numbers: Any, percentiles: Sequence[float]) -> dict[str, Any]:
    names = [f"p{percentile:g}" for percentile in percentiles]
    if not len(numbers):
        return {"photos": 0, "mean": None, "std": None} | dict.fromkeys(names)
    mean = math.fsum(numbers) / len(numbers)
    spread = math.sqrt(math.fsum((numbers - mean) ** 2) / len(numbers))
    values = np.percentile(numbers, percentiles).tolist()
    return {"photos": len(numbers), "mean": mean, "std": spread} | dict(zip(names, values, strict=True))


def write_distributions(folder: Path, manifest: Manifest) -> None:
    """Write `statistics.json`, if there are any.

    Args:
        folder: The extraction's; all shards are whole.
        manifest: Its manifest.
    """
    if not manifest.statistics:
        return
    with replacing(folder / NAME, durable=True) as temporary:
        temporary.write_text(json.dumps(distributions(folder, manifest), indent=1) + "\n", encoding="utf-8")
