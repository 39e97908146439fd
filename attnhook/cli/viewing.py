"""Explore attention in one HTML file.

The file has sliders for block and head, and shows the value under the pointer and where any
patch looks. It opens from disk in any browser since 2023, and needs no network.

For every block and head, it stores the row of the model's readout (what its classifier
reads, usually the class token). It also stores how much attention each position
receives from all queries, which is what windowed models such as Swin show first. For the
blocks in --blocks it stores the whole attention matrices, at 8 bits, so that you can click
any patch. With the defaults, a photo takes 1.1 to 1.4 MB with the demo model at 224 px, and
12 to 19 MB at 518 px; the command and the page say how much.

A photo that cannot be read is reported, the others are processed, and the exit code is 1.

Examples:
  attnhook view cat.jpg --out cat.html
  attnhook view photos/*.jpg --model hf:facebook/dinov2-small --blocks none
  attnhook view cat.jpg --model timm:vit_base_patch16_224 --matrix-heads all
  attnhook view cat.jpg --blocks 0,5,-1 --matrix-heads mean --out views/
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnhook.cli.arguments import (
    BLOCKS_HELP,
    DEFAULT,
    OPTION_ERRORS,
    add_command,
    add_model,
    blocks_choice,
    counted,
    one_line,
    photo_name,
    photos_of,
    say,
    show,
    whole,
)
from attnhook.errors import AttnhookError, ImageError
from attnhook.files import check_writable
from attnhook.imaging.photo_files import is_folder
from attnhook.options import BlocksOption

if TYPE_CHECKING:
    from attnhook.zoo.vision_models import VisionModel


_NAME = "view.html"


def add(commands: Any) -> None:
    """Add the command."""
    view = add_command(commands, "view", _view, __doc__)
    view.add_argument(
        "images", nargs="+", type=photo_name, metavar="IMAGE", help="image files, folders, or globs in quotes"
    )
    add_model(view)
    view.add_argument(
        "--out",
        default=_NAME,
        metavar="FILE.html",
        help=f"the file; or a folder (one that exists, or a name that ends in /), which then gets {_NAME} {DEFAULT}",
    )
    view.add_argument(
        "--blocks",
        type=_blocks,
        default="auto",
        help="blocks in which you can click a patch to see where it looks: auto (every block whose tokens all attend to each other), none, "
        f"{BLOCKS_HELP} {DEFAULT}",
    )
    view.add_argument(
        "--matrix-heads",
        choices=("auto", "all", "mean"),
        default="auto",
        help="store every head of those blocks, or the mean over heads; auto stores every head of the last of them, if that is at most six "
        f"million values, and the mean over heads of the others {DEFAULT}",
    )
    view.add_argument(
        "--longest",
        type=partial(whole, least=16, expected="a number of pixels, at least 16"),
        default=1280,
        metavar="PIXELS",
        help=f"longer edge of the photos in the file; up to three times as long for panoramas {DEFAULT}",
    )


def _blocks(text: str) -> BlocksOption:
    if text == "auto":
        return text
    return () if text == "none" else blocks_choice(text)


def _view(arguments: argparse.Namespace) -> int:
    from attnhook.comparison.photographs import photo_names
    from attnhook.pages.documents import packed_html, save_viewer
    from attnhook.zoo.loading import load

    out = _target(arguments.out)
    images = photos_of(arguments.images)
    if any(os.path.realpath(image) == os.path.realpath(out) for image in images):
        raise ValueError(f"{out} is one of the images: expected another name. Choose another --out.")
    model = load(arguments.model, device=arguments.device)
    places = [f"[{number}/{len(images)}] {image}" for number, image in enumerate(images, 1)]
    names = photo_names(images)
    packed = [_packed(model, arguments, *photo) for photo in zip(images, names, places, strict=True)]
    scenes = list(filter(None, packed))
    if not scenes:
        raise ImageError(f"nothing to view: expected at least one image, got none of {len(images)} that could be read.")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_viewer(packed_html(scenes, model=model.name), out)
    show(f"{counted(len(scenes), len(images), 'photo')}: {out}, {out.stat().st_size / 1e6:.2f} MB")
    return 0 if len(scenes) == len(images) else 1


def _target(text: str) -> Path:
    """The file that `--out` names."""
    from attnhook.pages.documents import check_page_name

    path = Path(text)
    if text.endswith(("/", os.sep)) or is_folder(path):
        path = path / _NAME
    else:
        check_page_name(path, or_folder=True)
        if not is_folder(path.parent):
            raise ValueError(
                f"no folder for the file: expected {path.parent} to exist. Create it, or choose another --out."
            )
    check_writable(path.parent)
    return path


def _packed(
    model: "VisionModel", arguments: argparse.Namespace, image: Path, name: str, place: str
) -> tuple[dict[str, Any], str] | None:
    """One photo, packed for the page, so that its capture can be freed before the next photo."""
    from attnhook.results.results import attend
    from attnhook.results.scenes import pack_scene

    # The page has its own maps. Received attention is one that every model has, but it needs all rows.
    kept: Any = {"rows": "readout"} if arguments.blocks == () else {"rows": "all", "method": "received_attention"}
    try:
        (result,) = attend(model, str(image), **kept)
        size: Any = {"matrix_heads": arguments.matrix_heads, "longest": arguments.longest}
        packed = pack_scene(result.scene(name), matrices=arguments.blocks, **size)
    except OPTION_ERRORS:
        raise
    except (AttnhookError, OSError) as error:
        say(f"{place}: {one_line(error)}")
        return None
    say(f"{place}: {result.attention.shape[0]} x {result.attention.shape[1]} patches")
    return packed
