"""What one forward recorded, and how it becomes `AttentionMaps`: every operation that can wait until the maps are read does."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.anatomy import SequenceInfo
from attnhook.capture.calls import CapturedCall, FastLogits, finish_together
from attnhook.capture.layout import TokenLayout, pixels_per_step
from attnhook.capture.plan import CapturePlan
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.sites import AttentionSite, Kernel, Queries, SiteTokens
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.windows import PackedLayout
from attnhook.errors import AttnhookError, BlockNotCapturedError, TokenLayoutError
from attnhook.options import Size

_NO_TOKENS = SequenceInfo()
SequenceLayout = TokenLayout | PackedLayout | str
"""The layout of the whole sequence, or why there is none."""


@dataclass(eq=False)
class ForwardRecord:
    """What one forward recorded."""

    calls: list[CapturedCall] = field(default_factory=list)  # in the order in which they ran
    ran: set[str] = field(default_factory=set)  # the sites whose forward ran
    errors: dict[str, AttnhookError] = field(default_factory=dict)  # by site, why a call could not be recorded
    unexpected: dict[str, str] = field(default_factory=dict)  # unrecognised modules that attended, and their types
    listed: bool = False  # whether it is among those of its capture
    begun: bool = False  # whether the model's forward began, or only attention modules were called
    input_size: Size | None = None  # of the images that went in, in pixels
    batch: int | None = None  # number of these images
    grid: Size | None = None  # patch rows and columns of the patch embedding's output
    frames: int = 1  # its steps in time
    area: Size | None = None  # pixels that the grid covers
    tokens: SequenceInfo = _NO_TOKENS  # what the token module's call said
    fast: FastLogits | None = None  # where the fast path stores logits
    inputs: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # by site, of its `seen_module`, floats as shapes
    interrupted: "ForwardRecord | None" = None  # the forward that was running when this one began
    maps: AttentionMaps | None = None  # once they were read

    def is_empty(self) -> bool:
        """Whether no attention module ran."""
        return self.maps is None and not (self.calls or self.ran or self.errors or self.unexpected)

    @property
    def images(self) -> int | None:
        """How many images went in; None if it was something else, whose first axis need not be the batch."""
        return None if self.input_size is None else self.batch

    def count(self, site: str) -> int:
        """How often a site has called its kernel."""
        return sum(call.site == site for call in self.calls)

    def clear_gradients(self) -> None:
        """Forget the gradients of all blocks; values and rows stay."""
        held = [call.gradients for call in self.calls] + [block.captured_gradients for block in self.maps or ()]
        for gradients in held:
            if gradients is not None:
                gradients.clear()

    def release(self) -> None:
        """Free what is not needed once the maps are made."""
        self.calls.clear()
        self.inputs.clear()
        self.fast = self.interrupted = None

    def set_tokens(self, tokens: SequenceInfo) -> None:
        """Store what the token module's call said."""
        self.tokens = tokens
        if tokens.grid is not None:
            self.grid = (tokens.grid[0], tokens.grid[1])  # adapters may give lists
            self.area = None if tokens.area is None else (tokens.area[0], tokens.area[1])
            self.input_size = self.input_size or self.area

    def set_grid(self, args: tuple[Any, ...], embedding: Any, module: nn.Module) -> None:
        """Read the patch grid off the patch embedding's output, `(batch, width, h, w)` or `(batch, width, frames, h, w)`."""
        if not isinstance(embedding, Tensor) or embedding.dim() not in (4, 5):
            return
        self.grid = (embedding.shape[-2], embedding.shape[-1])
        self.frames = embedding.shape[2] if embedding.dim() == 5 else 1
        self.area = self.input_size
        stride = getattr(module, "stride", None)
        if isinstance(stride, tuple) and len(stride) in (2, 3):
            rows, columns = self._pixels_per_step(args)
            area = self.grid[0] * int(stride[-2]) * rows, self.grid[1] * int(stride[-1]) * columns
            self.area = area if rows and columns else None

    def _pixels_per_step(self, args: tuple[Any, ...]) -> Size:
        """Pixels of the image per position of the patch embedding's input: more than 1 behind a CNN, 0 where unknown."""
        fed = args[0].shape[-2:] if args and isinstance(args[0], Tensor) and args[0].dim() >= 4 else self.input_size
        if self.input_size is None or fed is None:
            return 1, 1
        rows, columns = (
            1 if short >= long else pixels_per_step(long, short)
            for short, long in zip(fed, self.input_size, strict=True)
        )
        return rows, columns

    def layout(self, plan: CapturePlan) -> SequenceLayout:
        """The layout of the whole sequence, or why there is none."""
        told = plan.layout or self.tokens.problem or self.tokens.packed
        if told is not None:
            return told
        if self.grid is None:
            return "the patch grid is not known: no patch embedding ran in this forward. Pass layout=TokenLayout(...)."
        known, suffix = plan.anatomy, plan.anatomy.suffix + self.tokens.padding
        layout = _layout(self.grid, known.cls, known.registers, known.distillation, suffix, self.frames)
        return layout if self.tokens.order is None else replace(layout, order=self.tokens.order)


@lru_cache  # most forwards are of one size
def _layout(*fields: Any) -> TokenLayout:
    return TokenLayout(*fields)


