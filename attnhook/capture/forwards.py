"""What one forward showed, and its turning into `AttentionMaps`.

While the model runs only scores are kept; their softmax waits until the maps are read. On a small model the time of a captured row is the
time to call a few more torch operations between the model's own, so every one that can wait does.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.adapters import SeenTokens
from attnhook.capture.following import KeptGradients
from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import softmax_rows
from attnhook.capture.packing import PackedLayout
from attnhook.capture.plan import CapturePlan
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.scores import PlainCall, ScoreMemory, finish_together
from attnhook.capture.sites import AttentionSite, Kernel, Queries, SiteTokens
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.storage import size
from attnhook.errors import AttnhookError, BlockNotCapturedError, RowsNotKeptError, TokenLayoutError
from attnhook.options import Size

_NOTHING_SEEN = SeenTokens()
_is_inference_mode_enabled = torch.is_inference_mode_enabled


@dataclass(slots=True, eq=False)
class CapturedCall:
    """One attention call: scores, finished rows, or the implicit matrix; its own tokens; what is kept of values and gradients."""

    kernel: str
    scores: Tensor | None = None
    rows: Tensor | None = None
    matrix: SoftmaxMatrix | None = None
    masked: bool = False
    tokens: SiteTokens | None = None
    beside: KeptGradients | None = None

    def finished(self) -> Tensor | SoftmaxMatrix:
        """The softmax rows, `(batch, heads, queries, keys)` float32, or the matrix."""
        if self.matrix is not None:
            return self.matrix
        if self.scores is not None:
            return softmax_rows(self.scores, masked=self.masked)
        if self.rows is not None:
            return self.rows.clone() if self.rows.is_inference() else self.rows
        raise BlockNotCapturedError("an attention call was recorded without its rows.")


@dataclass(slots=True, eq=False)
class MeasuredCall:
    """One attention call of which only what someone measured is left."""

    kernel: str
    value: Any
    tokens: SiteTokens | None = None
    beside: KeptGradients | None = None

    def finished(self) -> Tensor:
        """Refuse: no row was kept."""
        raise RowsNotKeptError("only measurements were kept: expected rows. Capture with AttentionCapture for maps.")


AnyCall = CapturedCall | PlainCall | MeasuredCall


@dataclass(eq=False)
class ForwardRecord:
    """What one forward showed.

    Attributes:
        calls: The attention calls, each with its site's name, in the order in which they ran.
        ran: Names of the sites whose forward ran.
        errors: By site name, why a call could not be recorded.
        strangers: Modules outside every site that called scaled_dot_product_attention, each with its type's name.
        begun: Whether the model's forward began; False if only attention modules were called.
        input_size: Pixels of the images that went in.
        grid: Patch rows and columns that the patch embedding gave.
        frames: Steps in time that it gave.
        patch_area: Pixels that the grid covers.
        memory: Where the scores of plain calls are written: that of an earlier forward, or None before the first call.
        tokens: What the token module showed.
        maps: What it was turned into, once asked for.
    """

    calls: list[tuple[str, AnyCall]] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)
    errors: dict[str, AttnhookError] = field(default_factory=dict)
    strangers: dict[str, str] = field(default_factory=dict)
    begun: bool = False
    input_size: Size | None = None
    grid: Size | None = None
    frames: int = 1
    patch_area: Size | None = None
    memory: ScoreMemory | None = None
    tokens: SeenTokens = _NOTHING_SEEN
    maps: AttentionMaps | None = None

    def is_empty(self) -> bool:
        """Whether no attention module ran."""
        return not (self.calls or self.ran or self.errors or self.strangers)

    def count(self, site: str) -> int:
        """How often a site has called its kernel."""
        return sum(name == site for name, _ in self.calls)

    def release(self) -> ScoreMemory | None:
        """Free what is not needed once the maps are made; what comes back is memory that may serve another forward.

        Only the CPU's: there its place in the heap matters, and elsewhere the next forward may run on another stream.
        """
        memory, self.memory = self.memory, None
        self.calls.clear()
        if memory is None or not memory.on_cpu:
            return None
        memory.empty()
        return memory

    def saw_tokens(self, tokens: SeenTokens) -> None:
        """Take over what the token module showed."""
        self.tokens = tokens
        if tokens.grid is not None:
            self.grid, self.patch_area = size(tokens.grid), size(tokens.patch_area)
            self.input_size = self.input_size or self.patch_area

    def saw_grid(self, embedding: Any, module: nn.Module) -> None:
        """Read the patch grid off the patch embedding's output, `(batch, width, h, w)` or `(batch, width, frames, h, w)`."""
        if not isinstance(embedding, Tensor) or embedding.dim() not in (4, 5):
            return
        self.grid = (embedding.shape[-2], embedding.shape[-1])
        self.frames = embedding.shape[2] if embedding.dim() == 5 else 1
        stride = getattr(module, "stride", None)
        if isinstance(stride, tuple) and len(stride) in (2, 3):
            self.patch_area = (self.grid[0] * int(stride[-2]), self.grid[1] * int(stride[-1]))
        else:
            self.patch_area = self.input_size

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
    """Turn the records of one forward into maps.

    Args:
        record: What the forward showed.
        plan: What was to be recorded.

    Returns:
        The maps of all blocks of the plan.

    Raises:
        BlockNotCapturedError: If a block of the plan is missing; the message says whether it ran.
    """
    if _is_inference_mode_enabled():  # left, so that autograd can work with the rows
        with torch._C._InferenceMode(False):
            return _finish(record, plan)
    return _finish(record, plan)


