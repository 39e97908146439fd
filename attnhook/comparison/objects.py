"""Objects in photos: reading masks and boxes, and scoring maps against them, compared with controls."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnhook.attribution.scores import auroc, centre_prior, energy_in_mask, iou_at_mass, pointing_game, random_map
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.sampling_grids import SamplingGrid, at_patches
from attnhook.comparison.tables import Estimate, estimate
from attnhook.errors import ImageError, ScoreError
from attnhook.imaging.images import open_image
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Size

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pointing": pointing_game,
    "energy": energy_in_mask,
    "auroc": auroc,
    "iou": iou_at_mass,
}
CONTROLS = ("model", "random_weights", "random_map", "centre_prior")
RANDOM_DRAWS = 20
"""How many random maps are drawn for each photo."""

MaskSource = Any
"""A file, a PIL image, an array or a tensor `(height, width)`; or a box `(left, top, right, bottom)` in pixels, or several, also as an array."""

_OBJECT, _IGNORED = 255, 128


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """Where the object is, and which pixels are not scored: `(height, width)` bool each."""

    inside: Tensor
    ignored: Tensor


def read_mask(source: MaskSource, size: Size, photo: str) -> ObjectMask:
    """Read a mask or boxes; `photo` is the name for messages."""
    if isinstance(source, Tensor | np.ndarray) and source.ndim <= 2 and source.shape[-1:] == (4,):
        source = source if tuple(source.shape) == size else source.tolist()  # boxes, unless it fits as a mask
    boxes = [source] if is_box(source) else source
    if isinstance(boxes, Sequence) and not isinstance(boxes, str) and boxes and all(map(is_box, boxes)):
        return _from_boxes(boxes, size, photo)
    values = _values(source, photo)
    if values.shape != size:
        raise ImageError(
            f"the mask of {photo} does not fit: expected the photo's height and width {size}, got {values.shape}. Masks are never resized."
        )
    found = set(np.unique(values).tolist())
    if not (found <= {0, 1} or found <= {0, _IGNORED, _OBJECT}):
        raise ImageError(
            f"the mask of {photo} has other values: expected 0 and 1, or 0, 128 (ignored) and 255 (object), got values such as "
            f"{sorted(found - {0, 1, _IGNORED, _OBJECT})[:3] or sorted(found)}. Choose one object, or threshold it."
        )
    inside = values == (1 if found <= {0, 1} else _OBJECT)
    if not inside.any():
        raise ImageError(
            f"the mask of {photo} is empty: expected an object, got background everywhere. Pass None for a photo without a mask."
        )
    return ObjectMask(torch.from_numpy(inside), torch.from_numpy(values == _IGNORED))


def is_box(source: Any) -> bool:
    """Whether it is one box, and not a list of them."""
    return isinstance(source, tuple | list) and len(source) == 4 and all(isinstance(edge, Real) for edge in source)


def _from_boxes(boxes: Sequence[Any], size: Size, photo: str) -> ObjectMask:
    inside = torch.zeros(size, dtype=torch.bool, device="cpu")
    rows, columns = (torch.arange(length, dtype=torch.float64, device="cpu") + 0.5 for length in size)
    for left, top, right, bottom in boxes:
        box = ((rows >= top) & (rows <= bottom))[:, None] & ((columns >= left) & (columns <= right))
        if not box.any():
            raise ImageError(
                f"a box of {photo} contains no pixel: expected (left, top, right, bottom) within height x width {size[0]} x {size[1]} pixels, "
                f"got {(left, top, right, bottom)}."
            )
        inside |= box
    return ObjectMask(inside, torch.zeros_like(inside))


def _values(source: Any, photo: str) -> NDArray[Any]:
    if isinstance(source, str | Path):
        if not Path(source).exists():
            raise ImageError(f"no mask of {photo}: expected a file at {source}, got none. Check the path.")
        try:
            with open_image(source) as picture:
                source = picture.convert("L") if picture.mode in {"1", "LA", "RGB", "RGBA"} else picture.copy()
        except Exception as error:  # Pillow's decoders raise whatever damaged pixels lead them into
            raise ImageError(f"the mask of {photo} cannot be read: {source}: {error}") from error
    if isinstance(source, Tensor):
        source = source.detach().cpu().numpy()
    try:
        values = np.asarray(source)
    except (TypeError, ValueError):
        values = np.empty(0, object)
    values = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
    if values.ndim != 2 or values.dtype == object:
        raise ImageError(
            f"this is not a mask of {photo}: expected (height, width) or boxes (left, top, right, bottom), got {type(source).__name__} of "
            f"shape {values.shape}."
        )
    return values


PhotoScores = dict[str, dict[str, Tensor]]
"""By score, then by one of `CONTROLS`: the score of every draw `(draws,)` float64, one but for random maps; NaN where there is none."""


@dataclass(frozen=True)
class ObjectScores:
    """One model, by index, over all photos that have a mask; or what is the same for all models, the centre prior."""

    model: int | None
    area: Estimate  # the object's share of what all models saw: what a map without any knowledge scores
    estimates: dict[str, dict[str, Estimate]]  # by score, then by one of `CONTROLS`


def object_area(sampling: SamplingGrid, seen: Tensor, mask: ObjectMask) -> float:
    """The object's share of the points that are scored; NaN if there are none, or no object among them."""
    counted = seen & ~sampling.nearest(mask.ignored)
    inside = int((sampling.nearest(mask.inside) & counted).sum())
    return inside / int(counted.sum()) if inside else math.nan


