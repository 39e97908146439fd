"""Draw a model's attention over your photos.

Writes one picture per photo (or a figure, or the map's numbers) and a manifest.json. By
default, the map is one softmax row of the last block: where the model's readout (what its
classifier reads, usually the class token) looked. Attention is not importance.
What the model did not see (most models crop the centre) is faded.

A photo that cannot be read is reported, the others are processed, and the exit code is 1.

Examples:
  attnhook overlay cat.jpg
  attnhook overlay photos/*.jpg --model hf:facebook/dinov2-small --out maps
  attnhook overlay cat.jpg --model timm:vit_base_patch16_224 --block 8 --heads max --scale uniform
  attnhook overlay cat.jpg --figure                       photo, map and overlay, with a colour bar and a caption
  attnhook overlay cat.jpg --method rollout               attention followed through all blocks
  attnhook overlay cat.jpg --model timm:vit_base_patch16_224 --method gradient_rollout --target 281    for one class
  attnhook overlay cat.jpg --rows 18,12 --mode nearest    where the patch in row 18, column 12 looks
"""

import argparse
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnhook import __version__
from attnhook.cli.arguments import (
    DEFAULT,
    OPTION_ERRORS,
    add_command,
    add_map_options,
    add_model,
    counted,
    one_line,
    photo_name,
    photos_of,
    say,
    show,
)
from attnhook.errors import AttnhookError
from attnhook.files import check_format, check_writable, file_name, readable, replacing
from attnhook.options import Style
from attnhook.running.fingerprints import library_versions

if TYPE_CHECKING:
    from attnhook.results.results import AttentionResult
    from attnhook.zoo.vision_models import VisionModel

MANIFEST = "manifest.json"
_FORMAT = "attnhook-overlay-1"
_MAP = ("method", "heads", "rows", "target", "mode")
_LOOK = ("scale", "colormap", "alpha", "weighted", "fade", "crop")
_STYLE = ("style", "keep", "smallest")
_SUFFIXES = {
    "overlay": ".png",
    "figure": ".png",
    "pdf": ".pdf",
    "svg": ".svg",
    "heatmap": ".png",
    "npy": ".npy",
    "npz": ".npz",
}


def add(commands: Any) -> None:
    """Add the command."""
    overlay = add_command(commands, "overlay", _overlay, __doc__)
    overlay.add_argument(
        "images", nargs="+", type=photo_name, metavar="IMAGE", help="image files, folders, or globs in quotes"
    )
    add_model(overlay)
    add_map_options(overlay)
    overlay.add_argument(
        "--style",
        choices=[style.value for style in Style],
        default="heat",
        help="heat (an interpolated heat map), patches (one colour per patch), contours, or mask (darkens all but the patches with 60%% of the "
        f"attention) {DEFAULT}",
    )
    overlay.add_argument(
        "--keep", type=float, default=0.6, help=f"share of the attention that style mask keeps {DEFAULT}"
    )
    overlay.add_argument(
        "--smallest",
        type=int,
        default=1,
        help=f"leave out connected parts of a mask with fewer patches than this {DEFAULT}",
    )
    overlay.add_argument(
        "--as",
        dest="kind",
        choices=list(_SUFFIXES),
        default="overlay",
        help="what to write: the overlay as PNG, a figure with a colour bar and a caption (figure is PNG), the heat map alone as transparent "
        f"PNG, or its numbers at the photo's size (npy) or on the patch grid (npz) {DEFAULT}",
    )
    overlay.add_argument("--figure", dest="kind", action="store_const", const="figure", help="the same as --as figure")
    overlay.add_argument("--out", type=Path, default=Path("attention"), help=f"folder {DEFAULT}")


