"""Show what can be captured from a model.

Lists its attention blocks, the kernel that each one runs, its special tokens (such as the
class token and registers, extra tokens that belong to no patch), its patch grid, and its
readout: what its classifier reads. Names the parts whose attention is not captured, such as
a text tower. Runs one forward on a black image if the model has a fixed input size.

Examples:
  attnhook describe
  attnhook describe --model timm:vit_small_patch14_reg4_dinov2.lvd142m
  attnhook describe --model hf:google/siglip-base-patch16-224
"""

import argparse
from typing import Any

from attnhook.cli.arguments import add_command, add_model, show


def add(commands: Any) -> None:
    """Add the command."""
    add_model(add_command(commands, "describe", _describe, __doc__))


def _describe(arguments: argparse.Namespace) -> int:
    import torch

    from attnhook.running.inspection import describe
    from attnhook.zoo.loading import load

    loaded = load(arguments.model, device=arguments.device)
    pixels = None if loaded.input_size is None else torch.zeros(1, 3, *loaded.input_size, device="cpu")
    show(str(describe(loaded.model, pixels)))
    return 0
