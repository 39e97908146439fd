"""How a model is measured on a photo: a forward under capture, a backward if a method needs it, and deletion and insertion.

Deletion and insertion measure how a model reacts to images unlike those it was trained on (Petsiuk et al. 2018, arXiv 1806.07421), so only the
difference from the random map means something.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attnhook.attribution.map_making import placed
from attnhook.attribution.methods import METHODS, NEEDS, method_options
from attnhook.attribution.perturbation import deletion, insertion
from attnhook.attribution.scores import random_map
from attnhook.attribution.summaries import summarise_block
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.session import AttentionCapture
from attnhook.comparison.measurements import MapKind, Measurement
from attnhook.comparison.sampling_grids import points_seen
from attnhook.comparison.tables import Estimate, estimate
from attnhook.errors import AttnhookError, GeometryError, ScoreError
from attnhook.imaging.model_inputs import ModelInputs, with_pixels
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Rows, Size
from attnhook.running.targets import TargetOption, class_index, class_scores, run_towards, run_vision
from attnhook.zoo.vision_models import VisionModel

CURVES = ("deletion", "random_deletion", "insertion", "random_insertion")


@dataclass(frozen=True)
class Faithfulness:
    """One model, by index, over all photos."""

    model: int
    areas: dict[str, Estimate]  # under each of `CURVES`
    gains: dict[str, Estimate]  # of "deletion" and "insertion" over the random map, per photo; positive is better


def perturb(
    vision: VisionModel,
    inputs: ModelInputs,
    patch_map: PatchMap,
    target: TargetOption,
    *,
    steps: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Areas under the `CURVES` of one photo. Removed pixels become 0, which is mid-grey for most models."""

    def scores(given: ModelInputs) -> Tensor:
        with torch.no_grad():
            return class_scores(vision.model, run_vision(vision.model, given))

    whole = scores(inputs)
    index = int(whole[0].argmax()) if target is None else class_index(target, vision.labels, whole.shape[1])
    pixels = inputs.pixels
    (height, width), (rows, columns) = patch_map.area or pixels.shape[-2:], pixels.shape[-2:]
    top, left = (math.floor(start + 0.5) for start in patch_map.overlap.start)
    # Where the patch embedding pads, patches reach beyond the pixels.
    covered = torch.nn.functional.pad(pixels, (-left, left + width - columns, -top, top + height - rows))
    down, across = slice(max(top, 0), top + height), slice(max(left, 0), left + width)

    def score(changed: Tensor) -> Tensor:
        perturbed = pixels.clone()
        inside = changed[..., max(-top, 0) :, max(-left, 0) :]
        perturbed[..., down, across] = inside[..., : rows - down.start, : columns - across.start]
        return scores(with_pixels(inputs, perturbed)).float().softmax(dim=-1)[:, index].cpu()

    grid = patch_map.grid
    count = min(steps, grid[0] * grid[1])
    areas = {}
    for prefix, values in {"": patch_map.values[None], "random_": random_map(grid, seed=seed)[None]}.items():
        areas[f"{prefix}deletion"] = float(deletion(score, covered, values, steps=count).area)
        areas[f"{prefix}insertion"] = float(insertion(score, covered, values, steps=count).area)
    return areas


def _seen_area(maps: AttentionMaps) -> Size | None:
    """Where what the patches see of the input ends, in pixels from the top left."""
    area, layout = maps.patch_area, maps[-1].token_layout
    if area is None or not isinstance(layout, TokenLayout):
        return area
    place = placed(maps, torch.empty(layout.grid, device="cpu"), maps[-1])
    down, across = (start + reach for start, reach in zip(place.overlap.start, place.overlap.reach, strict=True))
    return round(area[0] + down), round(area[1] + across)


def mean_faithfulness(model: int, photos: Sequence[dict[str, float]]) -> Faithfulness:
    """Average over photos."""
    areas = {name: estimate([one[name] for one in photos]) for name in CURVES}
    gains = {
        "deletion": estimate([one["random_deletion"] - one["deletion"] for one in photos], interval=True),
        "insertion": estimate([one["insertion"] - one["random_insertion"] for one in photos], interval=True),
    }
    return Faithfulness(model, areas, gains)


STATISTICS = {
    "relative_entropy": "entropy of the rows divided by log N; 1 is uniform attention",
    "distance": "mean attention distance between patches, in units of the grid's edge",
    "sink_mass": "largest share of the attention that one token receives",
    "patch_mass": "share of the attention on patches",
}
"""What is measured for each block and head, and what it means."""


