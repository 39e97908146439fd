"""Records the attention calls of one module while the model runs: what interception tells, cut down to what was asked for."""

from collections.abc import Callable, Sequence
from sys import intern
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.adapters import Readout
from attnhook.capture.following import KeptGradients, Outcome, follow, follow_weights, refuse_dropout, unseen_outcome
from attnhook.capture.forwards import CapturedCall, ForwardRecord, MeasuredCall, call_name, make_block
from attnhook.capture.interception import report
from attnhook.capture.layout import TokenLayout
from attnhook.capture.multihead import multihead_operands, multihead_outcome
from attnhook.capture.operands import Operands, quiet_arithmetic
from attnhook.capture.plan import CapturePlan
from attnhook.capture.records import BlockAttention
from attnhook.capture.scores import ScoreMemory
from attnhook.capture.sites import AttentionSite, Layout, Queries, SeenCall, SiteTokens
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import AttnhookError, TokenLayoutError, UnsupportedModelError
from attnhook.options import Rows

# Looked up once: on a small model the cost of a row is that of touching cold memory between the model's own products.
_bmm, _is_grad_enabled, _is_inference_mode_enabled = torch.bmm, torch.is_grad_enabled, torch.is_inference_mode_enabled
_transform = torch._C._functorch.peek_interpreter_stack


