"""Attention weighted by what is attended to: a value vector may be next to nothing however much attention it gets.

It is read off the forward pass, as raw attention is: no class, no gradient.
"""

import torch
from torch import Tensor

from attnhook.attribution.map_making import make_map
from attnhook.attribution.raw_maps import fuse_heads, readout_row
from attnhook.attribution.readouts import check_rows_multiply_values
from attnhook.capture.records import AttentionMaps
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadsOption


def value_weighted_attention(maps: AttentionMaps, *, block: int | str = -1, heads: HeadsOption = "mean") -> PatchMap:
    """The readout's attention row of one block, each entry times the length of the value vector that it multiplies.

    Kobayashi et al., Attention is Not Only a Weight: Analyzing Transformers with Vector Norms, 2020, arXiv 2004.10102. In each head the map is
    `||A[r, j] v_j|| = A[r, j] ||v_j||` for the readout r and the patches j. The paper's vectors are behind the output projection,
    `v_j W_O`; here they are before it, as the kernel is given them, one head at a time, which are then fused. For a mean readout it is the mean
    over the patches' rows; for an attention pooling, over its queries.

    Args:
        maps: Captured with `values=True` (or `gradients=True`); any `rows` that hold the readout.
        block: Index (negative from the end) or name.
        heads: `"mean"`, `"max"` or `"min"` over heads, one head's index, or None to keep all heads.

    Returns:
        A map of `(batch, h, w)` float32, not negative, or of `(batch, heads, h, w)` for `heads=None`.

    Raises:
        GradientsNotKeptError: Unless captured with `values=True` or `gradients=True`, or where the model spells its softmax out.
        NoReadoutError: If the model's head reads no class token, pooling or mean in this block.
        TokenLayoutError: If the block's keys are not the tokens of one image.
        UnsupportedModelError: If the block multiplies its values by something else than softmax rows.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, value_weighted_attention
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with torch.inference_mode(), AttentionCapture(model, values=True) as capture:
        ...     logits = model(torch.randn(2, 3, 224, 224))
        >>> value_weighted_attention(capture.maps).shape
        torch.Size([2, 14, 14])
    """
    chosen = maps[block]
    check_rows_multiply_values(chosen, "value_weighted_attention")
    weights = readout_row(maps, chosen)
    values = chosen.values
    precise = values.dtype if values.dtype is torch.float64 else torch.float32
    lengths: Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=precise)
    lengths = lengths.repeat_interleave(weights.shape[1] // lengths.shape[1], dim=1)
    found = fuse_heads(chosen.layout.patches((weights * lengths).float()), heads, chosen.name)
    return make_map(maps, found, [chosen], "value-weighted attention", heads=heads)
