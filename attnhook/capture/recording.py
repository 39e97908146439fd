"""The records of one forward while it runs, and their turning into `AttentionMaps`.

While the model runs only scores are computed and kept; their softmax waits until the maps are read. On a small model the time of a captured
row is the time to call a few more torch operations between the model's own, so every one that can wait does.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.adapters import AttentionSite, Kernel, SeenTokens
from attnhook.capture.layout import TokenLayout
from attnhook.capture.multihead import multihead_operands
from attnhook.capture.plan import CapturePlan
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.softmax_matrix import Operands, SoftmaxMatrix, quiet_arithmetic, softmax_rows
from attnhook.errors import AttnhookError, BlockNotCapturedError, TokenLayoutError
from attnhook.options import Rows, Size


@dataclass(slots=True, eq=False)
class CapturedCall:
    """One attention call: scores of the chosen rows, finished rows, or the implicit matrix."""

    kernel: str
    scores: Tensor | None = None
    rows: Tensor | None = None
    matrix: SoftmaxMatrix | None = None
    masked: bool = False

    def finished(self) -> Tensor | SoftmaxMatrix:
        """The softmax rows, `(batch, heads, queries, keys)` float32, or the matrix."""
        if self.matrix is not None:
            return self.matrix
        if self.scores is not None:
            return softmax_rows(self.scores, masked=self.masked)
        if self.rows is not None:
            return self.rows.clone() if self.rows.is_inference() else self.rows
        raise BlockNotCapturedError("an attention call was recorded without its rows.")


class PlainCall:
    """One attention call whose scores wait for their scale and softmax: one tensor `(heads, rows, keys)` an image."""

    __slots__ = ("scale", "scores")

    kernel = "scaled_dot_product_attention"

    def __init__(self, scores: list[Tensor], scale: float) -> None:
        self.scores = scores
        self.scale = scale

    def finished(self) -> Tensor:
        """The softmax rows, `(batch, heads, queries, keys)` float32."""
        return torch.softmax(torch.stack(self.scores) * self.scale, dim=-1)


def _finish_together(calls: list[CapturedCall | PlainCall]) -> list[Tensor | SoftmaxMatrix]:
    """What every call kept, finished; one softmax for all plain calls where their shapes and scales agree."""
    plain = [call for call in calls if isinstance(call, PlainCall)]
    alike = len({(call.scale, len(call.scores), call.scores[0].shape) for call in plain}) == 1
    if not alike or len(plain) != len(calls):
        return [call.finished() for call in calls]
    first = plain[0]
    scores = torch.stack([image for call in plain for image in call.scores]) * first.scale
    together = torch.split(torch.softmax(scores, dim=-1), len(first.scores))
    return [rows.clone() for rows in together]  # each owns exactly its bytes


@dataclass(eq=False)
class ForwardRecord:
    """What one forward showed.

    Attributes:
        calls: The attention calls by site name, in the order in which they ran.
        ran: Names of the sites whose forward ran.
        errors: By site name, why a call could not be recorded.
        begun: Whether the model's forward began; False if only attention modules were called.
        input_size: Pixels of the images that went in.
        grid: Patch rows and columns that the patch embedding gave.
        patch_area: Pixels that the grid covers.
        tokens: What the token module showed.
        maps: What it was turned into, once asked for.
    """

    calls: dict[str, list[CapturedCall | PlainCall]] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)
    errors: dict[str, AttnhookError] = field(default_factory=dict)
    begun: bool = False
    input_size: Size | None = None
    grid: Size | None = None
    patch_area: Size | None = None
    tokens: SeenTokens = field(default_factory=SeenTokens)
    maps: AttentionMaps | None = None

    def is_empty(self) -> bool:
        """Whether no attention module ran."""
        return not (self.calls or self.ran or self.errors)

    def saw_tokens(self, tokens: SeenTokens) -> None:
        """Take over what the token module showed."""
        self.tokens = tokens
        if tokens.grid is not None:
            self.grid, self.patch_area = tokens.grid, tokens.patch_area
            self.input_size = self.input_size or tokens.patch_area

    def saw_grid(self, embedding: Any, module: nn.Module) -> None:
        """Read the patch grid off the patch embedding's output, `(batch, width, h, w)`."""
        if not isinstance(embedding, Tensor) or embedding.dim() != 4:
            return
        self.grid = (embedding.shape[2], embedding.shape[3])
        stride = getattr(module, "stride", None)
        if isinstance(stride, tuple) and len(stride) == 2:
            self.patch_area = (self.grid[0] * int(stride[0]), self.grid[1] * int(stride[1]))
        else:
            self.patch_area = self.input_size

    def layout(self, plan: CapturePlan) -> TokenLayout | str:
        """The layout of the whole sequence, or why there is none."""
        if plan.layout is not None:
            return plan.layout
        if self.tokens.problem is not None:
            return self.tokens.problem
        if self.grid is None:
            return "the patch grid is not known: no patch embedding was seen in this forward. Pass layout=TokenLayout(...)."
        known = plan.anatomy
        return TokenLayout(
            self.grid,
            known.cls,
            known.registers,
            distillation=known.distillation,
            suffix=known.suffix + self.tokens.padding,
            order=self.tokens.order,
        )


