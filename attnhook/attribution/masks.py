"""The mask of the patches that hold most of a map's mass."""

import torch
from torch import Tensor

from attnhook.imaging.styles import mass_mask


def attention_mask(patch_map: Tensor, keep: float = 0.6) -> Tensor:
    """The fewest patches that hold a share of the mass, as in DINO's figures.

    Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, arXiv 2104.14294. Sorted by value, these are the first
    patches whose sum is at least `keep` of the total. Every map has its own mask; a map without mass has an empty one.

    Args:
        patch_map: A map `(h, w)` or several `(..., h, w)`, or one row over patches `(patches,)`; not negative, NaN counts as 0.
        keep: The share of the mass, above 0 and at most 1.

    Returns:
        Boolean, of the same shape.

    Raises:
        ValueError: If `keep` is out of range, a value is negative or infinite, or the map is a single number.

    Example:
        >>> attention_mask(torch.tensor([0.5, 0.1, 0.3, 0.1]), keep=0.7)
        tensor([ True, False,  True, False])
    """
    if patch_map.dim() == 0:
        raise ValueError(
            "cannot make a mask of a single number: expected a map (..., h, w) or a row (patches,), got a scalar. Pass the whole map."
        )
    singles = patch_map.reshape(-1, *patch_map.shape[-2:]) if patch_map.dim() > 2 else patch_map[None]
    masks = [mass_mask(one, keep) for one in singles]
    return torch.stack(masks).reshape(patch_map.shape).to(patch_map.device) if masks else patch_map.bool()
