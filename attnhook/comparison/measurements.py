"""The kinds of map that a comparison makes, and what one model made of one photo: maps, statistics, and the place of the grid."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attnhook.attribution.methods import NEEDS, check_method, method_options, reads_block
from attnhook.files import replacing
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, HeadsOption, Size, choose
from attnhook.zoo.demo_weights import fingerprint


@dataclass(frozen=True, eq=False)
class Measurement:
    """One model, one photo. Maps, areas and problems are by view."""

    geometry: ImageGeometry  # where the model looked in the photo
    area: Size | None  # input pixels that the patch grid covers, if known
    blocks: tuple[str, ...]
    tokens: int  # keys of the last block's rows
    readout: str | None  # whose row the maps are
    seconds: float | None  # of the forward with capture; None from the cache, which another machine may have written
    target: int | None = None  # the class that gradient methods followed
    maps: dict[str, PatchMap] = field(default_factory=dict)  # (h, w) float32
    grids: tuple[Size, ...] = ()  # of the blocks, in order, where the tokens form one
    # (blocks, heads) float64, NaN where there are fewer heads:
    statistics: dict[str, Tensor] = field(default_factory=dict)
    areas: dict[str, dict[str, float]] = field(default_factory=dict)  # as `faithfulness.perturb` returns them
    problems: dict[str, str] = field(default_factory=dict)  # why there is no map, or, by "VIEW, faithfulness", no areas

    def save(self, path: Path) -> None:
        """Write everything but the time to a temporary file, then rename it."""
        tensors = {f"map/{name}": found.values.contiguous() for name, found in self.maps.items()}
        tensors |= {f"statistic/{name}": value.contiguous() for name, value in self.statistics.items()}
        maps = {name: found.facts() for name, found in self.maps.items()}
        changed = {"geometry": asdict(self.geometry), "maps": maps, "statistics": {}, "seconds": None}
        text = json.dumps(vars(self) | changed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"measurement": text, "seal": _seal(path, text, tensors)})

    @classmethod
    def load(cls, path: Path) -> "Self | None":
        """Read one from disk; None if it is missing, damaged, or the file of another."""
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
            text = header["measurement"]
            return cls._from(text, tensors) if header["seal"] == _seal(path, text, tensors) else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    @classmethod
    def _from(cls, text: str, tensors: dict[str, Tensor]) -> Self:
        plain = json.loads(text)
        start = "statistic/"
        return cls(
            **plain
            | {
                "geometry": ImageGeometry(**{name: tuple(value) for name, value in plain["geometry"].items()}),
                "area": None if plain["area"] is None else tuple(plain["area"]),
                "blocks": tuple(plain["blocks"]),
                "grids": tuple(map(tuple, plain["grids"])),
                "maps": {name: PatchMap.with_facts(tensors[f"map/{name}"], f) for name, f in plain["maps"].items()},
                "statistics": {n.removeprefix(start): value for n, value in tensors.items() if n.startswith(start)},
            }
        )


def _seal(path: Path, text: str, tensors: dict[str, Tensor]) -> str:
    """A digest of the content and the file's name: it finds damaged files and files in the wrong place. It is not a secret."""
    return hashlib.sha256(f"{path.name} {fingerprint(tensors)} {text}".encode()).hexdigest()


@dataclass(frozen=True)
class MapKind:
    """One way to make a map."""

    method: str  # one of `METHODS`
    depth: float | None = None  # of the block, relative, at most 1 (the last); None if the method follows all blocks
    heads: str | int = "mean"  # how heads become one map: "mean", "max", "min", or the index of one

    @property
    def id(self) -> str:
        """Short name, for files and columns."""
        fused = f"head{self.heads}" if isinstance(self.heads, int) else str(self.heads)
        name = self.method if self.depth in (None, 1.0) else f"{self.method}@{self.depth:g}"
        return name if self.heads == HeadFusion.MEAN else f"{name}-{fused}"

    @property
    def label(self) -> str:
        """In words."""
        words = f"{self.method.replace('_', ' ')}, through all blocks"
        if self.depth is not None:
            where = "last block" if self.depth == 1 else f"block at {self.depth:.0%} of the depth"
            words = f"{self.method.replace('_', ' ')}, {where}"
        return words if self.heads == HeadFusion.MEAN else f"{words}, {self.heads_label}"

    @property
    def heads_label(self) -> str:
        """The heads in words."""
        return f"head {self.heads}" if isinstance(self.heads, int) else f"{self.heads} over heads"

    @property
    def full_label(self) -> str:
        """In words, with the heads even if they are the usual mean."""
        return f"{self.label}, {self.heads_label}" if self.heads == HeadFusion.MEAN else self.label

    @property
    def mass(self) -> bool:
        """Whether values are shares of a row's mass, comparable in units of uniform attention."""
        return NEEDS[self.method].mass

    def block(self, count: int) -> int:
        """Index of the block in a model with `count` blocks."""
        return max(1, math.ceil((self.depth or 1.0) * count - 1e-9)) - 1


def make_map_kinds(
    methods: "str | Sequence[str]",
    depths: "float | Sequence[float]",
    heads: "HeadsOption | Sequence[str | int]" = "mean",
) -> tuple[MapKind, ...]:
    """All methods at all depths with all choices of heads."""
    chosen = [methods] if isinstance(methods, str) else list(methods)
    places = sorted({float(depth) for depth in ([depths] if isinstance(depths, int | float) else depths)}, reverse=True)
    for method in chosen:
        check_method(method)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"expected at least one method and no duplicates, got {chosen}.")
    if not places or not all(0 < place <= 1 for place in places):
        raise ValueError(f"expected relative depths above 0 and at most 1 (the last block), got {places}.")
    fusions = _checked_heads(heads, chosen)
    views: dict[str, MapKind] = {}
    for method in chosen:
        blocks = places if reads_block(method) else [None]
        for view in [MapKind(method, place, fusion) for place in blocks for fusion in fusions]:
            if view.id in views:
                raise ValueError(
                    f"two depths are both called {view.id!r}: expected depths further apart, got {places}."
                )
            views[view.id] = view
    return tuple(views.values())


def _checked_heads(heads: "HeadsOption | Sequence[str | int]", methods: Sequence[str]) -> list[str | int]:
    """Every choice of heads, a map of its own each."""
    given: list[Any] = [heads] if heads is None or isinstance(heads, str | int) else list(heads)
    if not given or len(set(given)) < len(given):
        raise ValueError(
            f"bad heads: expected at least one choice of heads and no duplicates, got {given}. Pass each one once."
        )
    chosen: list[str | int] = []
    for one in given:
        if one is None or isinstance(one, bool):
            raise ValueError(
                f"a comparison shows one map per model: expected heads='mean', 'max', 'min' or a head's index, got {one}. Pass a list of "
                "indices for several heads, such as heads=[0, 1, 2]."
            )
        chosen.append(int(one) if isinstance(one, Integral) else choose(HeadFusion, one, "heads").value)
    for method in methods:
        if chosen != [HeadFusion.MEAN] and not method_options(method, {"heads": None}):
            raise ValueError(
                f"method {method!r} takes the mean over heads: expected heads='mean', got {heads!r}. Leave heads out."
            )
    return chosen