def _overlay(arguments: argparse.Namespace) -> int:
    from attnhook.zoo.loading import load

    _check_map_options(arguments)
    check_writable(arguments.out)
    check_format(arguments.out, _FORMAT, "with overlays", ValueError)
    images = photos_of(arguments.images)
    targets = _targets(images, arguments.out, _SUFFIXES[arguments.kind])
    model = load(arguments.model, device=arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (image, target) in enumerate(zip(images, targets, strict=True), 1):
        entries.append(_overlay_one(model, image, target, arguments))
        say(f"[{number}/{len(targets)}] {image}: {entries[-1]['error'] or f'-> {target}'}")
    failed = sum(entry["error"] is not None for entry in entries)
    manifest = arguments.out / MANIFEST
    content = {**_manifest_head(model, arguments), "failed": failed, "images": entries}
    with replacing(manifest) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    show(f"{counted(len(entries) - failed, len(entries), 'photo')}: {manifest}")
    return 1 if failed else 0


def _check_map_options(arguments: argparse.Namespace) -> None:
    """Check the options before a model is loaded."""
    import torch
    from PIL import Image

    from attnhook.attribution.methods import check_method
    from attnhook.imaging.geometry import ImageGeometry
    from attnhook.imaging.patch_maps import PatchMap

    check_method(arguments.method)
    if arguments.kind != "overlay" and arguments.style != Style.HEAT:
        raise ValueError(
            f"--style {arguments.style} is for overlays: expected --as overlay, got --as {arguments.kind}. Leave one of them out."
        )
    look = _options(arguments, *_LOOK, *_STYLE, "mode")
    PatchMap(torch.zeros(1, 1), uniform=1.0).overlay(Image.new("RGB", (1, 1)), ImageGeometry.identity((1, 1)), **look)


def _overlay_one(model: "VisionModel", image: Path, target: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from attnhook.results.results import attend

    entry: dict[str, Any] = {"input": readable(str(image)), "output": None, "error": None}
    try:
        (result,) = attend(model, str(image), **{name: getattr(arguments, name) for name in _MAP})
        if arguments.block != -1:
            result = result[arguments.block]
        _write(result, target, arguments)
    except OPTION_ERRORS:
        raise
    except IndexError as error:  # --block or --heads beyond what the model has
        raise ValueError(str(error)) from error
    except (AttnhookError, OSError) as error:
        return entry | {"error": one_line(error)}
    known = result.attention[~result.attention.isnan()]
    return entry | {
        "output": readable(target.name),
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

    chosen = ("method", "target", "block", "heads", "rows", *_LOOK, *_STYLE, "kind", "mode", "device")
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


def _options(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What was asked for, without what was left to the default of a style."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _write(result: "AttentionResult", target: Path, arguments: argparse.Namespace) -> None:
    """Write one result as what was asked for, under a temporary name first."""
    look = _options(arguments, *_LOOK)
    if arguments.kind == "overlay":
        result.save(target, **look, **_options(arguments, *_STYLE))
    elif arguments.kind == "npz":
        result.patch_map.save(target)
    elif arguments.kind == "npy":
        import numpy as np

        with replacing(target) as temporary, temporary.open("wb") as file:
            np.save(file, result.heatmap.numpy())
    elif arguments.kind == "heatmap":
        from attnhook.imaging.overlays import layer, look_of
        from attnhook.results.results import save_image

        save_image(layer(result.heatmap, look_of(result.patch_map, look, layer)), target)
    else:
        from attnhook.results.pictures import photo_figure

        with replacing(target) as temporary:
            photo_figure(result, **look).savefig(temporary, format=target.suffix[1:])


def _targets(images: Sequence[Path], out: Path, suffix: str) -> list[Path]:
    """One path per image, different even on file systems that ignore case, and never an input."""
    taken = {os.path.realpath(image).casefold() for image in images}
    targets = []
    for image in images:
        number, name = 1, file_name(image.stem, f"-attention{suffix}")
        while (key := os.path.realpath(out / name).casefold()) in taken:
            number += 1
            name = file_name(image.stem, f"-attention-{number}{suffix}")
        taken.add(key)
        targets.append(out / name)
    return targets
