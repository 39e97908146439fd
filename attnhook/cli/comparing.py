"""Compare where models look, as a report.

Every model sees the same photos. All maps are measured on one pixel grid, and every score
comes with controls.

Models are loaded one at a time. Measurements are cached, so a second run is quick, and an
interrupted one continues where it stopped. A model or a photo that fails is reported, the
others finish, and the exit code is 1.

The folder gets report.html (one page that opens from disk), metrics.json, metrics.csv,
pictures and manifest.json.

Examples:
  attnhook compare photos/*.jpg --model demo --model demo:timm --out report
  attnhook compare cat.jpg --model demo --model demo@224 --method raw_attention --method rollout
  attnhook compare photos/*.jpg --masks masks --model timm:vit_base_patch16_224.dino --model demo
  attnhook compare photos/*.jpg --preset registers --depth 0.5 --depth 1
  attnhook compare cat.jpg --model demo --heads 0 --heads 5 --heads mean
"""

import argparse
from pathlib import Path
from typing import Any

from attnhook.cli.arguments import (
    DEFAULT,
    add_command,
    counted,
    heads_choice,
    one_line,
    photo_name,
    photos_of,
    say,
    show,
)
from attnhook.files import check_writable

_SEVERAL: dict[str, Any] = {"action": "append", "default": []}


def add(commands: Any) -> None:
    """Add the command."""
    compare = add_command(commands, "compare", _compare, __doc__)
    compare.add_argument(
        "images", nargs="*", type=photo_name, metavar="IMAGE", help="image files, folders, or globs in quotes"
    )
    compare.add_argument(
        "--model", **_SEVERAL, metavar="SPEC", help="a model, as 'attnhook overlay' takes it; repeat it for each model"
    )
    compare.add_argument(
        "--preset", metavar="NAME", help="a set of models that answers one question; --presets lists all sets"
    )
    compare.add_argument("--presets", action="store_true", help="list the presets and stop")
    compare.add_argument("--out", type=Path, default=Path("attnhook-report"), help=f"the folder {DEFAULT}")
    compare.add_argument(
        "--method",
        **_SEVERAL,
        metavar="METHOD",
        help="a method, as 'attnhook overlay' takes it; repeat it for several (default: raw_attention)",
    )
    compare.add_argument(
        "--depth",
        **_SEVERAL,
        type=float,
        help="relative depth of the block (above 0, at most 1) for methods that read one block; repeat it for several "
        "(default: 1, the last block)",
    )
    compare.add_argument(
        "--heads",
        **_SEVERAL,
        type=heads_choice,
        help="mean, max, min, or one head's index (--heads=-1 is the last); repeat it to compare several (default: mean)",
    )
    compare.add_argument(
        "--masks",
        type=Path,
        metavar="FOLDER",
        help="masks of the objects, named like the photos, with any suffix: 255 object, 0 background, 128 ignored",
    )
    compare.add_argument(
        "--faithfulness",
        action="store_true",
        help="also remove patches and measure how each classifier's score changes (slow)",
    )
    compare.add_argument(
        "--no-statistics",
        action="store_true",
        help="leave out entropy, distance, and sinks (tokens that draw most of the attention)",
    )
    compare.add_argument("--no-pictures", action="store_true", help="leave out the pictures beside the report")
    compare.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where measurements are cached (default: your cache folder)"
    )
    compare.add_argument("--no-cache", action="store_true", help="measure everything again and cache nothing")
    compare.add_argument("--device", default="cpu", help=f"where models run, such as cuda {DEFAULT}")


def _compare(arguments: argparse.Namespace) -> int:
    from attnhook.comparison.compare_models import AUTO, compare
    from attnhook.comparison.reports import check_folder
    from attnhook.zoo.presets import PRESETS

    if arguments.presets:
        for name, preset in PRESETS.items():
            show("\n".join([f"{name}: {preset.question}", *(f"  {spec}" for spec in preset.specs)]))
        return 0
    if not arguments.images:
        raise ValueError(
            "nothing to compare on: expected at least one IMAGE, got none. Pass image files, such as photos/*.jpg."
        )
    models, images = _models(arguments, PRESETS), photos_of(arguments.images)
    check_writable(arguments.out)
    check_folder(arguments.out)
    found = compare(
        models,
        images,
        methods=arguments.method or "raw_attention",
        depths=arguments.depth or 1.0,
        heads=arguments.heads or "mean",
        masks=_masks(arguments.masks, images),
        statistics=not arguments.no_statistics,
        faithfulness=arguments.faithfulness,
        cache=None if arguments.no_cache else arguments.cache or AUTO,
        device=arguments.device,
    )
    for failure in found.failures:
        where = ", ".join(part for part in (failure.model, failure.photo) if part)
        say(f"{where}: {failure.what}: {one_line(failure.error)}")
    page = found.save(arguments.out, pictures=not arguments.no_pictures)
    for note in found.notes:
        show(f"{note.level}: {note.text}")
    counts = (counted(len(found.models), len(models), "model"), counted(len(found.photos), len(images), "photo"))
    show(f"{'; '.join(counts)}: {page}")
    return 1 if found.failures else 0


def _models(arguments: argparse.Namespace, presets: Any) -> list[str]:
    chosen: list[str] = list(arguments.model)
    if arguments.preset is not None:
        if arguments.preset not in presets:
            raise ValueError(f"unknown preset: expected one of {', '.join(presets)}, got {arguments.preset!r}.")
        chosen += presets[arguments.preset].specs
    if not chosen:
        raise ValueError("nothing to compare: expected --model SPEC, once for each model, or --preset NAME.")
    return chosen


def _masks(folder: Path | None, images: list[Path]) -> list[Path | None] | None:
    from PIL import Image

    if folder is None:
        return None
    if not folder.is_dir():
        raise ValueError(f"no masks: expected a folder, got none at {folder}.")
    pictures = Image.registered_extensions()
    by_name: dict[str, Path] = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in pictures}
    masks = [by_name.get(image.stem) for image in images]
    if not any(masks):
        raise ValueError(
            f"no masks: expected files in {folder} named like the photos, such as {images[0].stem}.png, got none."
        )
    return list(masks)
