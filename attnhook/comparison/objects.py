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
CONTROLS = ("model", "random_weights", "centre_prior", "random_map")

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
    inside = torch.zeros(size, dtype=torch.bool)
    rows, columns = (torch.arange(length) + 0.5 for length in size)
    for left, top, right, bottom in boxes:
        box = ((rows >= top) & (rows <= bottom))[:, None] & ((columns >= left) & (columns <= right))
        if not box.any():
            raise ImageError(
                f"a box of {photo} contains no pixel: expected (left, top, right, bottom) within {size[1]} x {size[0]} pixels (width x height), "
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


@dataclass(frozen=True)
class ObjectScores:
    """One model, by index, over all photos that have a mask."""

    model: int
    estimates: dict[str, dict[str, Estimate]]  # by score, then by one of `CONTROLS`


def score_photo(
    sampling: SamplingGrid,
    seen: Tensor,
    mask: ObjectMask,
    measurement: Measurement,
    maps: dict[str, PatchMap],
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Score a model's map of one photo, and the controls, at the points that all models saw, `seen` `(rows, columns)` bool."""
    inside = sampling.nearest(mask.inside)
    counted = seen & ~sampling.nearest(mask.ignored)
    own = maps["model"]
    patches = maps | {"random_map": own.like(random_map(own.grid, seed=seed))}
    sampled = {control: sampling.sample(measurement, patch_map) for control, patch_map in patches.items()}
    sampled["centre_prior"] = centre_prior(sampling.size)
    scores: dict[str, dict[str, float]] = {name: dict.fromkeys(CONTROLS, math.nan) for name in SCORES}
    for control, values in sampled.items():
        known = values.masked_fill(~counted, math.nan)
        for name, score in SCORES.items():
            with suppress(ScoreError):  # nothing of the object, or no background, where all looked; a map without mass
                scores[name][control] = float(score(known, inside))
        if control in patches and (inside & counted).any():
            scores["pointing"][control] = _pointing(measurement, patches[control], counted, mask)
    return scores


def _pointing(measurement: Measurement, patch_map: PatchMap, counted: Tensor, mask: ObjectMask) -> float:
    """Whether the centre of the highest patch, before interpolation, is on the object; ties share."""
    known = at_patches(measurement, patch_map, counted) & ~at_patches(measurement, patch_map, mask.ignored)
    values = patch_map.values.masked_fill(~known, -math.inf).nan_to_num(-math.inf)
    highest = values == values.max()
    return float(at_patches(measurement, patch_map, mask.inside)[highest].double().mean()) if known.any() else math.nan


def mean_scores(model: int, photos: "Sequence[dict[str, dict[str, float]]]") -> ObjectScores:
    """Average a model's scores over photos."""
    table = {
        name: {control: estimate([one[name][control] for one in photos]) for control in CONTROLS} for name in SCORES
    }
    return ObjectScores(model, table)
