"""`attnhook describe`: what would be captured from a model."""

import argparse
from typing import Any

from attnhook.cli.arguments import add_command, add_model

_TEXT = """\
Say what would be captured from a model: its attention blocks, the kernel each one runs,
its special tokens, its patch grid, and what its head reads. Names the parts whose
attention is not captured, such as a text tower. Runs one forward on a black image where
the model's input size is fixed."""
_EXAMPLES = """\
examples:
  attnhook describe
  attnhook describe --model timm:vit_small_patch14_reg4_dinov2.lvd142m
  attnhook describe --model hf:google/siglip-base-patch16-224"""


def add(commands: Any) -> None:
    """Add the command."""
    describe = add_command(commands, "describe", "what would be captured from a model", _TEXT, _EXAMPLES)
    describe.set_defaults(run=_describe)
    add_model(describe)


def _describe(arguments: argparse.Namespace) -> int:
    import torch

    from attnhook.running.inspection import describe
    from attnhook.zoo.loading import load

    loaded = load(arguments.model, device=arguments.device)
    pixels = None if loaded.input_size is None else torch.zeros(1, 3, *loaded.input_size)
    print(describe(loaded.model, pixels))
    return 0