class SiteRecorder:
    """Records the calls of one attention module; a `Listener` of interception.

    Args:
        plan: What to record.
        site: The module.
        device: Where rows are kept, None for where they are computed.
    """

    def __init__(self, plan: CapturePlan, site: AttentionSite, device: torch.device | None) -> None:
        self.plan = plan
        self.site = site
        self.device = device
        self.record = ForwardRecord()  # replaced as each forward begins
        self._few = self._few_rows()

    def refused(self, error: AttnhookError) -> None:
        """Remember why a call could not be recorded."""
        self.record.errors.setdefault(self.site.name, error)

    def plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Keep the scores of the commonest call by the fewest operations: a few float32 rows, no mask, no autograd, no autocast.

        Args:
            args: Of `scaled_dot_product_attention`.
            kwargs: Likewise.

        Returns:
            False if the call is not of that kind, and nothing was kept.
        """
        rows = self._few
        if rows is None or len(args) != 3 or self.device is not None or torch.is_grad_enabled():
            return False
        if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
            return False
        query, key, _ = args
        if query.dtype is not torch.float32 or query.is_nested or query.dim() != 4:
            return False
        batch, heads, _, width = query.shape
        if key.shape[1] != heads:
            return False
        # One product an image: a batched one would first copy all keys, whose (batch, head) strides do not merge.
        scores = [torch.bmm(query[image, :, rows], key[image].transpose(1, 2)) for image in range(batch)]
        if not scores or scores[0].dtype is not torch.float32:  # autocast
            return False
        scale = kwargs.get("scale")
        self.record.calls.setdefault(self.site.name, []).append(
            PlainCall(scores, width**-0.5 if scale is None else scale)
        )
        return True

    def operands(self, call: Operands, kernel: str) -> None:
        """Keep what the plan asks for of a call given by its operands."""
        try:
            if torch.is_inference_mode_enabled() and not torch.is_autocast_enabled(call.query.device.type):
                self._keep(self._of_operands(call, kernel))  # quiet already
                return
            with quiet_arithmetic(call.query.device.type):
                self._keep(self._of_operands(call, kernel))
        except AttnhookError as error:
            self.refused(error)

    def logits(self, scores: Tensor, weights: Tensor) -> None:
        """Keep what the plan asks for of an explicit softmax."""
        try:
            with quiet_arithmetic(scores.device.type):
                self._keep(self._of_logits(scores, weights))
        except AttnhookError as error:
            self.refused(error)

    def multihead(self, module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the plan asks for of a call of `nn.MultiheadAttention`, which has just run."""
        try:
            rows = self._few
            call = multihead_operands(module, args, kwargs, rows)
            with quiet_arithmetic(call.query.device.type):
                if rows is None:
                    self._keep(self._of_operands(call, "multihead"))
                else:
                    self._keep(CapturedCall("multihead", scores=call.logits(slice(None)), masked=call.masked))
        except AttnhookError as error:
            self.refused(error)

    def _keep(self, call: CapturedCall) -> None:
        if self.device is not None:
            call = CapturedCall(
                call.kernel,
                scores=None if call.scores is None else call.scores.to(self.device),
                rows=None if call.rows is None else call.rows.to(self.device),
                matrix=None if call.matrix is None else call.matrix.to(self.device),
                masked=call.masked,
            )
        self.record.calls.setdefault(self.site.name, []).append(call)

    def _of_operands(self, call: Operands, kernel: str) -> CapturedCall:
        if self._few is not None:
            return CapturedCall(kernel, scores=call.logits(self._few), masked=call.masked)
        rows = self.plan.rows
        if rows is Rows.ALL:
            return CapturedCall(kernel, matrix=SoftmaxMatrix(call.detached()))
        if rows is Rows.MEAN:
            return CapturedCall(kernel, rows=SoftmaxMatrix(call).mean_rows(self._patch_queries(call.shape[2])))
        return CapturedCall(
            kernel, scores=call.logits(self._queries(call.shape[2], call.query.device)), masked=call.masked
        )

    def _of_logits(self, scores: Tensor, weights: Tensor) -> CapturedCall:
        rows = self.plan.rows
        if rows is Rows.ALL or rows is Rows.MEAN:
            # A low-precision softmax is repeated in float32, so that its rows sum to 1.
            exact = (
                weights if weights.dtype in (torch.float32, torch.float64) else torch.softmax(scores.float(), dim=-1)
            )
            matrix = SoftmaxMatrix(exact)
            if rows is Rows.ALL:
                return CapturedCall("softmax", matrix=matrix)
            return CapturedCall("softmax", rows=matrix.mean_rows(self._patch_queries(scores.shape[2])))
        chosen = scores[:, :, self._queries(scores.shape[2], scores.device)]
        exact = chosen.to(torch.float64 if chosen.dtype is torch.float64 else torch.float32, copy=True)
        return CapturedCall("softmax", scores=exact, masked=True)

    def _few_rows(self) -> slice | None:
        """The wanted queries as a slice, if it can be told before their number is known."""
        if self.plan.rows is Rows.ALL:
            return None
        if self.site.pooling:
            return slice(None)
        if self.plan.rows is Rows.CLS:
            cls = self.plan.anatomy.cls or 0
            return slice(cls, cls + 1 or None)
        return None

    def _queries(self, total: int, device: torch.device) -> slice | Tensor:
        if self._few is not None:
            return self._few
        layout = self.record.layout(self.plan)
        chosen = self.plan.rows if isinstance(self.plan.rows, tuple) else ()
        patches = any(isinstance(choice, tuple) for choice in chosen)
        if isinstance(layout, str) or not patches:  # token indices need no grid
            if patches:
                raise TokenLayoutError(f"the patches of rows={list(chosen)} have no tokens: {layout}")
            tokens = [choice for choice in chosen if isinstance(choice, int)]
        else:
            layout.check(total, where=f"block {self.site.name!r}")
            tokens = layout.tokens_of(chosen)
        if any(not -total <= token < total for token in tokens):
            raise TokenLayoutError(
                f"a token of rows={tokens} does not exist: block {self.site.name!r} has {total} queries."
            )
        return torch.tensor([token % total for token in tokens], device=device)

    def _patch_queries(self, total: int) -> slice:
        layout = self.record.layout(self.plan)
        if isinstance(layout, str):
            raise TokenLayoutError(f"rows='mean' of block {self.site.name!r}: {layout}")
        layout.check(total, where=f"block {self.site.name!r}")
        return layout.patch_tokens


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
    with torch.inference_mode(mode=False), torch.no_grad():
        return _finish(record, plan)


