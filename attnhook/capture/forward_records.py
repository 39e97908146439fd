"""What one forward showed, and its turning into `AttentionMaps`.

While the model runs only logits are kept; their softmax waits until the maps are read. On a small model the time of a captured row is the
time to call a few more torch operations between the model's own, so every one that can wait does.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.anatomy import SeenTokens
from attnhook.capture.calls import CapturedCall
from attnhook.capture.fast_path import FastLogits, finish_together
from attnhook.capture.layout import TokenLayout
from attnhook.capture.packing import PackedLayout
from attnhook.capture.plan import CapturePlan
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.serialization import size
from attnhook.capture.sites import AttentionSite, Kernel, Queries
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.strides import pixels_per_step
from attnhook.errors import AttnhookError, BlockNotCapturedError, TokenLayoutError
from attnhook.options import Size

_NOTHING_SEEN = SeenTokens()


@dataclass(eq=False)
class ForwardRecord:
    """What one forward showed."""

    calls: list[CapturedCall] = field(default_factory=list)  # in the order in which they ran
    ran: set[str] = field(default_factory=set)  # the sites whose forward ran
    errors: dict[str, AttnhookError] = field(default_factory=dict)  # by site, why a call could not be recorded
    unexpected: dict[str, str] = field(
        default_factory=dict
    )  # modules that attended unexpectedly, each with its type's name
    listed: bool = False  # whether it is among those of its capture
    begun: bool = False  # whether the model's forward began, or only attention modules were called
    input_size: Size | None = None  # of the images that went in, in pixels
    batch: int | None = None  # number of these images
    grid: Size | None = None  # patch rows and columns that the patch embedding gave
    frames: int = 1  # steps in time that it gave
    area: Size | None = None  # pixels that the grid covers
    tokens: SeenTokens = _NOTHING_SEEN  # what the token module showed
    fast: FastLogits | None = None  # where the fast path keeps the logits of its calls
    inputs: dict[str, tuple[Any, ...]] = field(
        default_factory=dict
    )  # by site, those of its `seen_module`, floats as shapes
    interrupted: "ForwardRecord | None" = None  # the forward that had begun, and not ended, when this one did
    maps: AttentionMaps | None = None  # what it was turned into, once asked for

    def is_empty(self) -> bool:
        """Whether no attention module ran."""
        return not (self.calls or self.ran or self.errors or self.unexpected)

    def count(self, site: str) -> int:
        """How often a site has called its kernel."""
        return sum(call.site == site for call in self.calls)

    def release(self) -> None:
        """Free what is not needed once the maps are made."""
        self.calls.clear()
        self.inputs.clear()
        self.fast = self.interrupted = None

    def saw_tokens(self, tokens: SeenTokens) -> None:
        """Take over what the token module showed."""
        self.tokens = tokens
        if tokens.grid is not None:
            self.grid, self.area = size(tokens.grid), size(tokens.area)
            self.input_size = self.input_size or self.area

    def saw_grid(self, args: tuple[Any, ...], embedding: Any, module: nn.Module) -> None:
        """Read the patch grid off the patch embedding's output, `(batch, width, h, w)` or `(batch, width, frames, h, w)`."""
        if not isinstance(embedding, Tensor) or embedding.dim() not in (4, 5):
            return
        self.grid = (embedding.shape[-2], embedding.shape[-1])
        self.frames = embedding.shape[2] if embedding.dim() == 5 else 1
        stride = getattr(module, "stride", None)
        if isinstance(stride, tuple) and len(stride) in (2, 3):
            rows, columns = self._pixels_per_step(args)
            self.area = (
                (self.grid[0] * int(stride[-2]) * rows, self.grid[1] * int(stride[-1]) * columns)
                if rows and columns
                else None
            )
        else:
            self.area = self.input_size

    def _pixels_per_step(self, args: tuple[Any, ...]) -> Size:
        """Pixels of the image per position of what the patch embedding was fed: more than 1 behind a CNN, 0 where that cannot be told."""
        fed = args[0].shape[-2:] if args and isinstance(args[0], Tensor) and args[0].dim() >= 4 else self.input_size
        if self.input_size is None or fed is None:
            return 1, 1
        steps = [
            1 if short >= long else pixels_per_step(long, short)
            for short, long in zip(fed, self.input_size, strict=True)
        ]
        return steps[0], steps[1]

    def layout(self, plan: CapturePlan) -> TokenLayout | PackedLayout | str:
        """The layout of the whole sequence, or why there is none."""
        if plan.layout is not None:
            return plan.layout
        if self.tokens.problem is not None:
            return self.tokens.problem
        if self.tokens.packed is not None:
            return self.tokens.packed
        if self.grid is None:
            return "the patch grid is not known: no patch embedding was seen in this forward. Pass layout=TokenLayout(...)."
        known, suffix = plan.anatomy, plan.anatomy.suffix + self.tokens.padding
        layout = _layout(self.grid, known.cls, known.registers, known.distillation, suffix, self.frames)
        return layout if self.tokens.order is None else replace(layout, order=self.tokens.order)