class SiteRecorder:
    """Records the calls of one attention module; a `Listener` of interception.

    Args:
        plan: What to record.
        site: The module.
        records: Of the forwards, the present one last; shared, and added to as each begins.
        device: Where rows are kept, None for where they are computed.
    """

    def __init__(
        self,
        plan: CapturePlan,
        site: AttentionSite,
        records: Sequence[ForwardRecord],
        device: torch.device | None,
    ) -> None:
        self.plan = plan
        self.site = site
        self.device = device
        self._records = records
        self.inputs: tuple[Any, ...] = ()  # of the site's seen_module, floating tensors replaced by their shapes
        self.measure: Callable[[BlockAttention, Readout], Any] | None = None  # what is kept instead of rows
        self._few = self._few_rows()
        # Whether its queries are the model's tokens.
        self._of_sequence = site.queries is Queries.TOKENS and site.tokens_of is None
        # The rows if calls may be kept by the fewest operations, and what of it they must have in common to share memory.
        self._short = self._few if site.plain and device is None and not plan.values else None
        self._kind = intern(f"{self._few} {self._of_sequence}")  # told apart by where it is
        self._sites = len(plan.sites)

    @property
    def record(self) -> ForwardRecord:
        """What the present forward showed."""
        return self._records[-1]

    def refused(self, error: Exception) -> None:
        """Keep for whoever reads the maps why a call could not be recorded, which must not end the model's forward."""
        if isinstance(error, AttnhookError):
            self.record.errors.setdefault(self.site.name, error)
            return
        unforeseen = UnsupportedModelError(
            f"an attention call of block {self.site.name!r} could not be recorded: {type(error).__name__}: {error}. Leave the block out with "
            "blocks=, and please report it."
        )
        unforeseen.__cause__ = error
        self.refused(unforeseen)

    def fused(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Keep what the plan asks for of a call of `scaled_dot_product_attention`.

        The commonest, a few float32 rows without mask and autograd, is kept by the fewest operations; written out, as every call of a function
        would cost as much as one of them. Autocast may be on: it leaves products that are written into given memory in float32.

        Args:
            args: Of the call.
            kwargs: Likewise.
            output: What it gave.
        """
        rows = self._short
        if (
            rows is None
            or len(args) != 3
            or kwargs.get("attn_mask") is not None
            or kwargs.get("is_causal")
            or args[0].is_nested
        ):
            report(self, args, kwargs, output)
            return
        query, key, _ = args
        record = self._records[-1]
        memory = record.memory
        modes = _is_grad_enabled(), _is_inference_mode_enabled(), _transform()
        kind = self._kind, type(query), type(key), query.shape, key.shape, query.dtype, key.dtype, query.device, modes
        if memory is None or kind != memory.kind or not memory.waiting:
            if not self._is_plain(query, key):
                report(self, args, kwargs, output)
                return
            calls = self._sites - len(record.calls)  # that are still to come in this forward
            memory = record.memory = ScoreMemory(kind, query, key, rows, calls)
        place = query.stride(), query.storage_offset(), key.stride(), key.storage_offset()
        if place != memory.place:
            memory.find_views(place)
        call = memory.waiting.pop()
        scale = kwargs.get("scale")
        call.scale = scale if scale is None else float(scale)  # a tensor may change before the maps are read
        # One product an image: a batched one would first copy all keys, whose (batch, head) strides do not merge.
        for (wanted, columns), image in zip(memory.views, call.images, strict=True):
            _bmm(query.as_strided(*wanted), key.as_strided(*columns), out=image)
        record.calls.append((self.site.name, call))

    def _is_plain(self, query: Tensor, key: Tensor) -> bool:
        """Whether such a call may be kept as scores alone; asked once for calls that have all of their `kind` in common."""
        if _is_grad_enabled() or _transform() is not None:
            return False
        if type(query) is not Tensor or type(key) is not Tensor:  # what others hold may lie otherwise than they say
            return False
        if query.dtype is not torch.float32 or key.dtype is not torch.float32:
            return False
        shape, keys = query.shape, key.shape
        if len(shape) != 4 or not shape[0]:
            return False
        return shape == keys or not (self._of_sequence or len(keys) != 4 or shape[:2] != keys[:2])

    def operands(self, call: Operands, kernel: str, outcome: Outcome | None = None) -> None:
        """Keep what the plan asks for of a call given by its operands."""
        _refuse_vmap()
        call = self.site.arranged_operands(call)
        beside = self._followed(outcome) if self.plan.values else None
        if torch.is_inference_mode_enabled() and not torch.is_autocast_enabled(call.query.device.type):
            self._keep(self._of_operands(call, kernel), beside)  # quiet already
            return
        with quiet_arithmetic(call.query.device.type):
            self._keep(self._of_operands(call, kernel), beside)

    def logits(self, scores: Tensor, weights: Tensor) -> None:
        """Keep what the plan asks for of an explicit softmax; one whose shape is not that of this module's attention is none."""
        arranged, rows = self.site.arranged(scores), self.site.arranged(weights.detach())
        if arranged is None or rows is None or (self.site.heads and arranged.shape[1] != self.site.heads):
            return
        _refuse_vmap()
        beside = self._explicit(weights) if self.plan.values else None
        with quiet_arithmetic(scores.device.type):
            self._keep(self._of_logits(arranged, rows), beside)

    def multihead(
        self,
        module: nn.MultiheadAttention,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: tuple[Tensor, Tensor | None],
    ) -> None:
        """Keep what the plan asks for of a call of `nn.MultiheadAttention`, which has just run."""
        try:
            _refuse_vmap()
            rows = self._few
            call = multihead_operands(module, args, kwargs, rows)
            beside = self._followed(multihead_outcome(module, args, kwargs, output)) if self.plan.values else None
            with quiet_arithmetic(call.query.device.type):
                if rows is None:
                    self._keep(self._of_operands(call, "multihead"), beside)
                else:
                    self._keep(CapturedCall("multihead", scores=call.logits(slice(None)), masked=call.masked), beside)
        except Exception as error:
            self.refused(error)

    def _followed(self, outcome: Outcome | None) -> KeptGradients:
        """Values of a fused call, and the gradient of its output once it arrives."""
        wanted, name = self.plan.gradients, self.site.name
        if outcome is None:
            if wanted:
                raise unseen_outcome(name)
            return KeptGradients(None, wanted=False)
        arrange = outcome.arrange or self.site.arranged_outcome
        value = outcome.value.detach()
        values = self.site.arranged_outcome(value) if outcome.arrange is None else value
        if self.device is not None and values is not None:
            values = values.to(self.device)
        kept = KeptGradients(values, wanted=wanted, device=self.device)
        if wanted:
            refuse_dropout(outcome.dropout, name)
            follow(outcome.output, kept, arrange, name)
            follow_weights(outcome.weights, kept)
        return kept

    def _explicit(self, weights: Tensor) -> KeptGradients:
        """The gradient of a softmax that the model spells out; what it multiplies is not seen."""
        kept = KeptGradients(None, explicit=True, wanted=self.plan.gradients, device=self.device)
        if self.plan.gradients:
            follow(weights, kept, self.site.arranged, self.site.name)
        return kept

    def _keep(self, call: CapturedCall, beside: KeptGradients | None = None) -> None:
        if self.measure is not None:
            self._keep_measured(call, self.measure)
            return
        call.beside = beside
        if self.device is not None:
            call = CapturedCall(
                call.kernel,
                scores=None if call.scores is None else call.scores.to(self.device),
                rows=None if call.rows is None else call.rows.to(self.device),
                matrix=None if call.matrix is None else call.matrix.to(self.device),
                masked=call.masked,
                tokens=call.tokens,
                beside=beside,
            )
        self.record.calls.append((self.site.name, call))

    def _keep_measured(self, call: CapturedCall, measure: Callable[[BlockAttention, Readout], Any]) -> None:
        name = call_name(self.site, self.record.count(self.site.name))
        block = make_block(self.site, name, call, call.finished(), self.record.layout(self.plan), {})
        measured = MeasuredCall(call.kernel, measure(block, self.plan.anatomy.readout))
        self.record.calls.append((self.site.name, measured))

    def _of_operands(self, call: Operands, kernel: str) -> CapturedCall:
        rows, (_, _, queries, keys) = self.plan.rows, call.shape
        tokens = self._tokens(queries, keys)
        if rows is Rows.ALL:
            kept = call if self.measure is not None else call.detached(with_values=self.plan.values)
            return CapturedCall(kernel, matrix=SoftmaxMatrix(kept), tokens=tokens)
        if rows is Rows.MEAN:
            chosen = self._patch_queries(queries, tokens)
            return CapturedCall(kernel, rows=SoftmaxMatrix(call).mean_rows(chosen), tokens=tokens)
        self._check_sequence(queries, keys)
        index = self._queries(queries, call.query.device, tokens)
        return CapturedCall(kernel, scores=call.logits(index), masked=call.masked, tokens=tokens)

    def _of_logits(self, scores: Tensor, weights: Tensor) -> CapturedCall:
        rows = self.plan.rows
        tokens = self._tokens(*scores.shape[2:])
        if rows is Rows.ALL or rows is Rows.MEAN:
            # A low-precision softmax is repeated in float32, so that its rows sum to 1.
            exact = (
                weights if weights.dtype in (torch.float32, torch.float64) else torch.softmax(scores.float(), dim=-1)
            )
            matrix = SoftmaxMatrix(exact)
            if rows is Rows.ALL:
                return CapturedCall("softmax", matrix=matrix, tokens=tokens)
            chosen_rows = matrix.mean_rows(self._patch_queries(scores.shape[2], tokens))
            return CapturedCall("softmax", rows=chosen_rows, tokens=tokens)
        self._check_sequence(*scores.shape[2:])
        chosen = scores[:, :, self._queries(scores.shape[2], scores.device, tokens)]
        exact = chosen.to(torch.float64 if chosen.dtype is torch.float64 else torch.float32, copy=True)
        return CapturedCall("softmax", scores=exact, masked=True, tokens=tokens)

    def _tokens(self, queries: int, keys: int) -> SiteTokens | None:
        """What the site itself tells of the tokens of the call that is being recorded."""
        if self.site.tokens_of is None:
            return None
        number = self.record.count(self.site.name)
        seen = SeenCall(self.inputs, self.record.input_size, self.record.grid, queries, keys, number)
        return self.site.tokens_of(seen)

    def _few_rows(self) -> slice | None:
        """The wanted queries as a slice, if it can be told before their number is known."""
        if self.plan.rows is Rows.ALL:
            return None
        if self.site.pooling or (self.site.queries is Queries.CLASS and self.plan.rows is Rows.CLS):
            return self.site.readout_rows or slice(None)
        if self.plan.rows is Rows.CLS:
            cls = self.plan.anatomy.cls or 0
            return slice(cls, cls + 1 or None)
        return None

    def _queries(self, total: int, device: torch.device, own: SiteTokens | None) -> slice | Tensor:
        if self._few is not None:
            return self._few
        layout = self._query_layout(own)
        chosen = self.plan.rows if isinstance(self.plan.rows, tuple) else ()
        patches = any(isinstance(choice, tuple) for choice in chosen)
        if isinstance(layout, str) or not patches:  # token indices need no grid
            if patches:
                raise TokenLayoutError(f"the patches of rows={list(chosen)} have no tokens: {layout}")
            tokens = [choice for choice in chosen if isinstance(choice, int)]
        else:
            layout.check(total, where=f"block {self.site.name!r}")
            tokens = layout.tokens_of(list(chosen))
        if any(not -total <= token < total for token in tokens):
            raise TokenLayoutError(
                f"a token of rows={tokens} does not exist: block {self.site.name!r} has {total} queries."
            )
        return torch.tensor([token % total for token in tokens], device=device)

    def _check_sequence(self, queries: int, keys: int) -> None:
        """Refuse a few rows of a call whose queries are a part of the sequence: row 0 need not be token 0 then."""
        layout = self.record.layout(self.plan)
        whole = queries in (keys, getattr(layout, "num_tokens", keys))
        if self._of_sequence and not whole:
            raise TokenLayoutError(
                f"block {self.site.name!r} asks with {queries} queries over {keys} keys: expected one for every token, to tell which row is "
                "whose. Capture with rows='all'."
            )

    def _query_layout(self, own: SiteTokens | None) -> Layout | str:
        if own is not None:
            return own.keys if own.queries is None else own.queries
        layout = self.record.layout(self.plan)
        if self.site.queries is Queries.PATCHES and isinstance(layout, TokenLayout):
            return layout.without_special_tokens()
        return layout

    def _patch_queries(self, total: int, own: SiteTokens | None) -> slice:
        layout = self._query_layout(own)
        if isinstance(layout, str):
            raise TokenLayoutError(f"rows='mean' of block {self.site.name!r}: {layout}")
        layout.check(total, where=f"block {self.site.name!r}")
        return layout.patch_tokens


def _refuse_vmap() -> None:
    """Tensors inside `torch.func.vmap` lack the mapped dimension: what was kept of them would be wrong once the map ends."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    if any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels):
        raise UnsupportedModelError(
            "cannot capture inside torch.func.vmap: expected a plain forward. Run the model on the whole batch at once."
        )
