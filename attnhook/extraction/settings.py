"""The settings of an extraction, how rows are stored, and the manifest of what made the files of a folder.

Settings are what changes a number that is written. A run whose manifest differs must not add to a folder.
"""

import json
from dataclasses import MISSING, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution.methods import check_method
from attnhook.errors import ExtractionError
from attnhook.files import replacing
from attnhook.options import BlocksOption, HeadFusion, RowsOption

_LEVELS = 255


class StoredType(StrEnum):
    """The type that rows are stored in."""

    FLOAT16 = "float16"  # within 1 in 2,048 of each value (and within 3e-8 of the smallest)
    FLOAT32 = "float32"  # exact
    UINT8 = "uint8"  # within 1/510 of each row's largest


@dataclass(frozen=True)
class Settings:
    """Settings of one extraction, as in `extract`."""

    rows: RowsOption
    blocks: BlocksOption
    heads: str | None
    methods: tuple[str, ...]
    statistics: bool
    dtype: StoredType
    batch_size: int  # may change the last bit
    shard_size: int
    device: str  # "cpu" or "cuda"

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_count("shard_size", self.shard_size)
        for name in self.methods:
            check_method(name)
        if self.heads not in (None, HeadFusion.MEAN):
            raise ValueError(f"unknown heads: expected 'mean' or None to keep all, got {self.heads!r}.")

    def as_json(self) -> dict[str, Any]:
        """The settings in the manifest, which lists the blocks by name elsewhere."""
        return {name: value for name, value in vars(self).items() if name != "blocks"}


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is not a whole number, or too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"bad {name}: expected a whole number of at least {least}, got {value!r}.")


def encode(rows: Tensor, dtype: StoredType) -> tuple[Tensor, Tensor | None]:
    """Convert rows `(..., keys)`, float32 and not negative; for `uint8`, also return what one level is, `(..., 1)`."""
    if dtype is not StoredType.UINT8:
        return rows.to(torch.float16 if dtype is StoredType.FLOAT16 else torch.float32), None
    scales = rows.amax(dim=-1, keepdim=True) / _LEVELS
    levels = torch.where(scales > 0, rows / scales, 0.0)
    return levels.round_().clamp_(max=_LEVELS).to(torch.uint8), scales


def decode(stored: Tensor, scales: Tensor | None) -> Tensor:
    """Undo `encode`, in float32."""
    return stored.float() if scales is None else stored.float() * scales


FORMAT = "attnhook-extraction-2"
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """A folder's manifest."""

    model: dict[str, Any]  # its spec, and SHA-256 of its weights, architecture and preprocessing
    source: dict[str, Any]
    settings: dict[str, Any]
    blocks: list[str]  # names of the blocks whose rows are stored
    statistics: list[str]  # names of the statistics that are stored
    versions: dict[str, str]  # of Python, attnhook and the libraries that numbers depend on
    shards: int
    photos: int | None = None  # how many were extracted; None before the end
    failed: int | None = None  # likewise

    @property
    def complete(self) -> bool:
        """Whether all photos of the source were tried."""
        return self.photos is not None

    def save(self, folder: Path) -> None:
        """Write the manifest to a folder."""
        content = {"format": FORMAT, **vars(self)}
        with replacing(folder / MANIFEST_NAME, durable=True) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest | None":
        """Read a folder's manifest, or None."""
        path = folder / MANIFEST_NAME
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content.pop("format", None)
            if found == FORMAT and not (missing := _missing(content)):
                return cls(**content)
        except (ValueError, TypeError, AttributeError) as error:
            raise ExtractionError(
                f"cannot read {path}: expected a manifest, got {error}. Restore it, or extract again."
            ) from error
        if found == FORMAT:
            raise ExtractionError(
                f"cannot read {path}: expected a whole manifest, got one without {', '.join(missing)}. Restore it, or extract again."
            )
        if str(found).startswith(FORMAT.rstrip("2")):
            raise ExtractionError(
                f"cannot read {path}: expected format {FORMAT}, got {found}. Use the version of attnhook that wrote it."
            )
        raise ExtractionError(
            f"{folder} holds something else: expected an empty folder, or one of an extraction, got a manifest of format {found!r}. Choose "
            "another folder."
        )

    def resumed(self, wanted: "Manifest", folder: Path) -> "Manifest":
        """The manifest with which a run continues what this one describes; a run that differs is refused."""
        for part in ("model", "source", "settings", "blocks", "statistics", "versions"):
            old, new = getattr(self, part), json.loads(json.dumps(getattr(wanted, part)))
            if old != new:
                raise ExtractionError(
                    f"cannot resume the extraction in {folder}: expected {_difference(part, old, new)}. Run it as before, or write to "
                    "another folder."
                )
        return replace(self, photos=None, failed=None)


def _missing(content: dict[str, Any]) -> list[str]:
    """What a manifest lacks, or has as something else."""
    lists, counts = ("blocks", "statistics"), ("shards",)
    missing = [
        field.name
        for field in fields(Manifest)
        if field.default is MISSING
        and not isinstance(
            content.get(field.name), list if field.name in lists else int if field.name in counts else dict
        )
    ]
    nested = {"model": ("spec",), "settings": ("heads", "methods")}
    return missing or [
        f"{part}.{name}" for part, names in nested.items() for name in names if name not in content[part]
    ]


def _difference(part: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return f"{part} {name}={old.get(name)!r}, got {new.get(name)!r}"
    return f"{part} {old!r}, got {new!r}"
