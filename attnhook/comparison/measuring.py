"""How one model is measured on one photo: one forward under capture, and one with a backward where a method needs gradients."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnhook.attribution.methods import METHODS, NEEDS, method_options
from attnhook.attribution.summaries import summarise_block
from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.session import AttentionCapture
from attnhook.comparison.faithfulness import perturb
from attnhook.comparison.map_kinds import View
from attnhook.comparison.measurements import Measurement
from attnhook.comparison.sampling_grids import points_seen
from attnhook.errors import AttnhookError, GeometryError, ScoreError
from attnhook.imaging.geometry import ImageGeometry
from attnhook.imaging.model_inputs import ModelInputs
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import Rows
from attnhook.running.targets import TargetOption, run_towards
from attnhook.running.vision_forward import run_vision
from attnhook.zoo.vision_models import VisionModel

STATISTICS = {
    "relative_entropy": "entropy of the rows over log N: 1 is uniform",
    "distance": "mean attention distance between patches, in units of the grid's edge",
    "sink_mass": "largest share of the attention that one token receives",
    "patch_mass": "share of the attention on patches",
}
"""What is kept of each block and head, and its meaning."""


class Gauge:
    """Measures one model."""

    def __init__(self, vision: VisionModel, views: Sequence[View], *, statistics: bool, faithful: bool = False) -> None:
        self.vision = vision
        self.views = tuple(views)
        self.statistics, self.faithful = statistics, faithful
        forward = [NEEDS[view.method] for view in views if not NEEDS[view.method].gradients]
        everything = statistics or any(needs.all_rows for needs in forward)
        self._capture = _capture(vision, everything, values=any(needs.values for needs in forward))
        gradients = len(forward) < len(views)
        self._followed = AttentionCapture(vision.model, rows=Rows.ALL, gradients=True) if gradients else None

    def measure(self, photo: Image.Image, target: TargetOption = None) -> Measurement:
        """Measure one photo."""
        prepared = self.vision.prepare(photo)
        inputs, geometry = prepared.inputs, prepared.geometry
        if not all(points.any() for points in points_seen(geometry)):
            raise GeometryError(
                f"{self.vision.name} looks at less than one pixel of a photo of {photo.height} x {photo.width}. Crop it."
            )
        begin = time.perf_counter()
        # No inference mode: models keep tables of their first forward, and want to be trained later.
        with torch.no_grad(), self._capture:
            run_vision(self.vision.model, inputs)
            _wait(self.vision)
        seconds = time.perf_counter() - begin
        maps = self._capture.maps
        found: dict[str, PatchMap] = {}
        problems: dict[str, str] = {}
        with torch.no_grad():
            self._draw(maps, geometry, found, problems, followed=False)
            statistics = _statistics(maps) if self.statistics else {}
        index = self._draw_followed(inputs, geometry, target, found, problems)
        self._capture.clear()
        areas = self._perturbed(inputs, found, target, problems) if self.faithful else {}
        return Measurement(
            geometry=geometry,
            area=maps.patch_area,
            blocks=maps.block_names,
            tokens=maps[-1].shape[3],
            readout=None if maps.readout.rows is None else maps.readout.rows.value,
            seconds=seconds,
            target=index,
            maps=found,
            grids=tuple(block.token_layout.grid for block in maps if isinstance(block.token_layout, TokenLayout)),
            statistics=statistics,
            areas=areas,
            problems=problems,
        )

    def _perturbed(
        self,
        inputs: ModelInputs,
        found: dict[str, PatchMap],
        target: TargetOption,
        problems: dict[str, str],
    ) -> dict[str, dict[str, float]]:
        areas = {}
        for name, patch_map in found.items():
            try:
                areas[name] = perturb(self.vision, inputs, patch_map, target)
            except (AttnhookError, RuntimeError) as error:
                problems[f"{name}, faithfulness"] = str(error)
        return areas

    def _draw(
        self,
        maps: AttentionMaps,
        geometry: ImageGeometry,
        found: dict[str, PatchMap],
        problems: dict[str, str],
        *,
        followed: bool,
    ) -> None:
        for view in self.views:
            if NEEDS[view.method].gradients is not followed:
                continue
            try:
                drawn = _map(maps, view)
                drawn.area_on(geometry)  # that they do not go together is a problem of this map, not of the comparison
                found[view.id] = drawn
            except AttnhookError as error:
                problems[view.id] = str(error)

    def _draw_followed(
        self,
        inputs: ModelInputs,
        geometry: ImageGeometry,
        target: TargetOption,
        found: dict[str, PatchMap],
        problems: dict[str, str],
    ) -> int | None:
        if self._followed is None:
            return None
        try:
            index = run_towards(self._followed, self.vision.model, inputs, target, self.vision.labels)
        except (AttnhookError, RuntimeError) as error:  # also out of memory, or operations that have no gradient
            problems.update({view.id: str(error) for view in self.views if NEEDS[view.method].gradients})
            return None
        self._draw(self._followed.maps, geometry, found, problems, followed=True)
        self._followed.clear()
        return index


def _capture(vision: VisionModel, everything: bool, *, values: bool) -> AttentionCapture:
    if not everything:
        try:
            return AttentionCapture(vision.model, rows=Rows.READOUT, values=values)
        except AttnhookError:  # a head that reads no token: every view says so, all else is measured
            pass
    return AttentionCapture(vision.model, rows=Rows.ALL, values=values)


def _map(maps: AttentionMaps, view: View) -> PatchMap:
    options: dict[str, Any] = method_options(view.method, {"block": view.block(len(maps))})
    found = METHODS[view.method](maps, **options)[0]
    found = replace(found, values=found.values.detach().float().cpu().clone())
    if found.values.isinf().any():
        raise ScoreError(
            f"{view.label}: expected finite values, got infinity. Run the model in a wider type, such as float32."
        )
    return found


def _statistics(maps: AttentionMaps) -> dict[str, Tensor]:
    known: dict[Any, Any] = {}
    rows = [_of_block(block, maps, known) for block in maps]
    heads = max(len(one["relative_entropy"]) for one in rows)
    return {name: torch.stack([_filled(one[name], heads) for one in rows]) for name in STATISTICS}


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


def _filled(values: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(values.double(), (0, length - len(values)), value=math.nan)


def _wait(vision: VisionModel) -> None:
    device = next((p.device for p in vision.model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
