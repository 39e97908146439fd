"""What one model made of one photo: maps on its patch grid, statistics by block and head, and where the grid lies in the photo."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attnhook.files import replacing
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Size
from attnhook.zoo.demo_weights import fingerprint

_PREFIXES = ("map", "statistic")


@dataclass(frozen=True, eq=False)
class Measurement:
    """One model, one photo.

    Attributes:
        geometry: Where the model looked in the photo.
        area: Input pixels that the patch grid covers, or None if that was not seen.
        blocks: Names of the blocks.
        tokens: Keys of the last block's rows.
        readout: Whose row the maps are of, in words, or None.
        seconds: The forward, capture included; None if it was read back: another machine may have taken them.
        target: The class that gradient methods followed, by index, or None.
        maps: By view: the photo's map, `(h, w)` float32.
        grids: Patch grids of the blocks, in order, as far as their tokens lie on one.
        statistics: By name: `(blocks, heads)` float64, NaN where a block has fewer heads.
        areas: By view: deletion's and insertion's areas, as `faithfulness.perturb` gives them.
        problems: By view: why there is no map, and by `VIEW, faithfulness` why there are no areas.
    """

    geometry: ImageGeometry
    area: Size | None
    blocks: tuple[str, ...]
    tokens: int
    readout: str | None
    seconds: float | None
    target: int | None = None
    maps: dict[str, PatchMap] = field(default_factory=dict)
    grids: tuple[Size, ...] = ()
    statistics: dict[str, Tensor] = field(default_factory=dict)
    areas: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it without its time to a temporary name, then rename."""
        tensors = {f"map/{name}": found.values for name, found in self.maps.items()}
        tensors |= {f"statistic/{name}": value for name, value in self.statistics.items()}
        plain = {
            "geometry": asdict(self.geometry),
            "area": self.area,
            "blocks": self.blocks,
            "grids": self.grids,
            "tokens": self.tokens,
            "readout": self.readout,
            "target": self.target,
            "maps": {name: found.facts() for name, found in self.maps.items()},
            "areas": self.areas,
            "problems": self.problems,
        }
        whole = {name: value.contiguous() for name, value in tensors.items()}
        with replacing(path, mark=f".{os.getpid()}") as temporary:  # two runs may measure the same
            text = json.dumps(plain)
            save_file(whole, temporary, {"measurement": text, "seal": _seal(path, text, whole)})

    @classmethod
    def load(cls, path: Path) -> "Measurement | None":
        """Read one back."""
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
            if header["seal"] != _seal(path, header["measurement"], tensors):
                return None
            return cls._unpacked(json.loads(header["measurement"]), tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    @classmethod
    def _unpacked(cls, plain: dict[str, Any], tensors: dict[str, Tensor]) -> "Measurement":
        found: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in _PREFIXES}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition("/")
            found[prefix][rest] = tensor
        facts = plain.pop("maps")
        return cls(
            geometry=_geometry(plain.pop("geometry")),
            area=_pair(plain.pop("area")),
            blocks=tuple(plain.pop("blocks")),
            seconds=None,
            maps={name: PatchMap.with_facts(values, facts[name]) for name, values in found["map"].items()},
            grids=tuple(map(tuple, plain.pop("grids"))),
            statistics=found["statistic"],
            **plain,
        )


def _seal(path: Path, text: str, tensors: dict[str, Tensor]) -> str:
    """A digest of the content and of the name that it is kept under: damage and files in the wrong place show. It keeps no secret."""
    return hashlib.sha256(f"{path.name} {fingerprint(tensors)} {text}".encode()).hexdigest()


def _geometry(plain: dict[str, Any]) -> ImageGeometry:
    return ImageGeometry(**{name: tuple(value) for name, value in plain.items()})


def _pair(plain: list[int] | None) -> Size | None:
    return None if plain is None else (plain[0], plain[1])


def mean_over_photos(measurements: list[Measurement], statistic: str) -> Tensor | None:
    """A statistic's mean over photos, where all have as many blocks and heads.

    Returns:
        `(blocks, heads)` float64, or None where there is nothing to average.
    """
    tables = [one.statistics[statistic] for one in measurements if statistic in one.statistics]
    if not tables or any(table.shape != tables[0].shape for table in tables):
        return None
    return torch.stack(tables).nanmean(dim=0)
