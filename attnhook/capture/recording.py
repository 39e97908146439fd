"""Records the attention calls of one module while the model runs, cut down to what was asked for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.anatomy import Readout
from attnhook.capture.calls import CapturedCall
from attnhook.capture.fast_path import FastLogits, is_plain, kind_of
from attnhook.capture.forward_records import ForwardRecord, call_name, make_block
from attnhook.capture.layout import TokenLayout
from attnhook.capture.multihead import multihead_lengths, multihead_operands, multihead_outcome
from attnhook.capture.operands import Operands, exact_arithmetic, sdpa_operands
from attnhook.capture.output_gradients import (
    CapturedGradients,
    Outcome,
    follow,
    follow_weights,
    refuse_dropout,
    unreachable,
)
from attnhook.capture.plan import CapturePlan
from attnhook.capture.records import BlockAttention
from attnhook.capture.scopes import Scope
from attnhook.capture.sites import Arrangement, AttentionSite, Layout, Queries, SeenCall, SiteTokens
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.torch_internals import current_transform, in_vmap
from attnhook.errors import AttnhookError, TokenLayoutError, UnsupportedModelError
from attnhook.options import Rows

_FUSED = "scaled_dot_product_attention"


class SiteRecorder:
    """Records the calls of one attention module; a `Listener` of scopes. Rows are kept on `device`, None for where they are computed."""

    def __init__(self, plan: CapturePlan, site: AttentionSite, device: torch.device | None) -> None:
        self.plan = plan
        self.site = site
        self.device = device
        self.measure: Callable[[BlockAttention, Readout], Any] | None = None  # what is kept instead of rows
        self.saw_outcome: Callable[[str, Tensor, Tensor], None] | None = (
            None  # told of values and output of fused calls
        )
        self._few = self._few_rows()
        # The rows if the fast path may keep its calls.
        self._fast = self._few if site.plain and device is None and not plan.values else None
        # Whether its queries are the model's tokens.
        self._of_sequence = site.queries is Queries.TOKENS and site.tokens_of is None

    def refused(self, record: ForwardRecord, error: Exception) -> None:
        """Keep for whoever reads the maps why a call could not be recorded, which must not end the model's forward."""
        if not isinstance(error, AttnhookError):
            unforeseen = UnsupportedModelError(
                f"an attention call of block {self.site.name!r} could not be recorded: {type(error).__name__}: {error}. Leave the block out "
                "with blocks=, and please report it."
            )
            unforeseen.__cause__ = error
            error = unforeseen
        record.errors.setdefault(self.site.name, error)

    def fused(self, record: ForwardRecord, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Keep what the plan asks for of a call of `scaled_dot_product_attention`."""
        if (
            self._fast is not None
            and len(args) == 3
            and kwargs.get("attn_mask") is None
            and not kwargs.get("is_causal")
            and not args[0].is_nested
            and self._kept_fast(record, args[0], args[1], self._fast, kwargs.get("scale"))
        ):
            return
        self.operands(record, sdpa_operands(*args, **kwargs), _FUSED, _outcome(output, *args, **kwargs))

    def _kept_fast(
        self, record: ForwardRecord, query: Tensor, key: Tensor, rows: slice, scale: float | Tensor | None
    ) -> bool:
        """Keep a call by the fast path, if it is of that kind."""
        kind, memory = kind_of(query, key, self._few, self._of_sequence), record.fast
        if memory is None or memory.full or memory.kind != kind:
            if not is_plain(query, key, of_sequence=self._of_sequence):
                return False
            expected = len(self.plan.sites) - len(record.calls)
            memory = record.fast = FastLogits(kind, query, key, rows, expected)
        record.calls.append(memory.keep(self.site.name, query, key, scale))
        return True

    def operands(self, record: ForwardRecord, call: Operands, kernel: str, outcome: Outcome | None = None) -> None:
        """Keep what the plan asks for of a call given by its operands, and what came out, where that was seen."""
        self._refuse_transforms()
        self._refuse_merged_heads(record, call)
        call = self.site.arranged_operands(call)
        gradients = self._followed(outcome) if self.plan.values else None
        if self.saw_outcome is not None and outcome is not None:
            output = (outcome.arrange or self.site.arranged_outcome)(outcome.output.detach())
            values = self._values(outcome)
            if values is not None and output is not None:
                self.saw_outcome(call_name(self.site, record.count(self.site.name)), values, output)
        with exact_arithmetic(call.query.device.type):
            self._keep(record, self._of_operands(record, call, kernel), gradients)

    def _refuse_transforms(self) -> None:
        """Tensors inside a transform of `torch.func` lack the mapped dimension, or die with it: what was kept of them would be wrong then."""
        if in_vmap():
            raise UnsupportedModelError(
                "cannot capture inside torch.func.vmap: expected a plain forward. Run the model on the whole batch at once."
            )
        if current_transform() is not None and self.plan.rows in (Rows.ALL, Rows.MEAN):
            raise UnsupportedModelError(
                f"cannot capture rows={self.plan.rows.value!r} inside a transform of torch.func: expected a plain forward. Capture chosen rows."
            )

    def _refuse_merged_heads(self, record: ForwardRecord, call: Operands) -> None:
        """Without an axis for heads, a batch that is a multiple of the images' holds heads or windows: rows of them would pass for images'."""
        merged = call.query.dim() == 3 and self.site.arrangement is Arrangement.HEADS
        if merged and record.batch is not None and call.query.shape[0] != record.batch:
            raise UnsupportedModelError(
                f"block {self.site.name!r} attends with {call.query.shape[0]} sequences for {record.batch} images: expected queries of shape "
                f"(batch, heads, tokens, head_dim), got {tuple(call.query.shape)}. Say how heads are merged into the batch: register an adapter "
                "with AttentionSite(..., arrangement=Arrangement.MERGED, heads=n)."
            )

    def softmax(self, record: ForwardRecord, logits: Tensor, weights: Tensor) -> None:
        """Keep what the plan asks for of an explicit softmax; one whose shape is not that of this module's attention is none."""
        arranged, rows = self.site.arranged(logits), self.site.arranged(weights.detach())
        if arranged is None or rows is None or (self.site.heads and arranged.shape[1] != self.site.heads):
            return
        self._refuse_transforms()
        gradients = self._explicit(weights) if self.plan.values else None
        with exact_arithmetic(logits.device.type):
            self._keep(record, self._of_logits(record, arranged, rows), gradients)

    def ran(self, scope: Scope, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        """The module ran, or raised; read an `nn.MultiheadAttention` from its inputs and weights."""
        record = scope.record
        record.ran.add(self.site.name)
        if isinstance(module, nn.MultiheadAttention) and len(rest) == 2 and rest[1] is not None:
            self._multihead(record, module, args, *rest)

    def _multihead(
        self,
        record: ForwardRecord,
        module: nn.MultiheadAttention,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: tuple[Tensor, Tensor | None],
    ) -> None:
        try:
            self._refuse_transforms()
            rows = self._few
            self._check_sequence(record, *multihead_lengths(module, args, kwargs))
            call = multihead_operands(module, args, kwargs, rows)
            gradients = self._followed(multihead_outcome(module, args, kwargs, output)) if self.plan.values else None
            with exact_arithmetic(call.query.device.type):
                if rows is None:
                    self._keep(record, self._of_operands(record, call, "multihead"), gradients)
                else:
                    logits = call.logits(slice(None))
                    found = CapturedCall(self.site.name, "multihead", logits=logits, masked=call.masked)
                    self._keep(record, found, gradients)
        except Exception as error:
            self.refused(record, error)

    def _values(self, outcome: Outcome) -> Tensor | None:
        """`(batch, key heads, keys, value_dim)`."""
        value = outcome.value.detach()
        return self.site.arranged_outcome(value) if outcome.arrange is None else value

    def _followed(self, outcome: Outcome | None) -> CapturedGradients:
        """Values of a fused call, and the gradient of its output once it arrives."""
        wanted, name = self.plan.gradients, self.site.name
        if outcome is None:
            if wanted:
                raise unreachable(name)
            return CapturedGradients(None, wanted=False)
        values = self._values(outcome)
        if self.device is not None and values is not None:
            values = values.to(self.device)
        kept = CapturedGradients(values, wanted=wanted, device=self.device)
        if wanted:
            refuse_dropout(outcome.dropout, name)
            follow(outcome.output, kept, outcome.arrange or self.site.arranged_outcome, name)
            follow_weights(outcome.weights, kept)
        return kept

    def _explicit(self, weights: Tensor) -> CapturedGradients:
        """The gradient of a softmax that the model spells out; what it multiplies is not seen."""
        kept = CapturedGradients(None, explicit=True, wanted=self.plan.gradients, device=self.device)
        if self.plan.gradients:
            follow(weights, kept, self.site.arranged, self.site.name)
        return kept

    def _keep(self, record: ForwardRecord, call: CapturedCall, gradients: CapturedGradients | None) -> None:
        call.gradients = gradients
        if self.measure is not None:
            name = call_name(self.site, record.count(self.site.name))
            block = make_block(self.site, name, call, call.finished(), record.layout(self.plan), {})
            call = CapturedCall(self.site.name, call.kernel, measured=self.measure(block, self.plan.anatomy.readout))
        record.calls.append(call if self.device is None else call.to(self.device))

    def _of_operands(self, record: ForwardRecord, call: Operands, kernel: str) -> CapturedCall:
        name, rows, (_, _, queries, keys) = self.site.name, self.plan.rows, call.shape
        tokens = self._tokens(record, queries, keys)
        if rows is Rows.ALL:
            kept = call if self.measure is not None else call.detached(with_values=self.plan.values)
            return CapturedCall(name, kernel, SoftmaxMatrix(kept), tokens=tokens)
        if rows is Rows.MEAN:
            chosen = self._patch_queries(record, queries, tokens)
            return CapturedCall(name, kernel, SoftmaxMatrix(call).mean_rows(chosen), tokens=tokens)
        self._check_sequence(record, queries, keys)
        index = self._queries(record, queries, call.query.device, tokens)
        return CapturedCall(name, kernel, logits=call.logits(index), masked=call.masked, tokens=tokens)

    def _of_logits(self, record: ForwardRecord, logits: Tensor, weights: Tensor) -> CapturedCall:
        name, rows, (_, _, queries, keys) = self.site.name, self.plan.rows, logits.shape
        tokens = self._tokens(record, queries, keys)
        if rows is Rows.ALL or rows is Rows.MEAN:
            # A low-precision softmax is repeated in float32, so that its rows sum to 1.
            exact = weights.dtype in (torch.float32, torch.float64)
            kept = weights if exact else torch.softmax(logits.float(), dim=-1)
            # Tensors made in inference mode do not say that they were written to.
            matrix = SoftmaxMatrix(kept.clone() if kept.is_inference() and rows is Rows.ALL else kept)
            if rows is Rows.ALL:
                return CapturedCall(name, "softmax", matrix, tokens=tokens)
            mean = matrix.mean_rows(self._patch_queries(record, queries, tokens))
            return CapturedCall(name, "softmax", mean, tokens=tokens)
        self._check_sequence(record, queries, keys)
        chosen = logits[:, :, self._queries(record, queries, logits.device, tokens)]
        copied = chosen.to(torch.float64 if chosen.dtype is torch.float64 else torch.float32, copy=True)
        return CapturedCall(name, "softmax", logits=copied, masked=True, tokens=tokens)

    def _tokens(self, record: ForwardRecord, queries: int, keys: int) -> SiteTokens | None:
        """What the site itself tells of the tokens of the call that is being recorded."""
        if self.site.tokens_of is None:
            return None
        inputs = record.inputs.get(self.site.name, ())
        number = record.count(self.site.name)
        return self.site.tokens_of(SeenCall(inputs, record.input_size, record.grid, queries, keys, number))

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

    def _queries(
        self, record: ForwardRecord, total: int, device: torch.device, own: SiteTokens | None
    ) -> slice | Tensor:
        if self._few is not None:
            return self._few
        layout = self._query_layout(record, own)
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

    def _check_sequence(self, record: ForwardRecord, queries: int, keys: int) -> None:
        """Refuse a few rows of a call whose queries are a part of the sequence: row 0 need not be token 0 then."""
        layout = record.layout(self.plan)
        whole = queries in (keys, getattr(layout, "num_tokens", keys))
        if self._of_sequence and not whole:
            raise TokenLayoutError(
                f"block {self.site.name!r} has {queries} queries over {keys} keys: expected one query per token, because otherwise rows "
                "cannot be matched to tokens. Capture with rows='all'."
            )

    def _query_layout(self, record: ForwardRecord, own: SiteTokens | None) -> Layout | str:
        if own is not None:
            return own.keys if own.queries is None else own.queries
        layout = record.layout(self.plan)
        if self.site.queries is Queries.PATCHES and isinstance(layout, TokenLayout):
            return layout.without_special_tokens()
        return layout

    def _patch_queries(self, record: ForwardRecord, total: int, own: SiteTokens | None) -> slice:
        layout = self._query_layout(record, own)
        if isinstance(layout, str):
            raise TokenLayoutError(f"rows='mean' of block {self.site.name!r}: {layout}")
        layout.check(total, where=f"block {self.site.name!r}")
        return layout.patch_tokens


def _outcome(  # noqa: PLR0917 (the arguments of scaled_dot_product_attention)
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *_: Any,
    **__: Any,
) -> Outcome:
    return Outcome(value, output, dropout_p)