def measured(record: ForwardRecord, plan: CapturePlan) -> list[tuple[str, Any]]:
    """What was measured of each call of one forward, with the block's name.

    Args:
        record: What the forward showed.
        plan: What was to be recorded.

    Returns:
        In the order in which they ran.
    """
    return [(name, call.value) for _, name, call in _found(record, plan) if isinstance(call, MeasuredCall)]


def _found(record: ForwardRecord, plan: CapturePlan) -> list[tuple[AttentionSite, str, AnyCall]]:
    """All calls of the plan's blocks, each with its name, in the order in which they ran; raises for a block without one."""
    if record.strangers:
        raise BlockNotCapturedError(_why_strange(record, plan))
    sites = plan.site_of
    numbers: dict[str, int] = {}
    found = []
    for name, call in record.calls:
        number = numbers.get(name, 0)
        numbers[name] = number + 1
        found.append((sites[name], call_name(sites[name], number), call))
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
    blocks = []
    calls = [call for *_, call in found]
    finished: Sequence[Tensor | SoftmaxMatrix] = finish_together(calls) or [call.finished() for call in calls]
    for (site, name, call), kept in zip(found, finished, strict=True):
        blocks.append(make_block(site, name, call, kept, layout, fitting))
    return AttentionMaps(
        blocks,
        rows=plan.rows,
        readout=plan.anatomy.readout,
        input_size=record.input_size,
        patch_area=record.patch_area,
    )


def make_block(  # noqa: PLR0917 (what one call is, in one order)
    site: AttentionSite,
    name: str,
    call: AnyCall,
    kept: Tensor | SoftmaxMatrix,
    layout: TokenLayout | PackedLayout | str,
    fitting: dict[tuple[int, Queries], TokenLayout | PackedLayout | str],
) -> BlockAttention:
    """One call as a block, its tokens told.

    Args:
        site: Where it ran.
        name: The call's name.
        call: The call.
        kept: What is kept of it.
        layout: The layout of the whole sequence, or why there is none.
        fitting: Layouts already held against a number of keys; added to.

    Returns:
        The block.
    """
    if call.tokens is not None:
        keys, queries = call.tokens.keys, call.tokens.queries
    else:
        kind, queries = (kept.shape[-1], site.queries), None
        if kind not in fitting:
            fitting[kind] = _layout_of_block(layout, kind[0], site, name)
        keys = fitting[kind]
    return BlockAttention(
        name, call.kernel, kept, keys, site.queries, site.readout_rows, queries, site.mixing, call.beside
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
    name, kind = next(iter(record.strangers.items()))
    attending = {name for name, _ in record.calls}.union(record.strangers)
    names = [name for name, _ in plan.model.named_modules() if name in attending]
    return (
        f"module {name!r} ({kind}) called scaled_dot_product_attention, and was not recognised: expected all that attend to show it in their "
        f"code, got {len(plan.anatomy.sites)} that do. Name the modules that attend: blocks={names}."
    )


def _why_missing(site: AttentionSite, captured: int, record: ForwardRecord, plan: CapturePlan) -> str:
    if site.name in record.ran:
        return (
            f"block {site.name!r} ({type(site.module).__name__}) ran, but no attention call was seen in it: expected "
            "scaled_dot_product_attention or a softmax over (batch, heads, queries, keys). It may use a kernel of its own "
            "(flash-attn, xformers, flex attention), or its settings changed inside the context. Load the model with "
            "attn_implementation='sdpa' (transformers), or leave the block out with blocks=."
        )
    if site.running_kernel() is Kernel.SDPA:
        return (
            f"block {site.name!r} ({type(site.module).__name__}) did not run in the last forward, or called no scaled_dot_product_attention: "
            f"{captured} of {len(plan.sites)} blocks were captured. The forward ended early, skips this block or runs it compiled, or the "
            "block's settings changed to another kernel after the context was entered; capture the blocks that run with blocks=."
        )
    return (
        f"block {site.name!r} ({type(site.module).__name__}) did not run in the last forward: {captured} of {len(plan.sites)} "
        "blocks were captured. The forward ended early, skips this block, or runs it compiled; capture the blocks that run with blocks=."
    )
