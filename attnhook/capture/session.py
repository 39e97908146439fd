"""`AttentionCapture`: the context manager. Hooks say who computes attention, interception says what.

Nothing of the model is changed, replaced or called a second time. On entry hooks are registered through one `ExitStack`; on exit they are
removed, and every scope that an aborted forward left open is closed. Only forwards of the thread that entered are recorded, and none that
run inside a backward (gradient checkpointing repeats the forward there).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import get_ident
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._C import _current_graph_task_id
from torch.utils.hooks import RemovableHandle

from attnhook.capture.adapters import SeenTokens
from attnhook.capture.encoder_layers import ENCODER_LAYER, MULTIHEAD, tell_layer, tell_multihead
from attnhook.capture.forwards import ForwardRecord, finish
from attnhook.capture.hooks import ClosesScope, OpensScope, ReadsMultihead, Reports, SeesInputs
from attnhook.capture.interception import (
    SDPA,
    FunctionWatch,
    Listener,
    OpenScope,
    Scope,
    Tell,
    WatchedFunction,
    first_argument,
)
from attnhook.capture.interfaces import InterfaceScope
from attnhook.capture.layout import TokenLayout
from attnhook.capture.plan import CapturePlan, make_plan
from attnhook.capture.recording import SiteRecorder
from attnhook.capture.records import AttentionMaps
from attnhook.capture.scores import ScoreMemory
from attnhook.capture.sites import Kernel
from attnhook.errors import NothingCapturedError, RowsNotKeptError, UnsupportedModelError
from attnhook.options import BlocksOption, Rows, RowsOption


class AttentionCapture:
    """Capture attention from an existing model while it runs, without changing one bit of its output.

    Fused kernels stay on. The rows asked for are computed in float32 from the operands of the model's own attention calls, so they include
    its norms, rotary embeddings, biases and masks; they are taken before dropout and sum to 1.

    Args:
        model: A Vision Transformer of timm, transformers or torchvision, a module that holds one, or any model with attention modules.
        blocks: Which blocks, with timm's meaning: None = all, int n = the last n, a sequence of indices (negative from the end) or names, or
            a predicate over names.
        rows: Which rows of each attention matrix: `"cls"`, `"pool"` (an attention pooling's query), `"mean"` (mean over the patches' rows),
            `"readout"` (the one of the three that the model's head reads), `"all"` (queries and keys are kept by reference and the matrix
            stays implicit), or a sequence of `(row, column)` patches and token indices (of a model with windows: of each window).
        layout: What the tokens are, for models that attnhook does not know; overrides what it knows. Attention modules of such a model are
            recognised by the functions that their code calls, else named with `blocks`. A call of `scaled_dot_product_attention` anywhere
            else in the model makes reading maps an error; one through an alias bound before the context was entered is not seen there.
        gradients: Whether to follow backwards: each block then keeps its values by reference and gets the gradient dO of its attention output,
            from which its dA = dO V^T is implicit. Call `score.backward()`, inside the context or after it; several add up, as in `.grad`.
            Needs whole matrices: `rows="readout"` then means `"all"`, which holds the readout's row too.
        values: Whether to keep the values by reference; always with `gradients`.
        device: Where rows are kept; by default where they are computed.
        strict: Whether to refuse a compiled model instead of running it eagerly while the context is open.

    Raises:
        UnsupportedModelError: If the model has no attention that can be captured, or, on entering with `strict`, is compiled.
        UnknownBlockError: If `blocks` names a block that does not exist.
        NoReadoutError: If the model has no such row (`NoClassTokenError`: no class token).
        RowsNotKeptError: If `gradients` meets `rows` that are not whole matrices.

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
        plan = make_plan(model, blocks, _rows_followed(rows) if gradients else rows, layout)
        self._plan = replace(plan, gradients=gradients, values=values or gradients)
        self._strict = strict
        self._compilable = _compilable(model, self._plan)
        self._wrapped = next((module for module in self._compilable if "_orig_mod" in module._modules), None)
        keep_on = None if device is None else torch.device(device)
        self._records: list[ForwardRecord] = [ForwardRecord()]
        self._spare: ScoreMemory | None = None  # of a forward whose maps were read
        self._recorders = [SiteRecorder(self._plan, site, self._records, keep_on) for site in self._plan.sites]
        self._seeing = [(seen, r) for r in self._recorders if (seen := r.site.seen_module) is not None]
        self._stack: ExitStack | None = None
        self._modes: list[Any] = []  # of the open scopes, the innermost last
        self._owner = 0
        self._paused = 0
        self._foreign_calls = 0

    # --- the context ------------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise NothingCapturedError(
                "this capture is already open: expected one `with` at a time. Make a second AttentionCapture."
            )
        self._restart()
        self._owner = get_ident()
        stack = ExitStack()
        try:
            self._open(stack)
        except BaseException:
            stack.close()
            raise
        self._stack = stack
        return self

    def _open(self, stack: ExitStack) -> None:
        self._run_eagerly(stack)
        handles: list[RemovableHandle] = []
        stack.callback(_remove_all, handles)
        self._hook_images(handles)
        scopes: list[Scope] = []
        # No site's calls, watched in another way or left out, are those of the site around it.
        fused: dict[int, Listener | None] = {id(site.module): None for site in self._plan.anatomy.sites}
        layers: dict[int, Listener | None] = {}
        for seen, recorder in self._seeing:
            handles.append(seen.register_forward_pre_hook(SeesInputs(self.listens, recorder), with_kwargs=True))
        for recorder in self._recorders:
            kernel = recorder.site.running_kernel()
            if kernel is Kernel.SDPA:
                fused[id(recorder.site.module)] = recorder
            elif kernel is Kernel.ENCODER_LAYER:
                fused[id(recorder.site.module)] = layers[id(recorder.site.holder)] = recorder
            else:
                self._hook_site(recorder, kernel, handles, scopes)
        if scopes:
            stack.callback(_close_all, scopes)
        if self._plan.guessed:
            SDPA.watch(FunctionWatch(fused, self.listens, SiteRecorder.fused, self._strange_calls()), stack)
        else:
            self._watch(stack, SDPA, fused if any(fused.values()) else {}, SiteRecorder.fused)
        self._watch(stack, MULTIHEAD, fused if layers else {}, tell_multihead)
        self._watch(stack, ENCODER_LAYER, layers, tell_layer)

    def _run_eagerly(self, stack: ExitStack) -> None:
        """Compiled modules ignore hooks that came after compiling: run them eagerly (process-wide) while the context is open."""
        compiled = self._wrapped
        if compiled is None:
            compiled = next((module for module in self._compilable if module._compiled_call_impl is not None), None)
        if compiled is None:
            return
        if self._strict:
            raise UnsupportedModelError(
                f"{type(compiled).__name__} is compiled: expected an eager model, because strict=True. Leave strict out to run it eagerly "
                "inside the context, or compile model and capture together with TraceableCapture."
            )
        stack.enter_context(torch.compiler.set_stance("force_eager"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _watch(
        self, stack: ExitStack, function: WatchedFunction, listeners: dict[int, Listener | None], tell: Tell
    ) -> None:
        if listeners:
            function.watch(FunctionWatch(listeners, self.listens, tell), stack)

    def _hook_site(
        self, recorder: SiteRecorder, kernel: Kernel, handles: list[RemovableHandle], scopes: list[Scope]
    ) -> None:
        module = recorder.site.module
        if kernel is Kernel.MULTIHEAD:
            after: Callable[..., None] = ReadsMultihead(self.listens, recorder)
        else:
            interface = kernel is Kernel.INTERFACE
            scope: Scope = InterfaceScope(module, recorder) if interface else OpenScope(recorder, self._modes)
            scopes.append(scope)
            handles.append(module.register_forward_pre_hook(OpensScope(self.listens, scope)))
            after = ClosesScope(recorder, scope)
        with_kwargs = kernel is Kernel.MULTIHEAD
        handles.append(module.register_forward_hook(after, prepend=True, with_kwargs=with_kwargs, always_call=True))

    def _hook_images(self, handles: list[RemovableHandle]) -> None:
        anatomy = self._plan.anatomy
        first = self._plan.model if anatomy.image_module is None else anatomy.image_module
        handles.append(first.register_forward_pre_hook(Reports(self._forward_begins), with_kwargs=True))
        if anatomy.grid_module is not None:
            handles.append(anatomy.grid_module.register_forward_hook(Reports(self._grid_seen)))
        if anatomy.token_module is not None:
            hook = anatomy.token_module.register_forward_hook(Reports(self._tokens_seen), with_kwargs=True)
            handles.append(hook)

    # --- what hooks report ------------------------------------------------------------------------------------------------------------

    def listens(self) -> bool:
        """Whether the forward that is running now is to be recorded."""
        if self._paused or self._stack is None:
            return False
        if _current_graph_task_id() != -1:  # inside a backward: checkpointing runs the forward again
            return False
        if get_ident() != self._owner:
            self._foreign_calls += 1
            return False
        return True

    def _forward_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.listens():
            return
        record = ForwardRecord(begun=True, memory=self._spare)
        self._spare = None
        self._records.append(record)
        images = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim() in (4, 5)), None)
        if images is not None:
            record.input_size = (images.shape[-2], images.shape[-1])

    def _strange_calls(self) -> Callable[[FrameType | None], None]:
        """What notes the calls of modules whose code does not show that they attend."""
        names = {id(module): name for name, module in self._plan.model.named_modules()}

        def note(frame: FrameType | None) -> None:
            while frame is not None:
                first = first_argument(frame)
                if id(first) in names:
                    if self.listens():
                        self._records[-1].strangers.setdefault(names[id(first)], type(first).__name__)
                    return
                frame = frame.f_back

        return note

    @property
    def _forwards(self) -> list[ForwardRecord]:
        """The records of forwards; the first record waits for attention modules that are called on their own."""
        return [r for r in self._records if r.begun or r.maps is not None or not r.is_empty()]

    def _grid_seen(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.listens():
            self._records[-1].saw_grid(output, module)

    def _tokens_seen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tokens_of = self._plan.anatomy.tokens_of
        if tokens_of is not None and self.listens():
            try:
                seen = tokens_of(args, kwargs, output)
            except Exception as error:  # an adapter's mistake is no reason to end the model's forward
                seen = SeenTokens(
                    problem=f"the model's adapter cannot tell its tokens: {type(error).__name__}: {error}."
                )
            self._records[-1].saw_tokens(seen)

    # --- results ----------------------------------------------------------------------------------------------------------------------

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
        forwards = self._forwards
        if not forwards:
            raise NothingCapturedError(self._why_nothing())
        return self._finish(forwards[-1])

    @property
    def forwards(self) -> tuple[AttentionMaps, ...]:
        """The maps of every forward since the context was entered (or `clear()`), oldest first; sizes may differ.

        Raises `BlockNotCapturedError` if one of them was left by an exception half-way: call `clear()` where you catch that.
        """
        return tuple(self._finish(record) for record in self._forwards)

    def _finish(self, record: ForwardRecord) -> AttentionMaps:
        if record.maps is None:
            if record.is_empty():
                raise NothingCapturedError(self._why_nothing())
            record.maps = finish(record, self._plan)
            self._spare = record.release()
            if record is self._records[-1]:
                self._forget_inputs()
                if self._stack is not None:
                    # What comes now, past the module at which forwards begin, is of another one.
                    self._records.append(ForwardRecord())
        return record.maps

    def _why_nothing(self) -> str:
        what = f"nothing captured: expected a forward of {type(self._plan.model).__name__} inside the context"
        if self._foreign_calls:
            return f"{what}, got one on another thread. Enter the context on the thread that runs the model."
        if self._paused:
            return f"{what}, got none while the capture was not paused."
        if self._forwards:
            return (
                f"{what}, got one in which no attention module ran. A compiled copy of the model, a replica, or only a part of it "
                "ran: pass to AttentionCapture the very object that you call, and make it after compiling."
            )
        return (
            f"{what}, got none. Call model(images) inside `with AttentionCapture(model) as capture:`. If you did, it was another "
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
        """Forget everything captured so far, and give back the memory that is kept for the next forward."""
        self._restart()
        self._spare = None

    def _restart(self) -> None:
        self._records[:] = [ForwardRecord()]
        self._forget_inputs()
        self._foreign_calls = 0

    def _forget_inputs(self) -> None:
        for _, recorder in self._seeing:
            recorder.inputs = ()

    def __repr__(self) -> str:
        state = "open" if self._stack is not None else "closed"
        return f"AttentionCapture({type(self._plan.model).__name__}, {len(self._recorders)} blocks, {state})"


def _rows_followed(rows: RowsOption) -> RowsOption:
    """Gradients are those of whole matrices."""
    if not isinstance(rows, str) or rows not in (Rows.READOUT, Rows.ALL):
        raise RowsNotKeptError(
            f"AttentionCapture(gradients=True) follows whole matrices: expected rows='all', got rows={rows!r}. Leave rows out; raw_attention "
            "then still gives the readout's row."
        )
    return Rows.ALL


def _remove_all(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _close_all(scopes: list[Scope]) -> None:
    for scope in scopes:
        scope.close()


def _compilable(model: nn.Module, plan: CapturePlan) -> tuple[nn.Module, ...]:
    """The modules which, if compiled, would hide a hook: those that hold a hooked module, and what attention modules hold."""
    anatomy = plan.anatomy
    hooked = {id(m) for m in (anatomy.image_module, anatomy.grid_module, anatomy.token_module) if m is not None}
    hooked |= {id(site.module) for site in plan.sites}
    inside = {id(m) for site in plan.sites for m in site.module.modules() if next(m.children(), None) is not None}
    chosen = []
    for module in model.modules():
        if id(module) in inside or any(id(m) in hooked for m in module.modules()):
            chosen.append(module)
    return tuple(chosen)
