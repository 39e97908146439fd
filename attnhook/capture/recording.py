"""Records the attention calls of one module while the model runs: the requested rows, matrices, values and gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture import output_gradients
from attnhook.capture.anatomy import Readout
from attnhook.capture.calls import CapturedCall, FastLogits, is_plain, kind_of
from attnhook.capture.forward_records import ForwardRecord, call_name, make_block
from attnhook.capture.layout import TokenLayout
from attnhook.capture.multihead import multihead_arguments, multihead_lengths, multihead_operands, multihead_output
from attnhook.capture.operands import Operands, exact_arithmetic, sdpa_operands
from attnhook.capture.output_gradients import CallOutput, CapturedGradients
from attnhook.capture.plan import CapturePlan
from attnhook.capture.records import BlockAttention
from attnhook.capture.scopes import Scope
from attnhook.capture.sites import Arrangement, AttentionSite, CallContext, Layout, Queries, SiteTokens
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.capture.torch_internals import current_transform, in_vmap
from attnhook.errors import AttnhookError, TokenLayoutError, UnsupportedModelError
from attnhook.options import Rows


class SiteRecorder:
    """Records the calls of one attention module; a `Listener` of scopes. Stores rows on `device`; None: where they are computed."""

    def __init__(self, plan: CapturePlan, site: AttentionSite, device: torch.device | None) -> None:
        self.plan = plan
        self.site = site
        self.device = device
        self.measure: Callable[[BlockAttention, Readout], Any] | None = None  # its result is stored instead of rows
        self.on_output: Callable[[str, Tensor, Tensor], None] | None = None  # gets values and output of fused calls
        self._rows_slice = self._known_rows()
        # The rows that the fast path may take, if it may.
        self._fast_rows = self._rows_slice if site.plain and device is None and not plan.values else None
        self._whole_sequence = site.queries is Queries.TOKENS and site.tokens_of is None

    def _known_rows(self) -> slice | None:
        """The wanted queries as a slice, if it is known before their number is."""
        rows, queries = self.plan.rows, self.site.queries
        if rows is not Rows.ALL and (self.site.pooling or (queries is Queries.CLASS and rows is Rows.CLS)):
            return self.site.readout_rows or slice(None)
        if rows is Rows.CLS:
            cls = self.plan.anatomy.cls or 0
            return slice(cls, cls + 1 or None)
        return None

    def refused(self, record: ForwardRecord, error: Exception) -> None:
        """Store why a call could not be recorded, to be raised when the maps are read; the model's forward goes on."""
        if not isinstance(error, AttnhookError):
            unforeseen = UnsupportedModelError(
                f"an attention call of block {self.site.name!r} could not be recorded: {type(error).__name__}: {error}. Leave the block out "
                "with blocks=, and please report it."
            )
            unforeseen.__cause__ = error
            error = unforeseen
        record.errors.setdefault(self.site.name, error)

    def fused(self, record: ForwardRecord, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        """Record a call of `scaled_dot_product_attention`."""
        rows = self._fast_rows
        plain = rows is not None and len(args) == 3 and kwargs.get("attn_mask") is None
        if plain and not kwargs.get("is_causal") and not args[0].is_nested:
            query, key, memory = args[0], args[1], record.fast
            kind = kind_of(query, key, rows, self._whole_sequence)
            if memory is None or memory.full or memory.kind != kind:
                memory = None
                if is_plain(query, key, of_sequence=self._whole_sequence):
                    expected = len(self.plan.sites) - len(record.calls)
                    memory = record.fast = FastLogits(kind, query, key, rows, expected)
            if memory is not None:
                record.calls.append(memory.add(self.site.name, query, key, kwargs.get("scale")))
                return
        value = args[2] if len(args) > 2 else kwargs["value"]
        dropout = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
        call = sdpa_operands(*args, **kwargs)
        self.operands(record, call, "scaled_dot_product_attention", CallOutput(value, output, dropout))

    def operands(self, record: ForwardRecord, call: Operands, kernel: str, result: CallOutput | None = None) -> None:
        """Record a call by its operands, and its output where that was seen."""
        self._refuse_transforms()
        self._refuse_merged_heads(record, call)
        call = self.site.arranged_operands(call)
        gradients = self._output_gradients(result) if self.plan.values else None
        if self.on_output is not None and result is not None:
            output = (result.arrange or self.site.arranged_outcome)(result.output.detach())
            if (values := self._values(result)) is not None and output is not None:
                self.on_output(self._call_name(record), values, output)
        with exact_arithmetic(call.query.device.type):
            self._store(record, self._from_operands(record, call, kernel), gradients)

    def softmax(self, record: ForwardRecord, logits: Tensor, weights: Tensor) -> None:
        """Record an explicit softmax, unless its shape is not that of this module's attention."""
        arranged, rows = self.site.arranged(logits), self.site.arranged(weights.detach())
        if arranged is None or rows is None or (self.site.heads and arranged.shape[1] != self.site.heads):
            return
        self._refuse_transforms()
        gradients = None
        if self.plan.values:  # which this softmax multiplies out of sight
            wanted = self.plan.gradients
            gradients = CapturedGradients(None, explicit=True, wanted=wanted, device=self.device)
            if wanted:
                output_gradients.hook_gradient(weights, gradients, self.site.arranged, self.site.name)
        with exact_arithmetic(logits.device.type):
            self._store(record, self._from_softmax(record, arranged, rows), gradients)

    def ran(self, scope: Scope, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        """The module ran, or raised; read an `nn.MultiheadAttention` from its inputs and weights."""
        record = scope.record
        record.ran.add(self.site.name)
        if isinstance(module, nn.MultiheadAttention) and len(rest) == 2 and rest[1] is not None:
            try:
                self._multihead(record, module, multihead_arguments(args, rest[0]), rest[1])
            except Exception as error:
                self.refused(record, error)

    def _multihead(
        self, record: ForwardRecord, module: nn.MultiheadAttention, arguments: dict[str, Any], output: Any
    ) -> None:
        self._refuse_transforms()
        rows = self._rows_slice
        if rows is not None:  # otherwise `_captured` does, unless all rows are wanted
            self._check_sequence(record, *multihead_lengths(module, arguments))
        call = multihead_operands(module, arguments, rows)
        gradients = self._output_gradients(multihead_output(module, arguments, output)) if self.plan.values else None
        with exact_arithmetic(call.query.device.type):
            if rows is None:
                captured = self._from_operands(record, call, "multihead")
            else:
                logits = call.logits(slice(None))
                captured = CapturedCall(self.site.name, "multihead", logits=logits, masked=call.masked)
            self._store(record, captured, gradients)

    def _refuse_transforms(self) -> None:
        """Tensors inside a transform of `torch.func` lack the mapped dimension, or die with it."""
        if in_vmap():
            raise UnsupportedModelError(
                "cannot capture inside torch.func.vmap: expected a plain forward. Run the model on the whole batch at once."
            )
        if current_transform() is not None and self.plan.rows in (Rows.ALL, Rows.MEAN):
            raise UnsupportedModelError(
                f"cannot capture rows={self.plan.rows.value!r} inside a transform of torch.func: expected a plain forward. Capture chosen rows."
            )

    def _refuse_merged_heads(self, record: ForwardRecord, call: Operands) -> None:
        """Without an axis for heads, a batch larger than the images' holds heads or windows, whose rows would pass for images'."""
        merged = call.query.dim() == 3 and self.site.arrangement is Arrangement.HEADS
        if merged and record.batch is not None and call.query.shape[0] != record.batch:
            raise UnsupportedModelError(
                f"block {self.site.name!r} attends with {call.query.shape[0]} sequences for {record.batch} images: expected queries of shape "
                f"(batch, heads, tokens, head_dim), got {tuple(call.query.shape)}. Say how heads are merged into the batch: register an "
                "adapter with AttentionSite(..., arrangement=Arrangement.MERGED, heads=n)."
            )

    def _check_sequence(self, record: ForwardRecord, queries: int, keys: int) -> None:
        """Refuse a few rows of a call whose queries are a part of the sequence: row 0 need not be token 0 then."""
        layout = record.layout(self.plan)
        whole = queries in (keys, getattr(layout, "num_tokens", keys))
        if self._whole_sequence and not whole:
            raise TokenLayoutError(
                f"block {self.site.name!r} has {queries} queries over {keys} keys: expected one query per token, because otherwise rows "
                "cannot be matched to tokens. Capture with rows='all'."
            )

    def _values(self, result: CallOutput) -> Tensor | None:
        """`(batch, key heads, keys, value_dim)`."""
        value = result.value.detach()
        return self.site.arranged_outcome(value) if result.arrange is None else value

    def _output_gradients(self, result: CallOutput | None) -> CapturedGradients:
        """Values of a fused call, and the gradient of its output once it arrives."""
        wanted, name = self.plan.gradients, self.site.name
        if result is None:
            if wanted:
                raise output_gradients.no_backward_error(name)
            return CapturedGradients(None, wanted=False)
        values = self._values(result)
        if self.device is not None and values is not None:
            values = values.to(self.device)
        gradients = CapturedGradients(values, wanted=wanted, device=self.device)
        if wanted:
            if result.dropout:  # the output is not A V then, and dA not dO V^T
                raise UnsupportedModelError(
                    f"the gradient of block {name!r} cannot be captured: expected no attention dropout, got {result.dropout} inside a fused "
                    "kernel, which hides what it dropped. Call model.eval(), or set its attention dropout to 0."
                )
            arrange = result.arrange or self.site.arranged_outcome
            output_gradients.hook_gradient(result.output, gradients, arrange, name)
            output_gradients.hook_weights(result.weights, gradients)
        return gradients

    def _call_name(self, record: ForwardRecord) -> str:
        return call_name(self.site.name, record.count(self.site.name))

    def _store(self, record: ForwardRecord, call: CapturedCall, gradients: CapturedGradients | None) -> None:
        call.gradients = gradients
        if self.measure is not None:
            layout = record.layout(self.plan)
            block = make_block(self.site, self._call_name(record), call, call.finished(), layout, record.images)
            call = CapturedCall(self.site.name, call.kernel, measured=self.measure(block, self.plan.anatomy.readout))
        record.calls.append(call if self.device is None else call.to(self.device))

    def _from_operands(self, record: ForwardRecord, call: Operands, kernel: str) -> CapturedCall:
        def matrix() -> SoftmaxMatrix:
            stored = self.plan.rows is Rows.ALL and self.measure is None
            return SoftmaxMatrix(call.detached(with_values=self.plan.values) if stored else call)

        return self._captured(record, call.query, call.key.shape[2], kernel, call.masked, matrix, call.logits)

    def _from_softmax(self, record: ForwardRecord, logits: Tensor, weights: Tensor) -> CapturedCall:
        def matrix() -> SoftmaxMatrix:
            exact = weights.dtype in (torch.float32, torch.float64)
            # A low-precision softmax is repeated in float32, so that its rows sum to 1.
            rows = weights if exact else torch.softmax(logits.float(), dim=-1)
            # Tensors made in inference mode do not count writes.
            return SoftmaxMatrix(rows.clone() if rows.is_inference() and self.plan.rows is Rows.ALL else rows)

        def chosen(index: slice | Tensor) -> Tensor:
            rows = logits[:, :, index]
            return rows.to(torch.float64 if rows.dtype is torch.float64 else torch.float32, copy=True)

        return self._captured(record, logits, logits.shape[3], "softmax", True, matrix, chosen)

    def _captured(  # noqa: PLR0917
        self,
        record: ForwardRecord,
        queries: Tensor,
        keys: int,
        kernel: str,
        masked: bool,
        matrix: Callable[[], SoftmaxMatrix],
        logits: Callable[[slice | Tensor], Tensor],
    ) -> CapturedCall:
        """What the plan wants of a call with queries `(batch, heads, queries, ...)`: its matrix, its mean row, or the logits of some rows."""
        name, total = self.site.name, queries.shape[2]
        tokens = self._tokens(record, total, keys)
        if self.plan.rows is Rows.ALL:
            return CapturedCall(name, kernel, matrix(), tokens=tokens)
        if self.plan.rows is Rows.MEAN:
            layout = self._query_layout(record, total, tokens, f"rows='mean' of block {name!r}")
            return CapturedCall(name, kernel, matrix().mean_rows(layout.patch_tokens), tokens=tokens)
        self._check_sequence(record, total, keys)
        index = self._query_index(record, total, queries.device, tokens)
        return CapturedCall(name, kernel, logits=logits(index), masked=masked, tokens=tokens)

    def _tokens(self, record: ForwardRecord, queries: int, keys: int) -> SiteTokens | None:
        """What the site itself says about the tokens of the call being recorded."""
        name, tokens_of = self.site.name, self.site.tokens_of
        if tokens_of is None:
            return None
        inputs, number = record.inputs.get(name, ()), record.count(name)
        return tokens_of(CallContext(inputs, record.input_size, record.grid, queries, keys, number))

    def _query_index(
        self, record: ForwardRecord, total: int, device: torch.device, own: SiteTokens | None
    ) -> slice | Tensor:
        if self._rows_slice is not None:
            return self._rows_slice
        chosen = list(self.plan.rows) if isinstance(self.plan.rows, tuple) else []
        tokens = [choice for choice in chosen if isinstance(choice, int)]
        if len(tokens) < len(chosen):
            layout = self._query_layout(record, total, own, f"the patches of rows={chosen} have no tokens")
            tokens = layout.tokens_of(chosen)
        if any(not -total <= token < total for token in tokens):
            raise TokenLayoutError(
                f"a token of rows={tokens} does not exist: block {self.site.name!r} has {total} queries. Choose tokens from {-total} to "
                f"{total - 1}."
            )
        return torch.tensor([token % total for token in tokens], device=device)

    def _query_layout(self, record: ForwardRecord, total: int, own: SiteTokens | None, wanted: str) -> Layout:
        """What the queries are; raises `TokenLayoutError`, which begins with `wanted`, if that is unknown."""
        layout = record.layout(self.plan) if own is None else own.queries or own.keys
        if own is None and self.site.queries is Queries.PATCHES and isinstance(layout, TokenLayout):
            layout = layout.without_special_tokens()
        if isinstance(layout, str):
            raise TokenLayoutError(f"{wanted}: {layout}")
        layout.check(total, where=f"block {self.site.name!r}")
        return layout
