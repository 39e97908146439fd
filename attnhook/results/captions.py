"""What a picture has to say about itself, beside what its map says."""

from dataclasses import replace

from attnhook.attribution.methods import method_options
from attnhook.capture.records import AttentionMaps
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Rows


def captioned(patch_map: PatchMap, model: str, target: str | int | None = None) -> PatchMap:
    """Let a map's caption say whose it is."""
    of_class = "" if target is None else f", for class {target!r}"
    return replace(patch_map, description=f"{model}: {patch_map.description}{of_class}")


def rows_in_words(maps: AttentionMaps) -> str:
    """Name the rows that are shown, for settings and manifests; captions have `row_in_words` of `attnhook.attribution.map_making`."""
    if not isinstance(maps.selected_rows, Rows):
        return str(list(maps.selected_rows))
    shown = maps.readout.rows if maps.selected_rows is Rows.ALL else maps.selected_rows
    return "all" if shown is None else shown.value


def reads_block(method: str) -> bool:
    """Whether a method is of one block."""
    return bool(method_options(method, {"block": None}))
