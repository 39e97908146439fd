"""Draw a model's attention over your photos.

Writes one PNG per photo and a manifest.json. By default, the map is one softmax row of one
block: where the model's readout looked, that is, what its classifier reads (usually the
class token). Attention is not importance. Pixels that the model did not see (most models
crop the centre) stay as they are.

A photo that cannot be read is reported, the others are done, and the exit code is 1.

Examples:
  attnhook overlay cat.jpg
  attnhook overlay photos/*.jpg --model hf:facebook/dinov2-small --out maps
  attnhook overlay cat.jpg --model timm:vit_base_patch16_224 --block 8 --heads max --scale uniform
  attnhook overlay cat.jpg --method rollout               attention followed through all blocks
  attnhook overlay cat.jpg --model timm:vit_base_patch16_224 --method gradient_rollout --target 281    for one class
  attnhook overlay cat.jpg --rows 18,12 --mode nearest    where the patch in row 18, column 12 looks
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnhook import __version__
from attnhook.cli.arguments import DEFAULT, OPTION_ERRORS, add_command, add_map_options, add_model, one_line, say
from attnhook.errors import AttnhookError
from attnhook.files import check_format, replacing
from attnhook.options import Style
from attnhook.running.fingerprints import library_versions

if TYPE_CHECKING:
    from attnhook.zoo.vision_models import VisionModel

MANIFEST = "manifest.json"
_FORMAT = "attnhook-overlay-1"
_MAP = ("method", "heads", "rows", "target", "mode")
_LOOK = ("scale", "colormap", "alpha", "style")


def add(commands: Any) -> None:
    """Add the command."""
    overlay = add_command(commands, "overlay", _overlay, __doc__)
    overlay.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    add_model(overlay)
    add_map_options(overlay)
    overlay.add_argument(
        "--style",
        choices=[style.value for style in Style],
        default="heat",
        help="heat (an interpolated heat map), patches (one colour per patch), contours, or mask (darkens all but the patches with 60%% of the "
        f"attention) {DEFAULT}",
    )
    overlay.add_argument("--out", type=Path, default=Path("attention"), help=f"folder {DEFAULT}")


def _overlay(arguments: argparse.Namespace) -> int:
    from attnhook.zoo.loading import load

    _check_map_options(arguments)
    check_format(arguments.out, _FORMAT, "with overlays", ValueError)
    model = load(arguments.model, device=arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    targets = _targets(arguments.images, arguments.out)
    entries = []
    for number, (image, target) in enumerate(zip(arguments.images, targets, strict=True), 1):
        entries.append(_overlay_one(model, image, target, arguments))
        say(f"[{number}/{len(targets)}] {image}: {entries[-1]['error'] or f'-> {target}'}")
    failed = sum(entry["error"] is not None for entry in entries)
    manifest = arguments.out / MANIFEST
    content = {**_manifest_head(model, arguments), "failed": failed, "images": entries}
    with replacing(manifest) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{len(entries) - failed} of {len(entries)} images done; {manifest}")
    return 1 if failed else 0


def _check_map_options(arguments: argparse.Namespace) -> None:
    """Check the options before a model is loaded."""
    import torch
    from PIL import Image

    from attnhook.attribution.methods import check_method
    from attnhook.imaging.geometry import ImageGeometry
    from attnhook.imaging.patch_maps import PatchMap

    check_method(arguments.method)
    look = {name: getattr(arguments, name) for name in (*_LOOK, "mode")}
    PatchMap(torch.zeros(1, 1), uniform=1.0).overlay(Image.new("RGB", (1, 1)), ImageGeometry.identity((1, 1)), **look)


def _overlay_one(model: "VisionModel", image: Path, target: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from attnhook.results.results import attend

    entry: dict[str, Any] = {"input": str(image), "output": None, "error": None}
    try:
        (result,) = attend(model, str(image), **{name: getattr(arguments, name) for name in _MAP})
        if arguments.block != -1:
            result = result[arguments.block]
        result.save(target, **{name: getattr(arguments, name) for name in _LOOK})
    except OPTION_ERRORS:
        raise
    except IndexError as error:  # --block or --heads beyond what the model has
        raise ValueError(str(error)) from error
    except (AttnhookError, OSError) as error:
        return entry | {"error": one_line(error)}
    known = result.attention[~result.attention.isnan()]
    return entry | {
        "output": target.name,
        "photo_size": [result.image.height, result.image.width],
        "grid": list(result.attention.shape),
        "block": result.settings.block,
        "rows": result.settings.rows,
        "target": result.settings.target,
        "min": float(known.min()),
        "max": float(known.max()),
        "uniform": result.uniform,
        "outside": None if math.isnan(result.outside) else result.outside,
    }


def _manifest_head(model: "VisionModel", arguments: argparse.Namespace) -> dict[str, Any]:
    from attnhook.zoo.model_metadata import library_of

    chosen = ("method", "target", "block", "heads", "rows", *_LOOK, "mode", "device")
    return {
        "format": _FORMAT,
        "versions": {"attnhook": __version__} | library_versions(),
        "model": {
            "spec": arguments.model,
            "name": model.name,
            "library": library_of(model.model),
            "class": f"{type(model.model).__module__}.{type(model.model).__qualname__}",
            "input_size": model.input_size,
        },
        "settings": {name: getattr(arguments, name) for name in chosen},
    }


def _targets(images: Sequence[Path], out: Path) -> list[Path]:
    """One path per image, different even on file systems that ignore case, and never an input."""
    taken = {str(image.expanduser().resolve()).casefold() for image in images}
    targets = []
    for image in images:
        number, name = 1, f"{image.stem}-attention.png"
        while (key := str((out / name).resolve()).casefold()) in taken:
            number += 1
            name = f"{image.stem}-attention-{number}.png"
        taken.add(key)
        targets.append(out / name)
    return targets
