"""What a caption adds to what the map itself says."""

from dataclasses import replace

from attnhook.attribution.methods import method_options
from attnhook.capture.records import AttentionMaps
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Rows


def captioned(patch_map: PatchMap, model: str, target: str | int | None = None) -> PatchMap:
    """Put the model's name, and the class of a gradient method, into a map's caption."""
    of_class = "" if target is None else f", for class {target!r}"
    return replace(patch_map, description=f"{model}: {patch_map.description}{of_class}")


def rows_in_words(maps: AttentionMaps) -> str:
    """Name the rows that are shown, for settings and manifests; for captions see `row_in_words` in `attnhook.attribution.map_making`."""
    if not isinstance(maps.selected_rows, Rows):
        return str(list(maps.selected_rows))
    shown = maps.readout.rows if maps.selected_rows is Rows.ALL else maps.selected_rows
    return "all" if shown is None else shown.value


def reads_block(method: str) -> bool:
    """Whether a method computes its map from a single block."""
    return bool(method_options(method, {"block": None}))