@lru_cache
def _layout(*fields: Any) -> TokenLayout:
    """A layout by its fields in their order; most forwards are of one size."""
    return TokenLayout(*fields)


def finish(record: ForwardRecord, plan: CapturePlan) -> AttentionMaps:
    """The maps of all blocks of the plan; raises `BlockNotCapturedError` if one is missing, and says whether it ran."""
    with torch.inference_mode(mode=False):  # autograd can work with the rows
        return _finish(record, plan)


def measured(record: ForwardRecord, plan: CapturePlan) -> list[tuple[str, Any]]:
    """What was measured of each call of one forward, with the block's name, in the order in which they ran."""
    return [(name, call.measured) for _, name, call in _found(record, plan)]


def _found(record: ForwardRecord, plan: CapturePlan) -> list[tuple[AttentionSite, str, CapturedCall]]:
    """All calls of the plan's blocks, each with its name, in the order in which they ran; raises for a block without one."""
    if record.unexpected:
        raise BlockNotCapturedError(_why_strange(record, plan))
    sites = plan.site_of
    numbers: dict[str, int] = {}
    found = []
    for call in record.calls:
        number = numbers.get(call.site, 0)
        numbers[call.site] = number + 1
        found.append((sites[call.site], call_name(sites[call.site], number), call))
    if record.errors or len(numbers) < len(sites):
        _check_missing(numbers, record, plan)
    return found


def _check_missing(called: Collection[str], record: ForwardRecord, plan: CapturePlan) -> None:
    """Raise for the first block of the plan that could not be recorded, or was not called where it had to be."""
    for site in plan.sites:
        if site.name in record.errors:
            raise record.errors[site.name]
        passed_by = site.optional and site.name not in record.ran
        if site.name not in called and not (called and (site.guessed or passed_by)):
            raise BlockNotCapturedError(_why_missing(site, len(called), record, plan))


def call_name(site: AttentionSite, number: int) -> str:
    """The name of a block's call: the site's, with the number of the call where it is not the first."""
    return f"{site.name}:{number}" if number else site.name


def _finish(record: ForwardRecord, plan: CapturePlan) -> AttentionMaps:
    layout = record.layout(plan)
    fitting: dict[tuple[int, Queries], TokenLayout | PackedLayout | str] = {}
    found = _found(record, plan)
    if len({site.name for site, *_ in found}) < len(found):
        # How many blocks there are, and which of them a call is, the modules do not tell.
        found = [(replace(site, number=None), name, call) for site, name, call in found]
    finished = finish_together([call for *_, call in found])
    blocks = [make_block(*place, kept, layout, fitting) for place, kept in zip(found, finished, strict=True)]
    return AttentionMaps(
        blocks,
        rows=plan.rows,
        readout=plan.anatomy.readout,
        input_size=record.input_size,
        patch_area=record.area,
    )


