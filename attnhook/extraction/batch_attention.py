"""The model's attention for one batch: rows, and maps of methods. One forward for all of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution.methods import METHODS, NEEDS, method_options, reads_block
from attnhook.capture.records import AttentionMaps
from attnhook.capture.session import AttentionCapture
from attnhook.capture.windows import PackedLayout, WindowLayout
from attnhook.errors import ExtractionError
from attnhook.extraction.settings import Settings
from attnhook.imaging.model_inputs import ModelInputs, with_pixels
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, Rows
from attnhook.results.display import rows_in_words
from attnhook.running.targets import class_scores, run_vision
from attnhook.running.training_state import SEED
from attnhook.zoo.vision_models import VisionModel


@dataclass(eq=False)
class BatchAttention:
    """The attention of one forward, on the CPU once `wait` has returned."""

    maps: AttentionMaps
    methods: dict[str, PatchMap]  # of (photos, h, w) float32
    # Each method's block (or the last one that it combines), heads, rows, and PatchMap.facts().
    method_facts: dict[str, dict[str, Any]]
    targets: list[int] | None = None  # the class that class-specific methods explain, one per photo
    _copied: Any = field(default=None, repr=False)

    def wait(self) -> None:
        """Wait until everything has arrived on the CPU."""
        if self._copied is not None:
            self._copied.synchronize()


class BatchForwards:
    """Runs a model on batches, and reads its attention."""

    def __init__(self, vision: VisionModel, settings: Settings) -> None:
        self.vision, self.settings = vision, settings
        rows = settings.rows if isinstance(settings.rows, str) else list(settings.rows)  # a tuple may also be a patch
        self.capture = AttentionCapture(vision.model, rows=rows, blocks=settings.blocks)
        needs = [NEEDS[name] for name in settings.methods]
        self._gradients = any(need.gradients for need in needs)
        rows = Rows.ALL if any(need.all_rows for need in needs) else Rows.READOUT
        kept: Any = {"gradients": self._gradients, "values": any(need.values for need in needs)}
        self._method_capture = AttentionCapture(vision.model, rows=rows, **kept) if needs else None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Keep the hooks in place."""
        with ExitStack() as stack:
            stack.enter_context(self.capture)
            if self._method_capture is not None:
                stack.enter_context(self._method_capture)
            yield

    def run(self, inputs: ModelInputs, photos: int) -> BatchAttention:
        """Run the model on a batch, inside `hooked`."""
        torch.default_generator.manual_seed(SEED)  # models that draw random numbers draw the same, whatever ran before
        self.capture.clear()
        if self._method_capture is not None:
            self._method_capture.clear()
        targets = self._forward(inputs)
        maps = self.capture.maps
        _check_separable(maps, photos)
        attention = BatchAttention(maps, {}, {}, targets)
        if self._method_capture is not None:
            self._add_methods(attention, self._method_capture.maps)
        return _on_cpu(attention)

    def _forward(self, inputs: ModelInputs) -> list[int] | None:
        model = self.vision.model
        if not self._gradients:
            with torch.no_grad():
                run_vision(model, inputs)
            return None
        with torch.enable_grad():  # the sum of each photo's highest score: photos do not affect each other
            leaf = inputs.pixels.detach().clone().requires_grad_()
            highest = class_scores(model, run_vision(model, with_pixels(inputs, leaf))).max(dim=1)
            torch.autograd.grad(highest.values.sum(), leaf, allow_unused=True)
        targets: list[int] = highest.indices.tolist()
        return targets

    def _add_methods(self, attention: BatchAttention, maps: AttentionMaps) -> None:
        """Methods of one block read the last block whose rows are stored, the others all blocks of the model."""
        for name in self.settings.methods:
            block = maps[attention.maps[-1].name if reads_block(name) else -1]
            options = {"block": block.name, "heads": HeadFusion.MEAN.value}
            patch_map = attention.methods[name] = METHODS[name](maps, **method_options(name, options))
            attention.method_facts[name] = {**options, "rows": rows_in_words(maps), "map": patch_map.facts()}


def _check_separable(maps: AttentionMaps, photos: int) -> None:
    """Refuse photos whose tokens have an order of their own, or share one sequence: their rows cannot be separated."""
    for block in maps:
        layout = block.token_layout
        windows = layout.num_windows if isinstance(layout, WindowLayout) else 1
        orders = (getattr(one, "order", None) for one in (layout, block.query_token_layout))
        separable = block.shape[0] == photos * windows and all(order is None or len(order) == 1 for order in orders)
        if photos > 1 and not (separable and not isinstance(layout, PackedLayout)):
            raise ExtractionError(
                f"the rows of block {block.name!r} cannot be separated by photo: expected each photo's tokens alone and in the same order, "
                f"got {photos} photos in {block.shape[0]} entries, or an order for each photo. Use batch_size=1."
            )


def _on_cpu(attention: BatchAttention) -> BatchAttention:
    """Copy to the CPU; from a GPU, only begin to."""
    if not any(block.captured.device.type == "cuda" for block in attention.maps):
        # On the CPU whole matrices become dense where they are written.
        methods = {name: found.to("cpu") for name, found in attention.methods.items()}
        return replace(attention, maps=attention.maps.to("cpu"), methods=methods)
    maps = attention.maps.with_blocks([replace(block, captured=_pinned(block.rows)) for block in attention.maps])
    methods = {name: replace(found, values=_pinned(found.values)) for name, found in attention.methods.items()}
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return replace(attention, maps=maps, methods=methods, _copied=copied)


def _pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
