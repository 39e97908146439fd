"""Options that several commands share, how their values are parsed, and messages on stderr."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from attnhook.errors import ImageError, NoReadoutError, TargetError, UnknownBlockError, UnsupportedModelError
from attnhook.options import BlocksOption, Crop, HeadFusion, Interpolation, Rows, RowsOption, Scale, ScaleOption, choose

DEFAULT = "(default: %(default)s)"
BLOCKS_HELP = "all, last:N, or indices (negative from the end) and names with commas between them, such as 0,5,-1 (--blocks=-2,-1)"
ROWS_HELP = "whose attention: readout (what the classifier reads), cls (class token), pool (pooling query), mean (over the patches)"
OPTION_ERRORS = (NoReadoutError, TargetError, UnknownBlockError, UnsupportedModelError)
"""Errors of an option, not of an image: the command fails as a whole."""

_Number = TypeVar("_Number", int, float)
_MODEL_HELP = (
    "timm:NAME, timm:NAME@FILE.safetensors, hf:ID_OR_DIRECTORY, torchvision:NAME, torchvision:NAME@FILE.safetensors, open_clip:NAME/TAG, "
    "open_clip:NAME@FILE.safetensors, demo, demo:timm, demo@SIZE, demo:timm@SIZE, digits"
)


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str | None
) -> argparse.ArgumentParser:
    """Add a command. Its text is the docstring of its module: a line, a description, and examples."""
    about, _, examples = (text or "").partition("Examples:\n")
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about.partition(".\n")[0],
        description=about,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(run=run, parser=made)
    return made


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options for the model and its device."""
    parser.add_argument("--model", default="demo", metavar="SPEC", help=f"one of {_MODEL_HELP} {DEFAULT}")
    parser.add_argument("--device", default="cpu", help=f"where the model runs, such as cuda {DEFAULT}")


def add_map_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for how a map is computed and coloured."""
    parser.add_argument(
        "--method",
        default="raw_attention",
        help="how the map is computed: raw_attention or value_weighted_attention (one block), received_attention (one block, all queries: also "
        "of windowed models), rollout (attention followed through all blocks), or for one class gradient_rollout, gradient_attention, legrad "
        f"{DEFAULT}",
    )
    parser.add_argument(
        "--target",
        type=_index_or_name,
        metavar="CLASS",
        help="index or name of the class, for a method of one class (default: the class with the highest score)",
    )
    parser.add_argument(
        "--block",
        type=_index_or_name,
        default=-1,
        help="index, negative from the end, or name (default: %(default)s, the last)",
    )
    parser.add_argument(
        "--heads", type=heads_choice, default="mean", help=f"mean, max, min, or one head's index {DEFAULT}"
    )
    parser.add_argument(
        "--rows", type=rows_choice, default="readout", help=f"{ROWS_HELP}, or ROW,COLUMN of one patch {DEFAULT}"
    )
    parser.add_argument(
        "--scale",
        type=_scale,
        default="robust",
        help="range of the colours: robust (each picture's 1st to 99th percentile), minmax (its whole range), uniform (multiples of 1/N, the "
        f"share of each of N tokens if attention were uniform, comparable between pictures) or VMIN,VMAX {DEFAULT}",
    )
    parser.add_argument("--colormap", default="plasma", help=f"a matplotlib colormap {DEFAULT}")
    parser.add_argument("--alpha", type=float, help="the map's highest opacity, 0 to 1 (default: 0.85; of a mask 0.6)")
    parser.add_argument(
        "--weighted",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="opacity rises with the value, or is the same everywhere (default: it rises)",
    )
    parser.add_argument(
        "--fade", type=float, default=0.4, help=f"how grey the part is that the model did not see, 0 to 1 {DEFAULT}"
    )
    parser.add_argument(
        "--crop",
        choices=[crop.value for crop in Crop],
        default="photo",
        help=f"show the whole photo, or the part seen {DEFAULT}",
    )
    parser.add_argument(
        "--mode",
        "--interpolation",
        choices=[mode.value for mode in Interpolation],
        default="bilinear",
        help=f"interpolation between patches: %(choices)s; bicubic overshoots {DEFAULT}",
    )


def whole(text: str, *, least: int, expected: str) -> int:
    """Parse a whole number."""
    if not (text.isdecimal() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return int(text)


def _index_or_name(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def heads_choice(text: str) -> int | str:
    """Parse `--heads`."""
    chosen = _index_or_name(text)
    try:
        return chosen if isinstance(chosen, int) else choose(HeadFusion, chosen, "heads").value
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error} Or give one head's index.") from None


def blocks_choice(text: str) -> BlocksOption:
    """Parse `--blocks`: `all` is None, `last:3` is 3, `0,blocks.5.attn,-1` is `[0, "blocks.5.attn", -1]`."""
    if text == "all":
        return None
    if not text.startswith("last:"):
        return [_index_or_name(part) for part in text.split(",")]
    count = text.removeprefix("last:")
    if not count.isdecimal() or int(count) == 0:
        raise argparse.ArgumentTypeError(f"expected a number of blocks such as last:3, got {text!r}")
    return int(count)


def rows_choice(text: str, *, whole: bool = False) -> RowsOption:
    """Parse `--rows`."""
    legal = [rows.value for rows in Rows if whole or rows is not Rows.ALL]
    return text if text in legal else [_pair(text, int, f"{', '.join(legal)} or ROW,COLUMN")]


def _scale(text: str) -> ScaleOption:
    legal = [scale.value for scale in Scale]
    return text if text in legal else _pair(text, float, f"{', '.join(legal)} or VMIN,VMAX")


def _pair(text: str, kind: Callable[[str], _Number], expected: str) -> tuple[_Number, _Number]:
    try:
        first, second = map(kind, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None
    return first, second


def photo_name(text: str) -> Path:
    """A photo, folder or glob. An empty name, such as an unset variable's, is not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty one. The current folder is '.'.")
    return Path(text)


def photos_of(given: Sequence[Path]) -> list[Path]:
    """The photos that were named, with those of folders and globs. Refused if none is there: a model takes seconds to load."""
    from attnhook.imaging.images import check_file
    from attnhook.imaging.photo_files import photo_paths

    photos = [Path(photo) for image in given for photo in photo_paths(image)]
    problems = []
    for photo in photos:
        try:
            check_file(photo)
        except ImageError as error:
            problems.append(one_line(error))
    if len(problems) == len(photos):
        for problem in problems:
            say(problem)
        raise ImageError(f"no photos: expected at least one that can be read, got none of {len(photos)}.")
    return photos


def counted(done: int, total: int, what: str) -> str:
    """How many were done: `4 photos`, or `3 of 4 photos, 1 failed`."""
    named = f"{total:,} {what}{'' if total == 1 else 's'}"
    return named if done == total else f"{done:,} of {named}, {total - done:,} failed"


def one_line(error: BaseException | str) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def say(line: str) -> None:
    """Print a line on stderr. File names may hold control characters for the terminal, so those are shown as `�`."""
    print(printable(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result on stdout."""
    print(printable(text, also="\n\t\N{NO-BREAK SPACE}"), flush=True)


def printable(text: str, *, also: str = "") -> str:
    """Text without control characters, and bytes of file names that are no text, except for some."""
    return "".join(each if each.isprintable() or each in also else "\N{REPLACEMENT CHARACTER}" for each in text)
