"""Browse a training log in one HTML file.

Reads what a DirectoryWriter wrote, or is still writing, and makes a page with a slider over
the steps, the pictures of each step, and curves of entropy, other statistics and alarms. The
page contains the pictures, opens from disk in any browser since 2023, and needs no network.

Examples:
  attnhook log attention-log
  attnhook log attention-log --out run-1.html --steps 20
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from attnhook.cli.arguments import DEFAULT, add_command, whole


def add(commands: Any) -> None:
    """Add the command."""
    log = add_command(commands, "log", _log, __doc__)
    log.add_argument("folder", type=Path, metavar="LOGDIR", help="the folder that a DirectoryWriter writes into")
    log.add_argument("--out", type=Path, default=Path("log.html"), help=f"the file {DEFAULT}")
    log.add_argument(
        "--steps",
        type=partial(whole, least=2, expected="a number of steps, at least 2"),
        default=100,
        help=f"show the pictures of at most this many steps, evenly spread over the run {DEFAULT}",
    )


def _log(arguments: argparse.Namespace) -> int:
    from attnhook.monitoring.integrations.directory import DirectoryWriter

    if not arguments.out.parent.is_dir():
        raise ValueError(
            f"no folder for the file: expected {arguments.out.parent} to exist. Create it, or choose another --out."
        )
    DirectoryWriter(arguments.folder).to_html(arguments.out, steps=arguments.steps)
    print(f"{arguments.out}, {arguments.out.stat().st_size / 1e6:.2f} MB")
    return 0
