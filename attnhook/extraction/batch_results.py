"""What a model gives of one batch: rows, statistics, maps of methods. One forward for all of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attnhook.attribution.methods import METHODS, NEEDS, method_options
from attnhook.capture.packing import PackedLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.session import AttentionCapture
from attnhook.capture.windows import WindowLayout
from attnhook.errors import ExtractionError
from attnhook.extraction.settings import Settings
from attnhook.imaging.model_inputs import ModelInputs, with_pixels
from attnhook.imaging.patch_maps import PatchMap
from attnhook.options import HeadFusion, Rows
from attnhook.results.captions import reads_block, rows_in_words
from attnhook.running.forward_passes import run_vision
from attnhook.running.targets import class_scores
from attnhook.running.training_state import SEED
from attnhook.zoo.vision_models import VisionModel


@dataclass(eq=False)
class Seen:
    """What one forward gave, on its way to the disk.

    Attributes:
        maps: The rows, on the CPU once `wait` has returned.
        methods: The maps of each method, `(photos, h, w)` float32, likewise.
        made: What each method's map is of: its block (or the last that it follows), heads, whose row, and what a `PatchMap` knows.
        targets: The class that class-specific methods are of, one a photo, or None.
    """

    maps: AttentionMaps
    methods: dict[str, PatchMap]
    made: dict[str, dict[str, Any]]
    targets: list[int] | None = None
    _copied: Any = field(default=None, repr=False)

    def wait(self) -> None:
        """Return once everything has arrived."""
        if self._copied is not None:
            self._copied.synchronize()


class BatchForwards:
    """A model with its hooks in place: batches in, attention out."""

    def __init__(self, vision: VisionModel, settings: Settings) -> None:
        self.vision, self.settings = vision, settings
        self.capture = AttentionCapture(vision.model, rows=settings.rows, blocks=settings.blocks)
        self._methods = settings.methods
        needs = [NEEDS[name] for name in settings.methods]
        self._gradients = any(need.gradients for need in needs)
        self._whole = None
        if needs:
            everything = any(need.all_rows for need in needs)
            self._whole = AttentionCapture(
                vision.model,
                rows=Rows.ALL if everything else Rows.READOUT,
                gradients=self._gradients,
                values=any(need.values for need in needs),
            )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep the hooks in place."""
        with ExitStack() as stack:
            for capture in (self.capture, self._whole):
                if capture is not None:
                    stack.enter_context(capture)
            yield

    def run(self, inputs: ModelInputs, photos: int) -> Seen:
        """Run the model on a batch; inside `open`."""
        torch.default_generator.manual_seed(SEED)  # models that draw, draw alike whatever ran before
        self.capture.clear()
        if self._whole is not None:
            self._whole.clear()
        targets = self._run(inputs)
        maps = self.capture.maps
        _refuse_ordered(maps, photos)
        seen = Seen(maps, {}, {}, targets)
        if self._whole is not None:
            self._add_methods(seen, self._whole.maps)
        return _sent(seen)

    def _run(self, inputs: ModelInputs) -> list[int] | None:
        model = self.vision.model
        if not self._gradients:
            with torch.no_grad():
                run_vision(model, inputs)
            return None
        with torch.enable_grad():  # every photo's own highest score; photos do not see each other
            leaf = inputs.pixels.detach().clone().requires_grad_()
            highest = class_scores(model, run_vision(model, with_pixels(inputs, leaf))).max(dim=1)
            torch.autograd.grad(highest.values.sum(), leaf, allow_unused=True)
        chosen: list[int] = highest.indices.tolist()
        return chosen

    def _add_methods(self, seen: Seen, maps: AttentionMaps) -> None:
        """Methods of one block are of the last whose rows are stored, the others of all blocks of the model."""
        for name in self._methods:
            block = maps[seen.maps[-1].name if reads_block(name) else -1]
            chosen = {"block": block.name, "heads": HeadFusion.MEAN.value}
            found = seen.methods[name] = METHODS[name](maps, **method_options(name, chosen))
            seen.made[name] = {**chosen, "rows": rows_in_words(maps), "map": found.facts()}


def _refuse_ordered(maps: AttentionMaps, photos: int) -> None:
    """Rows of photos whose tokens stand in an order of their own, or together in one sequence, cannot be cut apart."""
    for block in maps:
        layout = block.token_layout
        windows = layout.num_windows if isinstance(layout, WindowLayout) else 1
        orders = (getattr(one, "order", None) for one in (layout, block.query_token_layout))
        apart = block.shape[0] == photos * windows and all(order is None or len(order) == 1 for order in orders)
        if photos > 1 and not (apart and not isinstance(layout, PackedLayout)):
            raise ExtractionError(
                f"the rows of block {block.name!r} cannot be told apart by photo: expected each photo's tokens alone and in the same order, "
                f"got {photos} photos in {block.shape[0]} entries, or an order of each photo's own. Use batch_size=1."
            )


def _sent(seen: Seen) -> Seen:
    """Begin to copy to the CPU."""
    if not any(block.captured.device.type == "cuda" for block in seen.maps):
        # On the CPU whole matrices become dense where they are written.
        methods = {name: found.to("cpu") for name, found in seen.methods.items()}
        return replace(seen, maps=seen.maps.to("cpu"), methods=methods)
    blocks: list[BlockAttention] = [replace(block, captured=_pinned(block.rows)) for block in seen.maps]
    maps = seen.maps.with_blocks(blocks)
    methods = {name: replace(found, values=_pinned(found.values)) for name, found in seen.methods.items()}
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return replace(seen, maps=maps, methods=methods, _copied=copied)


def _pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