def score_prior(sampling: SamplingGrid, seen: Tensor, mask: ObjectMask) -> PhotoScores:
    """Score the centre prior on one photo: the same for all models, because it is scored where all of them looked."""
    counted = seen & ~sampling.nearest(mask.ignored)
    values = centre_prior(sampling.size).masked_fill(~counted, math.nan)
    return {name: {"centre_prior": one} for name, one in _scored(values[None], sampling.nearest(mask.inside)).items()}


def score_photo(
    sampling: SamplingGrid,
    seen: Tensor,
    mask: ObjectMask,
    measurement: Measurement,
    maps: dict[str, PatchMap],
) -> PhotoScores:
    """Score maps of one photo, by control, at the points that all models saw, `seen` `(rows, columns)` bool; several draws in a batch."""
    inside = sampling.nearest(mask.inside)
    counted = seen & ~sampling.nearest(mask.ignored)
    scores: PhotoScores = {name: {} for name in SCORES}
    for control, patch_map in maps.items():
        values = sampling.sample(measurement, patch_map).masked_fill(~counted, math.nan)
        found = _scored(values.reshape(-1, *values.shape[-2:]), inside)
        if (inside & counted).any():
            found["pointing"] = _pointing(measurement, patch_map, counted, mask)
        for name, one in found.items():
            scores[name][control] = one
    return scores


def random_maps(like: PatchMap, *, seed: int) -> PatchMap:
    """Draw random values for the same patches: `(RANDOM_DRAWS, h, w)`."""
    return like.like(torch.stack([random_map(like.grid, seed=seed * RANDOM_DRAWS + n) for n in range(RANDOM_DRAWS)]))


def _scored(values: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Every score of every map of a batch."""
    found = {name: torch.full((len(values),), math.nan, dtype=torch.float64, device="cpu") for name in SCORES}
    for draw, one in enumerate(values):
        for name, score in SCORES.items():
            with suppress(ScoreError):  # nothing of the object, or no background, where all looked; a map without mass
                found[name][draw] = score(one, inside)
    return found


def _pointing(measurement: Measurement, patch_map: PatchMap, counted: Tensor, mask: ObjectMask) -> Tensor:
    """Whether the centre of the highest patch, before interpolation, is on the object, for each draw; ties share."""
    known = at_patches(measurement, patch_map, counted) & ~at_patches(measurement, patch_map, mask.ignored)
    values = patch_map.values.masked_fill(~known, -math.inf).nan_to_num(-math.inf).reshape(-1, *known.shape)
    if not known.any():
        return torch.full((len(values),), math.nan, dtype=torch.float64, device="cpu")
    highest = values == values.amax(dim=(1, 2), keepdim=True)
    on_object = highest & at_patches(measurement, patch_map, mask.inside)
    return on_object.sum(dim=(1, 2)).double() / highest.sum(dim=(1, 2))


def mean_scores(model: int | None, photos: Sequence[PhotoScores], areas: Sequence[float]) -> ObjectScores:
    """Average scores over photos, and random maps over draws, too: their error is that of the draws."""

    def mean(name: str, control: str) -> Estimate:
        draws = [one[name][control] for one in photos if control in one[name]]
        known = torch.stack([one for one in draws if not one.isnan().any()] or [torch.empty(0, device="cpu")])
        if known.shape[1] <= 1:
            return estimate(known.flatten(), interval=True)
        means = estimate(known.mean(dim=0))  # over photos, of every draw
        return Estimate(means.value, len(known), means.error)

    table = {name: {control: mean(name, control) for control in CONTROLS} for name in SCORES}
    return ObjectScores(model, estimate(list(areas)), table)
