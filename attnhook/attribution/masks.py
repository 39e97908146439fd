"""From a map to a mask: the patches that hold most of its mass."""

import torch
from torch import Tensor

from attnhook.imaging.styles import mass_mask


def attention_mask(patch_map: Tensor, keep: float = 0.6) -> Tensor:
    """The fewest patches that hold a share of the mass, as DINO's pictures show them.

    Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, arXiv 2104.14294. With the patches in descending order, the
    mask is the shortest run from the top whose sum is at least `keep` of the whole; each map has its own, and one without mass an empty one.

    Args:
        patch_map: A map `(h, w)` or several `(..., h, w)`, or one row over patches `(patches,)`; none negative, NaN counts as nothing.
        keep: The share, over 0 and up to 1.

    Returns:
        Boolean, of the same shape.

    Raises:
        ValueError: If `keep` is not a share, a value is negative or infinite, or the map is a single number.

    Example:
        >>> attention_mask(torch.tensor([0.5, 0.1, 0.3, 0.1]), keep=0.7)
        tensor([ True, False,  True, False])
    """
    if patch_map.dim() == 0:
        raise ValueError("no mask of a single number: expected a map (..., h, w) or a row (patches,), got a scalar.")
    last = patch_map.shape[-2:]
    chosen = [mass_mask(one, keep) for one in patch_map.reshape(-1, *last)] if patch_map.dim() > 2 else None
    mask = mass_mask(patch_map, keep) if chosen is None else torch.stack(chosen).reshape(patch_map.shape)
    return mask.to(patch_map.device)