def make_block(  # noqa: PLR0917 (what one call is, in one order)
    site: AttentionSite,
    name: str,
    call: CapturedCall,
    kept: Tensor | SoftmaxMatrix,
    layout: TokenLayout | PackedLayout | str,
    fitting: dict[tuple[int, Queries], TokenLayout | PackedLayout | str],
) -> BlockAttention:
    """One call as a block, its tokens told; `fitting` holds layouts already checked against a number of keys, and is added to."""
    if call.tokens is not None:
        keys, queries = call.tokens.keys, call.tokens.queries
    else:
        kind, queries = (kept.shape[-1], site.queries), None
        if kind not in fitting:
            fitting[kind] = _layout_of_block(layout, kind[0], site, name)
        keys = fitting[kind]
    return BlockAttention(
        name,
        call.kernel,
        kept,
        keys,
        site.queries,
        site.readout_rows,
        queries,
        site.value_multiplier,
        call.gradients,
        site.number,
    )


def _layout_of_block(
    layout: TokenLayout | PackedLayout | str, keys: int, site: AttentionSite, name: str
) -> TokenLayout | PackedLayout | str:
    if isinstance(layout, str):
        return layout
    if (
        isinstance(layout, TokenLayout)
        and site.queries in (Queries.POOL, Queries.PATCHES)
        and keys == layout.num_patch_tokens
    ):
        return layout.without_special_tokens()
    try:
        layout.check(keys, where=f"block {name!r}")
    except TokenLayoutError as error:
        return str(error)
    return layout


def _why_strange(record: ForwardRecord, plan: CapturePlan) -> str:
    name, kind = next(iter(record.unexpected.items()))
    attending = {call.site for call in record.calls}.union(record.unexpected)
    names = [name for name, _ in plan.model.named_modules() if name in attending]
    return (
        f"module {name!r} ({kind}) called scaled_dot_product_attention, but was not recognised as an attention module: expected every attention "
        f"module to be recognisable by its code, got {len(plan.anatomy.sites)} that are. Name the modules that attend: blocks={names}."
    )


def _why_missing(site: AttentionSite, captured: int, record: ForwardRecord, plan: CapturePlan) -> str:
    if site.name in record.ran:
        return (
            f"block {site.name!r} ({type(site.module).__name__}) ran, but no attention call was seen in it: expected "
            "scaled_dot_product_attention or a softmax over (batch, heads, queries, keys). It ran inside a function that torch.compile compiled "
            "(call the model uncompiled, or pass the compiled module), it uses a kernel of its own (flash-attn, xformers, flex attention), or "
            "its settings changed inside the context. Load the model with attn_implementation='sdpa' (transformers), or leave the block "
            "out with blocks=."
        )
    if site.running_kernel() is Kernel.SDPA:
        return (
            f"block {site.name!r} ({type(site.module).__name__}) did not run in the last forward, or called no scaled_dot_product_attention: "
            f"{captured} of {len(plan.sites)} blocks were captured. The forward ended early (after an exception, call clear() where you catch "
            "it), skips this block or runs it compiled, or the "
            "block's settings changed to another kernel after the context was entered; capture the blocks that run with blocks=."
        )
    return (
        f"block {site.name!r} ({type(site.module).__name__}) did not run in the last forward: {captured} of {len(plan.sites)} "
        "blocks were captured. The forward ended early (after an exception, call clear() where you catch it), skips this block, or runs it "
        "compiled; capture the blocks that run with blocks=."
    )


def why_merged(site: str) -> str:
    """Why forwards cannot be told apart where the model itself was not called."""
    return (
        f"block {site!r} ran again after all blocks had run, and nothing showed that a new forward began: expected model(images), got calls of "
        "its parts. Call the model itself, or read the maps (or call clear()) after each forward."
    )


def why_mixed(site: str) -> str:
    """Why forwards cannot be told apart."""
    return (
        f"block {site!r} ran twice in one forward, and not at all in one that started earlier and has not finished: expected forwards that can "
        "be told apart. Call the model itself, model(images), where it runs inside its own forward; after an exception, call clear()."
    )