def _finish(record: ForwardRecord, plan: CapturePlan) -> AttentionMaps:
    layout = record.layout(plan)
    fitting: dict[int, TokenLayout | str] = {}
    found: list[tuple[AttentionSite, str, CapturedCall | PlainCall]] = []
    for site in plan.sites:
        calls = record.calls.get(site.name, [])
        if site.name in record.errors:
            raise record.errors[site.name]
        if not calls:
            raise BlockNotCapturedError(_why_missing(site, record, plan))
        found += [(site, f"{site.name}:{i}" if i else site.name, call) for i, call in enumerate(calls)]
    blocks = []
    for (site, name, call), kept in zip(found, _finish_together([call for *_, call in found]), strict=True):
        keys = kept.shape[-1]
        tokens = None if site.pooling else fitting.get(keys)
        if tokens is None:
            tokens = fitting[keys] = _layout_of_block(layout, keys, site, name)
        blocks.append(BlockAttention(name, call.kernel, kept, tokens, site.pooling))
    return AttentionMaps(
        blocks,
        rows=plan.rows,
        readout=plan.anatomy.readout,
        input_size=record.input_size,
        patch_area=record.patch_area,
    )


def _layout_of_block(layout: TokenLayout | str, keys: int, site: AttentionSite, name: str) -> TokenLayout | str:
    if isinstance(layout, str):
        return layout
    if site.pooling and keys == layout.num_patch_tokens:
        return layout.without_special_tokens()
    try:
        layout.check(keys, where=f"block {name!r}")
    except TokenLayoutError as error:
        return str(error)
    return layout


def _why_missing(site: AttentionSite, record: ForwardRecord, plan: CapturePlan) -> str:
    captured = len(record.calls)
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
