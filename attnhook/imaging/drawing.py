"""`heatmap` and `overlay`, for patch maps and for plain tensors and arrays."""

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attnhook._deprecated import renamed_arguments
from attnhook.errors import GeometryError
from attnhook.imaging.heatmaps import checked_map
from attnhook.imaging.images import ImageSource
from attnhook.imaging.looks import Look
from attnhook.imaging.overlays import blend
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Interpolation, Size

Values: TypeAlias = PatchMap | Tensor | NDArray[Any]


@renamed_arguments(geometry="where")
def heatmap(
    patch_map: Values,
    where: Any,
    *,
    photo: Any = None,
    mode: str = Interpolation.BILINEAR,
    patch_area: Size | None = None,
) -> Tensor:
    """Interpolate a map on the patch grid to the pixels of the photo.

    Args:
        patch_map: A `PatchMap`; or a tensor or array with one value per patch, of shape (..., h, w). NaN marks patches that the model dropped;
            it does not spread beyond their own pixels.
        where: An `ImageGeometry`; or what turned the photo into pixels (a transform, a processor, any callable), together with `photo`.
        photo: If `where` is a preprocessing: the photo, or its (height, width).
        mode: "bilinear", "nearest" (for values that must not be mixed), or "bicubic" (smooth, but overshoots: attention can become negative).
        patch_area: For a tensor or array: height and width of the part of the input that the grid covers, in input pixels from the top left. Not
            needed if the grid covers the input exactly.

    Returns:
        The map at the photo's size, (..., H, W) float32, on the map's device. NaN where the model did not look.

    Raises:
        GeometryError: If `patch_map` is not a map, contains infinity, or does not match the geometry; or if a tensor's grid cannot cover the
            input exactly and there is no `patch_area`.
        ValueError: If `mode` is unknown, or if a `PatchMap`, which knows its own area, comes with one.

    Example:
        >>> from attnhook import ImageGeometry
        >>> seen = ImageGeometry.identity((428, 640)).resize(248).center_crop(224)
        >>> heatmap(torch.rand(2, 14, 14), seen).shape
        torch.Size([2, 428, 640])
    """
    return _as_patch_map(patch_map, patch_area=patch_area).heatmap(where, photo=photo, mode=mode)


@renamed_arguments(image="photo", heatmap="patch_map")
def overlay(
    photo: ImageSource,
    patch_map: Values,
    where: Any = None,
    *,
    patch_area: Size | None = None,
    uniform: float | None = None,
    **look: Any,
) -> Image.Image:
    """Draw a map over its photo.

    Args:
        photo: The photo, as `read_image` takes it.
        patch_map: A single `PatchMap`; a tensor or array with one value per patch, (h, w); or, without `where`, a heat map of the photo's size.
        where: What turned the photo into pixels (a transform, a processor, any callable), or an `ImageGeometry`. Leave it out for a heat map.
        patch_area: For a tensor or array: the part of the input that the grid covers, as `heatmap` takes it.
        uniform: For a tensor or array with scale="uniform": 1/N, one over the number of keys.
        **look: `style`, `colormap`, `alpha`, `scale`, `mode`, `weighted` and the other options of `PatchMap.overlay`, which describes them. For
            a heat map, those without `style`, `mode`, `keep` and `smallest`.

    Returns:
        An RGB image of the photo's size. What the model did not see is faded.

    Raises:
        GeometryError: If map, photo and geometry do not match.
        TypeError: If there is no such option.
        ValueError: If an option has an unknown value, or if a `PatchMap` comes with what it knows itself, its area or `uniform`.

    Example:
        >>> from attnhook import ImageGeometry
        >>> photo = Image.new("RGB", (640, 428))
        >>> overlay(photo, torch.rand(14, 14), ImageGeometry.identity((428, 640)).resize(248).center_crop(224)).size
        (640, 428)
    """
    if where is None and patch_area is None and not isinstance(patch_map, PatchMap):
        return blend(photo, patch_map, Look.of({"uniform": uniform} | look, overlay))
    return _as_patch_map(patch_map, patch_area=patch_area, uniform=uniform).overlay(photo, where, **look)


def _as_patch_map(values: Values, **known: Any) -> PatchMap:
    """A tensor or array as a patch map; a patch map is returned as it is."""
    given = {name: value for name, value in known.items() if value is not None}
    if not isinstance(values, PatchMap | Tensor | np.ndarray | list):
        raise GeometryError(
            f"not a patch map: expected what raw_attention(capture.maps) returns, or a tensor or array, got {type(values).__name__}. The order "
            "is overlay(photo, patch_map, transform) and heatmap(patch_map, geometry)."
        )
    if isinstance(values, PatchMap):
        if given:
            name = next(iter(given))
            raise ValueError(
                f"a PatchMap knows its own {name}: expected no {name}=, got {given[name]}. Leave {name}= out."
            )
        return values
    area = given.get("patch_area")
    if area is not None and (len(area) != 2 or min(area) < 1):
        raise GeometryError(
            f"cannot place the patch grid: expected patch_area=(height, width) of at least 1 pixel each, got {area}. Pass input pixels."
        )
    tensor = torch.as_tensor(values, device=None if isinstance(values, Tensor) else "cpu")
    tensor = tensor if tensor.dtype is torch.bool else checked_map(tensor)
    return PatchMap(tensor, area=area, uniform=given.get("uniform"), quantity="value")
