"""`attnhook extract`: attention of a whole data set into files."""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from attnhook.cli.arguments import BLOCKS_HELP, add_command, add_model, blocks_choice, rows_choice
from attnhook.cli.messages import say

_SHOWN = 10
_TEXT = """\
Extract the attention of all photos of a data set.

SOURCE is a folder (the first folder below it is a photo's class), a glob in quotes, a text
list (a path a line, a tab and a class may follow), a zip, tar (WebDataset) or Parquet file,
or a glob of those.

The folder gets shards/*.safetensors, index.parquet, statistics.json and manifest.json;
attnhook.open_maps(DIR) reads them in Python, also while the run goes on. Run the same command
again to go on where it stopped, or after photos were added or changed. Photos that cannot be
read stand in the index with their error, and the exit code is 1; 2 if nothing more can be done.
Under torchrun every process takes a part; the files are the same."""
_EXAMPLES = """\
examples:
  attnhook extract photos --model demo@224 --out maps
  attnhook extract 'shards/*.tar' --model timm:vit_small_patch16_224 --out maps --blocks all --heads mean
  torchrun --nproc-per-node=2 -m attnhook extract photos --model demo@224 --out maps"""


def add(commands: Any) -> None:
    """Add the command."""
    extract = add_command(commands, "extract", "attention of a whole data set, into files", _TEXT, _EXAMPLES)
    extract.set_defaults(run=_extract)
    extract.add_argument("source", metavar="SOURCE", help="where the photos are")
    add_model(extract)
    extract.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder")
    extract.add_argument(
        "--rows",
        type=partial(rows_choice, whole=True),
        default="readout",
        help="whose attention: readout (what the head reads), cls, pool, mean, all (whole matrices), or ROW,COLUMN of one patch (default: "
        "%(default)s)",
    )
    extract.add_argument(
        "--blocks",
        type=blocks_choice,
        default="-1",
        help=f"whose rows are stored: {BLOCKS_HELP} (default: %(default)s, the last)",
    )
    extract.add_argument("--heads", choices=["each", "mean"], default="each", help="(default: %(default)s)")
    extract.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="METHOD",
        help="also store the maps of a method: raw_attention, rollout, value_weighted_attention, gradient_attention, gradient_rollout or "
        "legrad; several times for several",
    )
    extract.add_argument("--no-statistics", action="store_true", help="leave out entropy, masses, distances")
    extract.add_argument(
        "--dtype", choices=["float16", "float32", "uint8"], default="float16", help="of the rows (default: %(default)s)"
    )
    extract.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="photos a forward (default: %(default)s)"
    )
    extract.add_argument(
        "--workers", type=int, metavar="N", help="processes that read photos (default: the cores left)"
    )
    extract.add_argument(
        "--shard-size", type=int, default=512, metavar="N", help="photos a shard (default: %(default)s)"
    )


def _extract(arguments: argparse.Namespace) -> int:
    from attnhook.extraction.extract_maps import extract

    maps = extract(
        arguments.model,
        arguments.source,
        arguments.out,
        rows=arguments.rows,
        blocks=arguments.blocks,
        heads=None if arguments.heads == "each" else arguments.heads,
        methods=arguments.method,
        statistics=not arguments.no_statistics,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        shard_size=arguments.shard_size,
        device=arguments.device,
    )
    errors = maps.errors
    if os.environ.get("RANK", "0") == "0":
        for key in list(errors)[:_SHOWN]:
            say(f"{key}: {errors[key]}")
        if len(errors) > _SHOWN:
            say(f"and {len(errors) - _SHOWN:,} more: index.parquet has them all")
        print(f"{len(maps):,} photos, {len(errors):,} failed: {arguments.out}")
    return 1 if errors else 0
