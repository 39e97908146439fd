"""`attnhook verify`: captured rows against what the model itself computes."""

import argparse
from pathlib import Path
from typing import Any

from attnhook.cli.arguments import add_command, add_model

_TEXT = """\
Hold captured attention against the model's own output, block by block: softmax rows times
the values must be what the attention kernel returned, and the rows must be those of the
same model with its explicit softmax, where the library offers one. Exit code 1 if any
error is over its tolerance."""
_EXAMPLES = """\
examples:
  attnhook verify --model demo
  attnhook verify --model timm:vit_base_patch16_224 --image cat.jpg"""


def add(commands: Any) -> None:
    """Add the command."""
    verify = add_command(commands, "verify", "captured rows against the model's own output", _TEXT, _EXAMPLES)
    verify.set_defaults(run=_verify)
    add_model(verify)
    verify.add_argument(
        "--image", type=Path, help="a photo (default: random pixels, where the model's input size is fixed)"
    )


def _verify(arguments: argparse.Namespace) -> int:
    import torch

    from attnhook.running.verification import verify
    from attnhook.zoo.loading import load

    loaded = load(arguments.model, device=arguments.device)
    if arguments.image is not None:
        pixels, _ = loaded.preprocess(str(arguments.image))
    elif loaded.input_size is not None:
        pixels = torch.randn(1, 3, *loaded.input_size, generator=torch.Generator().manual_seed(0))
    else:
        raise ValueError("this model has no fixed input size: expected --image PHOTO, got none. Pass a photo.")
    report = verify(loaded.model, pixels)
    print(report)
    return 0 if report.passed else 1
