"""What made the files of a folder: the model by its content, source, settings, versions. A run that differs must not add to it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnhook.errors import ExtractionError
from attnhook.files import replacing

FORMAT = "attnhook-extraction-2"
NAME = "manifest.json"


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
        with replacing(folder / NAME, durable=True) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest | None":
        """Read a folder's manifest, or None."""
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content.pop("format", None)
            if found == FORMAT:
                return cls(**content)
        except (ValueError, TypeError, AttributeError) as error:
            raise ExtractionError(
                f"cannot read {path}: expected a manifest, got {error}. Restore it, or extract again."
            ) from error
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


def _difference(part: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return f"{part} {name}={old.get(name)!r}, got {new.get(name)!r}"
    return f"{part} {old!r}, got {new!r}"
