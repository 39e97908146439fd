"""What a picture has to say about itself, beside what its map says."""

from dataclasses import replace

from attnhook.attribution.methods import method_options
from attnhook.capture.records import AttentionMaps
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Rows


def captioned(patch_map: PatchMap, model: str, target: str | int | None = None) -> PatchMap:
    """Let a map's caption say whose it is.

    Args:
        patch_map: The map.
        model: The model's name.
        target: The class that a gradient method followed, or None.

    Returns:
        The map with model and class in its description.
    """
    of_class = "" if target is None else f", for class {target!r}"
    return replace(patch_map, description=f"{model}: {patch_map.description}{of_class}")


def rows_in_words(maps: AttentionMaps) -> str:
    """Name the rows that are shown, for settings and manifests; captions have `row_in_words` of `attnhook.attribution.map_making`.

    Args:
        maps: What was captured; of whole matrices the readout's row is shown.

    Returns:
        `cls`, `pool`, `mean`, `all`, or the chosen tokens and patches.
    """
    if not isinstance(maps.rows, Rows):
        return str(list(maps.rows))
    shown = maps.readout.rows if maps.rows is Rows.ALL else maps.rows
    return "all" if shown is None else shown.value


def reads_block(method: str) -> bool:
    """Whether a method is of one block."""
    return bool(method_options(method, {"block": None}))