def finish(record: ForwardRecord, plan: CapturePlan) -> AttentionMaps:
    """The maps of all blocks of the plan; raises `BlockNotCapturedError` if one is missing."""
    with torch.inference_mode(mode=False):  # autograd can work with the rows
        layout = record.layout(plan)
        found = _calls_by_name(record, plan)
        if len({site.name for site, *_ in found}) < len(found):
            # The modules do not tell how many blocks there are, and which of them a call is.
            found = [(replace(site, number=None), name, call) for site, name, call in found]
        finished = finish_together([call for *_, call in found])
        return AttentionMaps(
            [
                make_block(*described, captured, layout, record.images)
                for described, captured in zip(found, finished, strict=True)
            ],
            rows=plan.rows,
            readout=plan.anatomy.readout,
            input_size=record.input_size,
            patch_area=record.area,
            overlaps=plan.overlaps,
        )


def measured(record: ForwardRecord, plan: CapturePlan) -> list[tuple[str, Any]]:
    """The measurement of each call of one forward, with the block's name, in the order in which they ran."""
    return [(name, call.measured) for _, name, call in _calls_by_name(record, plan)]


def _calls_by_name(record: ForwardRecord, plan: CapturePlan) -> list[tuple[AttentionSite, str, CapturedCall]]:
    """All calls of the plan's blocks, each with its name, in the order in which they ran; raises for the first block without one."""
    if record.unexpected:
        raise BlockNotCapturedError(_why_unexpected(record, plan))
    numbers: Counter[str] = Counter()
    found = []
    for call in record.calls:
        found.append((plan.site_of[call.site], call_name(call.site, numbers[call.site]), call))
        numbers[call.site] += 1
    for site in plan.sites:
        if site.name in record.errors:
            raise record.errors[site.name]
        skipped = site.optional and site.name not in record.ran
        if site.name not in numbers and not (numbers and (site.guessed or skipped)):
            raise BlockNotCapturedError(_why_missing(site, len(numbers), record, plan))
    return found


def call_name(site: str, number: int) -> str:
    """The name of a block's call: the site's, with the number of the call where it is not the first."""
    return f"{site}:{number}" if number else site


def make_block(  # noqa: PLR0917
    site: AttentionSite,
    name: str,
    call: CapturedCall,
    captured: Tensor | SoftmaxMatrix,
    layout: SequenceLayout,
    images: int | None,
) -> BlockAttention:
    """One call as a block, with the layouts of its keys and queries; `images`: how many went in."""
    tokens = call.tokens or SiteTokens(_layout_of_block(layout, captured.shape, images, site, name))
    return BlockAttention(
        name,
        call.kernel,
        captured,
        tokens.keys,
        site.queries,
        site.readout_rows,
        tokens.queries,
        site.value_multiplier,
        call.gradients,
        site.number,
    )


def _layout_of_block(
    layout: SequenceLayout, shape: Sequence[int], images: int | None, site: AttentionSite, name: str
) -> SequenceLayout:
    if isinstance(layout, str):
        return layout
    batch, keys = shape[0], shape[-1]
    if isinstance(layout, TokenLayout) and images and batch % images:
        return (
            f"block {name!r} attended for {batch} of {images} images, perhaps in another order: expected a row for each image. Read `.rows`, or "
            "switch off what splits the batch, such as DINOv2's stochastic depth: model.eval()."
        )
    patches_only = site.queries in (Queries.POOL, Queries.PATCHES)
    if isinstance(layout, TokenLayout) and patches_only and keys == layout.num_patch_tokens:
        return layout.without_special_tokens()
    try:
        layout.check(keys, where=f"block {name!r}")
    except TokenLayoutError as error:
        return str(error)
    return layout


def _why_unexpected(record: ForwardRecord, plan: CapturePlan) -> str:
    name, kind = next(iter(record.unexpected.items()))
    attending = {call.site for call in record.calls}.union(record.unexpected)
    names = [name for name, _ in plan.model.named_modules() if name in attending]
    return (
        f"module {name!r} ({kind}) called scaled_dot_product_attention, but was not recognised as an attention module: expected every "
        f"attention module to be recognisable by its code, got {len(plan.anatomy.sites)} that are. Name the modules that attend: "
        f"blocks={names}."
    )


def _why_missing(site: AttentionSite, captured: int, record: ForwardRecord, plan: CapturePlan) -> str:
    name = f"{site.name!r} ({type(site.module).__name__})"
    if site.name in record.ran:
        return (
            f"block {name} ran, but no attention call was seen in it: expected scaled_dot_product_attention or a softmax over (batch, heads, "
            "queries, keys). It ran inside a function that torch.compile compiled (call the model uncompiled, or pass the compiled module), "
            "it uses a kernel of its own (flash-attn, xformers, flex attention), or its settings changed inside the context. Load the model "
            "with attn_implementation='sdpa' (transformers), or leave the block out with blocks=."
        )
    fused = site.running_kernel() is Kernel.SDPA
    uncalled = ", or called no scaled_dot_product_attention" if fused else ""
    changed = ", or its settings changed to another kernel after the context was entered" if fused else ""
    return (
        f"block {name} did not run in the last forward{uncalled}: {captured} of {len(plan.sites)} blocks were captured. The forward ended "
        f"early (after an exception, call clear() where you catch it), skips this block, or runs it compiled{changed}. Capture the blocks "
        "that run with blocks=."
    )
