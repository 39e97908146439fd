"""Attention weighted by the length of the value vectors: a patch with a short value vector contributes little however much it is attended to."""

import torch
from torch import Tensor

from attnhook.attribution.map_making import make_map
from attnhook.attribution.propagation import require_softmax_weights
from attnhook.attribution.raw_maps import fuse_heads, readout_row
from attnhook.capture.records import AttentionMaps
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadsOption


def value_weighted_attention(maps: AttentionMaps, *, block: int | str = -1, heads: HeadsOption = "mean") -> PatchMap:
    """The readout's attention row of one block, each entry multiplied by the norm of its value vector.

    Kobayashi et al., Attention is Not Only a Weight: Analyzing Transformers with Vector Norms, 2020, arXiv 2004.10102. In each head the map is
    `||A[r, j] v_j|| = A[r, j] ||v_j||` for the readout r and the patches j; then heads are fused. The paper takes the vectors after the output
    projection, `v_j W_O`; here they are taken before it, as the kernel gets them. For a mean readout it is the mean over the patches' rows; for
    an attention pooling, over its queries.

    Args:
        maps: Captured with `values=True` (or `gradients=True`) and any `rows` that include the readout.
        block: Index (negative from the end) or name.
        heads: `"mean"`, `"max"` or `"min"` over heads, one head's index, or None to keep all heads.

    Returns:
        A map of `(batch, h, w)` float32, not negative, or of `(batch, heads, h, w)` for `heads=None`.

    Raises:
        GradientsNotKeptError: Unless captured with `values=True` or `gradients=True`, or if the model calls softmax itself.
        NoReadoutError: If the model's head reads no class token, pooling or mean in this block.
        TokenLayoutError: If the block's keys are not the tokens of one image.
        UnsupportedModelError: If the block does not multiply its values by softmax rows alone.

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
    require_softmax_weights(chosen, "value_weighted_attention")
    weights = readout_row(maps, chosen)
    values = chosen.values
    precise = values.dtype if values.dtype is torch.float64 else torch.float32
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1, dtype=precise)
    norms = norms.repeat_interleave(weights.shape[1] // norms.shape[1], dim=1)  # grouped queries share a value head
    weighted = fuse_heads(chosen.layout.patches((weights * norms).float()), heads, chosen.name)
    return make_map(maps, weighted, [chosen], "value-weighted attention", heads=heads)
