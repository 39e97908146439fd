"""`AttentionCapture`: the context manager.

Entering registers hooks; leaving removes them and closes what an aborted forward left open. Ctrl-C may come at any point of either.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnhook._deprecated import old_attributes
from attnhook.capture import watched_modules
from attnhook.capture.anatomy import Readout, SequenceInfo
from attnhook.capture.encoder_layers import FUNCTIONS
from attnhook.capture.forward_log import ForwardLog
from attnhook.capture.forward_records import ForwardRecord, finish, measured
from attnhook.capture.hooked_contexts import HookedContext
from attnhook.capture.interfaces import InterfaceScope, registered_function
from attnhook.capture.layout import TokenLayout
from attnhook.capture.plan import CapturePlan, make_plan
from attnhook.capture.recording import SiteRecorder
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.scopes import SDPA, ActiveCapture, ModeScope, Scope, forget_closed
from attnhook.capture.shared_state import EAGER, LOCK, ReplacedFunction
from attnhook.capture.sites import Kernel
from attnhook.capture.torch_internals import in_backward, is_compiled
from attnhook.capture.watched_modules import shapes
from attnhook.errors import NothingCapturedError, RowsNotKeptError, UnsupportedModelError, counted
from attnhook.options import BlocksOption, Rows, RowsOption


@old_attributes({}, {"listens": "leave it out, a capture records what its own task or thread runs"})
class AttentionCapture(HookedContext):
    """Capture attention from an existing model while it runs, without changing one bit of its output.

    Fused kernels stay on. The requested rows are computed in float32 from the operands of the model's own attention calls, so they include
    its norms, rotary embeddings, biases and masks; they are taken before dropout and sum to 1.

    A capture records the forwards of the task or thread that entered it. In a generator, read the maps before you yield.

    Args:
        model: A Vision Transformer from timm, transformers, torchvision or open_clip, a module that contains one, or any model with attention
            modules.
        blocks: Which blocks, as in timm: None = all, int n = the last n, a sequence of indices (negative from the end) or names, or
            a predicate over names. With `rows="all"`, names may also be those of attention modules outside a known model, such as a decoder's.
        rows: Which rows of each attention matrix: `"cls"`, `"pool"` (an attention pooling's query), `"mean"` (mean over the patches' rows),
            `"readout"` (the one of the three that the model's head reads), `"all"` (stores references to queries and keys; the matrix stays
            implicit), or a sequence of `(row, column)` patches and token indices (of a model with windows: of each window).
        layout: The token layout, for models that attnhook does not know; for others it overrides the known layout. Attention modules of an
            unknown model are recognised by the functions that their code calls; name any others with `blocks`. If another module of the
            model calls `scaled_dot_product_attention`, reading the maps raises an error. A call through an alias bound before the context
            was entered is not noticed there.
        gradients: Whether to capture gradients: each block then stores a reference to its values and receives the gradient dO of its
            attention output, from which dA = dO V^T follows. Call `score.backward()`, inside the context or after it; several add up, as in
            `.grad`, until `clear_gradients()`. Needs whole matrices: `rows="readout"` then means `"all"`, which includes the readout's row.
        values: Whether to store references to the values; always on with `gradients`.
        device: Where rows are stored; by default where they are computed.
        strict: Whether to refuse a compiled model instead of running it eagerly while the context is open.

    Raises:
        UnsupportedModelError: If the model has no attention that can be captured, or, on entering with `strict`, is compiled.
        UnknownBlockError: If `blocks` names a block that does not exist.
        NoReadoutError: If the model has no such row (`NoClassTokenError`: no class token).
        RowsNotKeptError: If `gradients` is used with `rows` other than `"readout"` or `"all"`.

    Example:
        >>> import timm, torch
        >>> from attnhook import AttentionCapture, raw_attention
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> with torch.inference_mode(), AttentionCapture(model) as capture:
        ...     logits = model(torch.randn(2, 3, 224, 224))
        >>> capture.maps[-1].rows.shape
        torch.Size([2, 3, 1, 197])
        >>> raw_attention(capture.maps).shape
        torch.Size([2, 14, 14])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: BlocksOption = None,
        rows: RowsOption = "readout",
        layout: TokenLayout | None = None,
        gradients: bool = False,
        values: bool = False,
        device: torch.device | str | None = None,
        strict: bool = False,
    ) -> None:
        if gradients:
            if not isinstance(rows, str) or rows not in (Rows.READOUT, Rows.ALL):
                raise RowsNotKeptError(
                    f"AttentionCapture(gradients=True) needs whole matrices: expected rows='all', got rows={rows!r}. Leave rows out; "
                    "raw_attention then still gives the readout's row."
                )
            rows = Rows.ALL
        plan = make_plan(model, blocks, rows, layout)
        self._plan = replace(plan, gradients=gradients, values=values or gradients)
        self._strict = strict
        self._compilable = watched_modules.compilable(model, self._plan)
        target = None if device is None else torch.device(device)
        self._recorders = [SiteRecorder(self._plan, site, target) for site in self._plan.sites]
        self._watched = watched_modules.modules_to_watch(self._plan)
        recorders = {r.site.module: r for r in self._recorders}
        in_layers = watched_modules.attention_in_layers(self._plan.model)
        self._in_layers = {module: recorders.get(module) for module in in_layers}
        overriding = filter(watched_modules.overrides_forward, recorders)
        self._by_weights = self._in_layers | {module: recorders[module] for module in overriding}
        self._log = ForwardLog(self._plan)
        super().__init__()
        self._paused = 0
        self._foreign_calls = 0

    def _open(self) -> None:
        self.clear()
        active = self._active = ActiveCapture(
            watched_modules.with_readable_weights(self._by_weights), lambda: self._paused > 0
        )
        self._run_eagerly(active)
        forget_closed()
        Scope(active, ForwardRecord(), active).open()
        with LOCK:  # torch numbers hooks without one
            self._hook_model()
            for recorder in self._recorders:
                self._hook_site(recorder)

    def _run_eagerly(self, active: ActiveCapture) -> None:
        """Compiled modules ignore hooks that came after compiling: run them eagerly (process-wide) while the context is open."""
        compiled = next((module for module in self._compilable if is_compiled(module)), None)
        if compiled is None:
            return
        if self._strict:
            raise UnsupportedModelError(
                f"{type(compiled).__name__} is compiled: expected an eager model, because strict=True. Leave strict out to run it eagerly "
                "inside the context, or compile model and capture together with TraceableCapture."
            )
        EAGER.hold(active)

    def _hook_site(self, recorder: SiteRecorder) -> None:
        site = recorder.site
        kernel = site.running_kernel()
        if site.seen_module is not None:
            self._add_hook(site.seen_module, partial(self._record_inputs, site.name), pre=True, with_kwargs=True)
        if site.module in self._in_layers:
            return  # a hook would switch off its layer's fast path
        own_forward = site.module in self._by_weights
        kind = {Kernel.INTERFACE: InterfaceScope, Kernel.ANY: ModeScope}.get(kernel, Scope)
        holds: tuple[ReplacedFunction, ...] = (SDPA,) if kernel is Kernel.SDPA else ()
        if own_forward:  # which may change what it passes on: read from the functions that it calls
            holds = FUNCTIONS
        elif kernel is Kernel.INTERFACE:
            holds = (registered_function(site.module),)

        def make(around: Scope, opener: object) -> Scope:
            return kind(around.capture, self._log.record_for(around, site.name), opener, recorder, holds)

        # Before anybody else's hooks, which may call attention themselves.
        with_kwargs = kernel is Kernel.MULTIHEAD and not own_forward
        self._open_scope_during(site.module, make, recorder.ran, prepend=True, with_kwargs=with_kwargs)

    def _hook_model(self) -> None:
        anatomy = self._plan.anatomy
        if anatomy.grid_module is not None:
            self._add_hook(anatomy.grid_module, self._record_grid)
        if anatomy.token_module is not None:
            self._add_hook(anatomy.token_module, self._record_tokens, with_kwargs=True)
        for number, (module, *watched) in enumerate(self._watched):

            def make(around: Scope, opener: object, *, watched: Any = watched, forward: bool = number == 0) -> Scope:
                record = ForwardRecord(inputs=dict(around.record.inputs)) if forward else around.record
                return Scope(around.capture, record, opener, *watched)

            then = None if number else self._log.end
            self._open_scope_during(module, make, then, prepend=watched[0] is not None)
        first = self._plan.model if anatomy.image_module is None else anatomy.image_module
        self._add_hook(first, self._begin, pre=True, with_kwargs=True)

    def _scope(self, opener: object = None) -> Scope | None:
        """As in `HookedContext`; nothing is recorded while the capture is paused."""
        if self._paused:
            return None
        scope = super()._scope(opener)
        if (
            scope is None
            and opener is None
            and self._active is not None
            and not self._active.closed
            and not in_backward()
        ):
            self._foreign_calls += 1
        return scope

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        if (scope := self._scope()) is not None:
            self._log.begin(scope, (*args, *(kwargs or {}).values()))

    def _record_inputs(self, site: str, module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        if (scope := self._scope()) is not None:
            scope.record.inputs[site] = shapes((*args, *(kwargs or {}).values()))

    def _record_grid(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if (scope := self._scope()) is not None:
            scope.record.set_grid(args, output, module)

    def _record_tokens(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        scope, tokens_of = self._scope(), self._plan.anatomy.tokens_of
        if scope is not None and tokens_of is not None and len(rest) == 2:
            try:
                tokens = tokens_of(args, *rest)
            except Exception as error:  # an adapter's mistake must not end the model's forward
                problem = f"the adapter's tokens_of failed: {type(error).__name__}: {error}. Fix it, or pass layout=."
                tokens = SequenceInfo(problem=problem)
            scope.record.set_tokens(tokens)

    @property
    def plan(self) -> CapturePlan:
        """What is captured: the sites, the rows, what is known about the model."""
        return self._plan

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of the blocks that are captured, in order."""
        return tuple(site.name for site in self._plan.sites)

    @property
    def maps(self) -> AttentionMaps:
        """The maps of the last forward.

        Raises `NothingCapturedError` with the cause if there are none, `BlockNotCapturedError` if a block is missing.
        """
        return self._finish(self._last_record())

    @property
    def forwards(self) -> tuple[AttentionMaps, ...]:
        """The maps of every forward since the context was entered (or `clear()`), oldest first; sizes may differ.

        Raises `BlockNotCapturedError` if one of them was left by an exception half-way: call `clear()` where you catch that.
        """
        records = self._log.records()
        whole = [record for record in records if not record.is_empty()]
        return tuple(self._finish(record) for record in whole or records)

    def _last_record(self) -> ForwardRecord:
        records = self._log.records()
        if not records or records[-1].is_empty():
            raise NothingCapturedError(self._why_nothing())
        return records[-1]

    def _finish(self, record: ForwardRecord) -> AttentionMaps:
        if record.is_empty():
            raise NothingCapturedError(self._why_nothing())
        if record.maps is None:
            record.maps = finish(record, self._plan)
            record.release()
        return record.maps

    def _why_nothing(self) -> str:
        what = f"nothing captured: expected a forward of {type(self._plan.model).__name__} inside the context"
        if self._foreign_calls:
            return f"{what}, got one on another thread, or in another task. Enter the context where the model runs."
        if self._paused:
            return f"{what}, got none: the capture is paused. Leave `capture.paused()`, then call the model."
        if self._log.records():
            return (
                f"{what}, got one in which no attention module ran. A compiled copy of the model, a replica, or only a part of it "
                "ran: pass AttentionCapture the exact object that you call, and create it after compiling."
            )
        return (
            f"{what}, got none. Call model(images) inside `with AttentionCapture(model) as capture:`. If you did, you called another "
            "copy of the model, or a compiled one: pass that one to AttentionCapture."
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing inside this context."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def clear(self) -> None:
        """Forget everything captured so far."""
        self._log.clear()
        self._foreign_calls = 0
        for scope in () if self._active is None else self._active.open_scopes():
            scope.record = ForwardRecord()

    def clear_gradients(self) -> None:
        """Forget the gradients of all forwards, so that the next backward gives maps of its own score alone.

        Rows, values and patch maps that exist already stay. All backwards but the last need `retain_graph=True`.

        Example:
            >>> import timm, torch
            >>> from attnhook import AttentionCapture, gradient_rollout
            >>> model = timm.create_model("test_vit").eval()
            >>> with AttentionCapture(model, gradients=True) as capture:
            ...     scores = model(torch.randn(1, 3, 160, 160))[0]
            >>> for index in (7, 281):
            ...     capture.clear_gradients()
            ...     scores[index].backward(retain_graph=True)
            ...     patch_map = gradient_rollout(capture.maps)
        """
        for record in self._log.records():
            record.clear_gradients()

    def __getitem__(self, block: object) -> None:
        raise TypeError(
            "a capture is not its maps: expected capture.maps, got the AttentionCapture itself. Pass capture.maps."
        )

    def __repr__(self) -> str:
        state = "open" if self._active is not None else "closed"
        return f"AttentionCapture({type(self._plan.model).__name__}, {counted(len(self._recorders), 'block')}, {state})"


class MeasuringCapture(AttentionCapture):
    """A capture that stores the result of `measure` for every block, and none of its rows.

    `measure` runs during a block's call, without autograd and autocast; its result must not refer to the block. `on_output` gets the block's
    name, values `(batch, key heads, keys, value_dim)` and output `(batch, heads, queries, value_dim)` of each fused call.
    """

    def __init__(
        self,
        model: nn.Module,
        measure: Callable[[BlockAttention, Readout], Any],
        *,
        on_output: Callable[[str, Tensor, Tensor], None] | None = None,
        blocks: BlocksOption = None,
        layout: TokenLayout | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(model, blocks=blocks, rows="all", layout=layout, strict=strict)
        for recorder in self._recorders:
            recorder.measure, recorder.on_output = measure, on_output

    @property
    def measured(self) -> list[tuple[str, Any]]:
        """Each block's name and measurement, of the last forward; errors as those of `maps`."""
        return measured(self._last_record(), self._plan)
