"""Where patches lie that overlap or are padded: around the centres of the kernels that made them.

A convolution with kernel k, stride s and padding p has its output i around input i * s - p + k / 2, which is the middle of the i-th stretch of s
only if k - s = 2 p. Convolutions in a row add up (Araujo et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import nn

from attnhook.capture.sites import AttentionSite
from attnhook.options import NO_OVERLAP, Overlap, Size

_IMAGE_CHANNELS = 4


@dataclass(frozen=True)
class _Axis:
    """The fields of view along one axis, in pixels."""

    centre: float = 0.5  # of the first position
    step: int = 1  # from one position to the next
    size: int = 1  # of each

    def after(self, kernel: int, stride: int, padding: int, dilation: int) -> "_Axis":
        """The fields of a convolution's output."""
        beyond = dilation * (kernel - 1)
        return _Axis(
            self.centre + (beyond / 2 - padding) * self.step, self.step * stride, self.size + beyond * self.step
        )


def overlaps(
    model: nn.Module, grid_module: nn.Module | None, sites: Sequence[AttentionSite]
) -> tuple[tuple[Size, Overlap], ...]:
    """How patches of each step, (down, across) in pixels, lie: one entry for each convolution that embeds patches, in order.

    Empty where that is not known: where a convolution pads by a rule of its own, or belongs to a CNN, whose paths may differ.
    """
    axes = (_Axis(), _Axis())
    found = []
    for convolution in _embeddings(model, sites) if grid_module is None else _strided(grid_module):
        if type(convolution) not in (nn.Conv2d, nn.Conv3d) or isinstance(convolution.padding, str):
            return ()
        kernel, stride, padding, dilation = (
            one[-2:] for one in (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
        )
        axes = (
            axes[0].after(kernel[0], stride[0], padding[0], dilation[0]),
            axes[1].after(kernel[1], stride[1], padding[1], dilation[1]),
        )
        starts = axes[0].centre - axes[0].step / 2, axes[1].centre - axes[1].step / 2
        reaches = max(0.0, (axes[0].size - axes[0].step) / 2), max(0.0, (axes[1].size - axes[1].step) / 2)
        found.append(((axes[0].step, axes[1].step), Overlap(starts, reaches)))
    return tuple(found)


def _strided(module: nn.Module) -> list[Any]:
    """The convolutions in a module that make grids smaller, in order."""
    return [one for one in module.modules() if isinstance(one, nn.Conv2d | nn.Conv3d) and max(one.stride[-2:]) > 1]


def _embeddings(model: nn.Module, sites: Sequence[AttentionSite]) -> list[Any]:
    """The strided convolutions of a hierarchical vision model outside its attention; none unless all belong to patch embeddings."""
    paths = zip(*(site.name.split(".")[:-1] for site in sites), strict=False)
    root = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, paths)]
    attention = {id(one) for site in sites for one in _strided(site.module)}
    while True:
        inside = [one for one in _strided(model.get_submodule(".".join(root))) if id(one) not in attention]
        if not root or (inside and inside[0].in_channels <= _IMAGE_CHANNELS):
            break
        root = root[:-1]
    embedded = {id(one) for module in model.modules() if "Embed" in type(module).__name__ for one in _strided(module)}
    return inside if all(id(one) in embedded for one in inside) else []


def overlap_of(found: Sequence[tuple[Size, Overlap]], step: tuple[float, float]) -> Overlap:
    """How patches of a step lie: as those of the last convolution whose step divides it, because what follows merges without overlap."""
    fitting = [
        overlap for steps, overlap in found if all(whole % one == 0 for whole, one in zip(step, steps, strict=True))
    ]
    return fitting[-1] if fitting else NO_OVERLAP
