"""Check captured attention against the model's own output.

Checks every block: softmax rows times the values must be what the attention kernel returned,
and the rows must be those of the same model with its explicit softmax, if the library has
one. The exit code is 1 if any error exceeds its tolerance.

Examples:
  attnhook verify --model demo
  attnhook verify --model timm:vit_base_patch16_224 --image cat.jpg
"""

import argparse
from pathlib import Path
from typing import Any

from attnhook.cli.arguments import add_command, add_model, show


def add(commands: Any) -> None:
    """Add the command."""
    verify = add_command(commands, "verify", _verify, __doc__)
    add_model(verify)
    verify.add_argument(
        "--image", type=Path, help="a photo (default: random pixels, if the model has a fixed input size)"
    )


def _verify(arguments: argparse.Namespace) -> int:
    import torch

    from attnhook.running.verification import verify
    from attnhook.zoo.loading import load

    loaded = load(arguments.model, device=arguments.device)
    if arguments.image is not None:
        pixels, _ = loaded.preprocess(str(arguments.image))
    elif loaded.input_size is not None:
        pixels = torch.randn(1, 3, *loaded.input_size, generator=torch.Generator().manual_seed(0), device="cpu")
    else:
        raise ValueError("this model has no fixed input size: expected --image PHOTO, got none. Pass a photo.")
    report = verify(loaded.model, pixels)
    show(str(report))
    return 0 if report.passed else 1
