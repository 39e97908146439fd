"""The patch grid that a model's table of positions was made for, by which one sees that it runs at another size."""

import math
from typing import Any

from torch import Tensor, nn

from attnhook.options import Size

_MOST_SPECIAL = 9
"""Most tokens in a table of positions that are no patches: a class token, a distillation token, registers."""


def trained_grid(model: nn.Module) -> Size | None:
    """The patch grid that a model's table of positions was made for."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    table = getattr(model, "pos_embed", None)  # rotary and relative positions are not resampled
    if isinstance(config, dict) and config.get("input_size") and isinstance(patch, tuple):
        if not isinstance(table, Tensor):
            return None
        return config["input_size"][1] // patch[0], config["input_size"][2] // patch[1]
    own = getattr(model, "config", None)
    own = getattr(own, "vision_config", own)
    grid = _grid_of(getattr(own, "image_size", None), getattr(own, "patch_size", None))
    for name, parameter in model.named_parameters():
        if ("pos_embed" in name or "position_embedding" in name) and "text" not in name and parameter.dim() in (2, 3):
            if grid is not None and parameter.shape[-2] >= grid[0] * grid[1]:
                return grid
            for special in range(_MOST_SPECIAL + 1):
                edge = math.isqrt(max(parameter.shape[-2] - special, 0))
                if edge > 1 and edge * edge == parameter.shape[-2] - special:
                    return edge, edge
    return None


def _grid_of(image: Any, patch: Any) -> Size | None:
    """Rows and columns of patches, of sizes as configurations of transformers have them."""
    sizes = [(size, size) if isinstance(size, int) else size for size in (image, patch)]
    if not all(isinstance(size, tuple | list) and len(size) == 2 for size in sizes):
        return None
    (height, width), (tall, wide) = sizes
    return height // tall, width // wide