class ModelMeasurer:
    """Measures one model."""

    def __init__(
        self, vision: VisionModel, views: Sequence[MapKind], *, statistics: bool, faithfulness: bool = False
    ) -> None:
        self.vision = vision
        self.statistics, self.faithfulness = statistics, faithfulness
        self._forward = [view for view in views if not NEEDS[view.method].gradients]
        self._backward = [view for view in views if NEEDS[view.method].gradients]
        needs = [NEEDS[view.method] for view in self._forward]
        values = any(one.values for one in needs)
        rows = Rows.ALL if statistics or any(one.all_rows for one in needs) else Rows.READOUT
        try:
            self._capture = AttentionCapture(vision.model, rows=rows, values=values)
        except AttnhookError:  # without a readout token, every view reports that, and the rest is measured
            self._capture = AttentionCapture(vision.model, rows=Rows.ALL, values=values)
        self._gradients = AttentionCapture(vision.model, rows=Rows.ALL, gradients=True) if self._backward else None

    def measure(self, photo: Image.Image, target: TargetOption = None) -> Measurement:
        """Measure one photo."""
        prepared = self.vision.prepare(photo)
        inputs, geometry = prepared.inputs, prepared.geometry
        if not all(points.any() for points in points_seen(geometry)):
            raise GeometryError(
                f"{self.vision.name} looks at less than one pixel of a photo of {photo.height} x {photo.width}. Crop it."
            )
        begin = time.perf_counter()
        # No inference mode: models cache tables in their first forward, and may be trained later.
        with torch.no_grad(), self._capture:
            run_vision(self.vision.model, inputs)
            _wait(self.vision)
        seconds = time.perf_counter() - begin
        maps = self._capture.maps
        with torch.no_grad():
            measurement = Measurement(
                geometry=geometry,
                area=_seen_area(maps),
                blocks=maps.block_names,
                tokens=maps[-1].shape[3],
                readout=None if maps.readout.rows is None else maps.readout.rows.value,
                seconds=seconds,
                grids=tuple(block.token_layout.grid for block in maps if isinstance(block.token_layout, TokenLayout)),
                statistics=_statistics(maps) if self.statistics else {},
            )
            _add_maps(measurement, maps, self._forward)
        self._capture.clear()
        if self._gradients is not None:
            measurement = self._with_gradients(measurement, self._gradients, inputs, target)
        if self.faithfulness:
            self._add_areas(measurement, inputs, target)
        return measurement

    def _with_gradients(
        self, measurement: Measurement, capture: AttentionCapture, inputs: ModelInputs, target: TargetOption
    ) -> Measurement:
        try:
            index, _ = run_towards(capture, self.vision.model, inputs, target, self.vision.labels)
        except (AttnhookError, RuntimeError) as error:  # also out of memory, or operations that have no gradient
            measurement.problems.update(dict.fromkeys([view.id for view in self._backward], str(error)))
            return measurement
        _add_maps(measurement, capture.maps, self._backward)
        capture.clear()
        return replace(measurement, target=index)

    def _add_areas(self, measurement: Measurement, inputs: ModelInputs, target: TargetOption) -> None:
        for name, patch_map in measurement.maps.items():
            try:
                measurement.areas[name] = perturb(self.vision, inputs, patch_map, target)
            except (AttnhookError, RuntimeError) as error:
                measurement.problems[f"{name}, faithfulness"] = str(error)


def _add_maps(measurement: Measurement, maps: AttentionMaps, views: Sequence[MapKind]) -> None:
    for view in views:
        try:
            found = _map(maps, view)
            found.area_on(measurement.geometry)  # a mismatch is a problem of this map, not of the comparison
            measurement.maps[view.id] = found
        except (AttnhookError, IndexError) as error:  # an index error: this model has no such head
            measurement.problems[view.id] = str(error)


def _map(maps: AttentionMaps, view: MapKind) -> PatchMap:
    options: dict[str, Any] = method_options(view.method, {"block": view.block(len(maps)), "heads": view.heads})
    found = METHODS[view.method](maps, **options)[0]
    found = replace(found, values=found.values.detach().float().cpu().clone())
    if found.values.isinf().any():
        raise ScoreError(
            f"{view.label}: expected finite values, got infinity. Run the model in a wider type, such as float32."
        )
    return found


def _statistics(maps: AttentionMaps) -> dict[str, Tensor]:
    known: dict[Any, Any] = {}
    blocks = [_of_block(block, maps, known) for block in maps]
    by_name = {name: [one[name].double() for one in blocks] for name in STATISTICS}
    return {name: pad_sequence(rows, batch_first=True, padding_value=math.nan) for name, rows in by_name.items()}


def _of_block(block: BlockAttention, maps: AttentionMaps, known: dict[Any, Any]) -> dict[str, Tensor]:
    summary = summarise_block(block, maps.readout, maps.selected_rows, known=known).cpu()
    layout = block.token_layout
    edge = math.sqrt(math.prod(layout.grid)) if isinstance(layout, TokenLayout) else math.nan
    on_patches = torch.full_like(summary.entropy, math.nan)
    if summary.patches is not None:
        on_patches = (summary.received * summary.patches[:, None]).sum(dim=-1).mean(dim=0)
    return {
        "relative_entropy": summary.relative_entropy,
        "distance": summary.distance / edge,
        "sink_mass": summary.sink_mass,
        "patch_mass": on_patches,
    }


def _wait(vision: VisionModel) -> None:
    device = next((p.device for p in vision.model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
