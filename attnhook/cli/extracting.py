"""Extract the attention of a whole data set into files.

SOURCE is a folder (the first folder below it is a photo's class), a glob in quotes, a text
list (one path per line, optionally followed by a tab and a class), a zip, tar (WebDataset)
or Parquet file, or a glob of those.

The folder gets shards/*.safetensors, index.parquet, statistics.json and manifest.json;
attnhook.open_maps(DIR) reads them in Python, also while the run goes on. Run the same command
again to continue where it stopped, or after photos were added or changed. Photos that cannot be
read are listed in the index with their errors, and the exit code is 1; it is 2 if the run
cannot continue. Under torchrun, each process does a part; the files are the same.

Examples:
  attnhook extract photos --model demo@224 --out maps
  attnhook extract 'shards/*.tar' --model timm:vit_small_patch16_224 --out maps --blocks all --heads mean
  torchrun --nproc-per-node=2 -m attnhook extract photos --model demo@224 --out maps
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from attnhook.cli.arguments import (
    BLOCKS_HELP,
    DEFAULT,
    ROWS_HELP,
    add_command,
    add_model,
    blocks_choice,
    counted,
    rows_choice,
    say,
    show,
)

_SHOWN = 10
_PASSED = ("rows", "blocks", "dtype", "batch_size", "shard_size", "device", "column")  # as they are


def add(commands: Any) -> None:
    """Add the command."""
    extract = add_command(commands, "extract", _extract, __doc__)
    extract.add_argument("source", metavar="SOURCE", help="the photos")
    add_model(extract)
    extract.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder")
    extract.add_argument(
        "--rows",
        type=partial(rows_choice, whole=True),
        default="readout",
        help=f"{ROWS_HELP}, all (whole matrices), or ROW,COLUMN of one patch {DEFAULT}",
    )
    extract.add_argument(
        "--blocks",
        type=blocks_choice,
        default="-1",
        help=f"blocks to store: {BLOCKS_HELP} (default: %(default)s, the last)",
    )
    extract.add_argument(
        "--heads", choices=["each", "mean"], default="each", help=f"store every head, or their mean {DEFAULT}"
    )
    extract.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="METHOD",
        help="also store the maps of a method: raw_attention, rollout, value_weighted_attention, received_attention, gradient_attention, "
        "gradient_rollout or legrad; repeat it for several",
    )
    extract.add_argument(
        "--no-statistics", action="store_true", help="leave out entropy, attention mass and attention distance"
    )
    extract.add_argument(
        "--dtype", choices=["float16", "float32", "uint8"], default="float16", help=f"type of the stored rows {DEFAULT}"
    )
    extract.add_argument("--batch-size", type=int, default=32, metavar="N", help=f"photos per forward {DEFAULT}")
    extract.add_argument(
        "--workers", type=int, metavar="N", help="processes that read photos (default: one per free core)"
    )
    extract.add_argument(
        "--column",
        metavar="NAME",
        help="the column of the photos in Parquet files (default: the only one with images, or the one called image, img, jpg, ...)",
    )
    extract.add_argument("--shard-size", type=int, default=512, metavar="N", help=f"photos per shard {DEFAULT}")


def _extract(arguments: argparse.Namespace) -> int:
    from attnhook.extraction.extract_maps import extract

    maps = extract(
        arguments.model,
        arguments.source,
        arguments.out,
        heads=None if arguments.heads == "each" else arguments.heads,
        methods=arguments.method,
        statistics=not arguments.no_statistics,
        num_workers=arguments.workers,
        **{name: getattr(arguments, name) for name in _PASSED},
    )
    errors = maps.errors
    if os.environ.get("RANK", "0") == "0":
        for key in list(errors)[:_SHOWN]:
            say(f"{key}: {errors[key]}")
        if len(errors) > _SHOWN:
            say(f"and {len(errors) - _SHOWN:,} more: index.parquet has them all")
        show(f"{counted(len(maps), len(maps) + len(errors), 'photo')}: {arguments.out}")
    return 1 if errors else 0
