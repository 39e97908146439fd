"""Capture inside a compiled graph: a module that returns its model's output and the attention rows, for `torch.compile(fullgraph=True)`.

Dynamo traces a function mode that sees the fused calls. What needs hooks (which never fire if registered after compiling) or whole matrices
needs `AttentionCapture`.
"""

import inspect
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import sdpa_operands, softmax_rows
from attnhook.capture.records import AttentionMaps
from attnhook.capture.session import AttentionCapture
from attnhook.capture.sites import Kernel
from attnhook.capture.torch_internals import SDPA
from attnhook.errors import NothingCapturedError, TokenLayoutError, UnsupportedModelError, counted
from attnhook.options import BlocksOption, Rows, RowsOption

_EAGER = "Use AttentionCapture, which runs the model eagerly."


def _refusal(what: str, expected: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{what} cannot be captured inside a compiled graph: expected {expected}. {_EAGER}")


class _RowMode(TorchFunctionMode):
    """Computes rows of those calls of scaled_dot_product_attention for which `chosen` is true."""

    def __init__(self, queries: slice | list[int], chosen: Sequence[bool]) -> None:
        super().__init__()
        self.queries, self.chosen = queries, chosen
        self.calls = 0
        self.rows: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.unflatten:  # written in Python: Dynamo of torch 2.6 traces it as a method only
            return args[0].unflatten(*args[1:], **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        if func is SDPA:
            if self.calls < len(self.chosen) and self.chosen[self.calls]:
                self.rows.append(_rows(self.queries, *args, **(kwargs or {})))
            self.calls += 1
        return output


def _rows(queries: slice | list[int], *args: Any, **kwargs: Any) -> Tensor:
    call = sdpa_operands(*args, **kwargs).by_reference()
    query, key = call.query[:, :, queries], call.key
    if query.dtype is not torch.float32 and query.dtype is not torch.float64:
        query, key = query.float(), key.float()
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if call.scale is None else call.scale)
    return softmax_rows(call.hide(logits, queries) if call.masked else logits, masked=call.masked)


class TraceableCapture(nn.Module):
    """A model and the capture of its attention in one module, which compiles into one graph.

    Args:
        model: A model whose attention modules all call `scaled_dot_product_attention`, in order and once per forward.
        pixels: `(batch, channels, height, width)`, or with an axis of frames. One eager forward runs on them, to learn which calls there are
            and what their tokens are. Later forwards must have the same shape, apart from the batch.
        blocks: Which blocks, as for `AttentionCapture`.
        rows: `"cls"`, `"pool"`, `"readout"` if it is one of them, or token indices.

    Raises:
        UnsupportedModelError: If the model attends in another way, drops or shuffles patches, or `rows` needs whole matrices.
        TypeError: If `pixels` is not a tensor.

    Example:
        >>> import timm, torch
        >>> from attnhook import TraceableCapture
        >>> model = timm.create_model("test_vit").eval()
        >>> pixels = torch.randn(1, 3, 160, 160)
        >>> capture = TraceableCapture(model, pixels)
        >>> compiled = torch.compile(capture, fullgraph=True, backend="eager")
        >>> with torch.no_grad():
        ...     output, rows = compiled(pixels)
        >>> capture.maps(rows)[-1].rows.shape
        torch.Size([1, 2, 1, 101])
    """

    def __init__(
        self, model: nn.Module, pixels: Tensor, *, blocks: BlocksOption = None, rows: RowsOption = "readout"
    ) -> None:
        super().__init__()
        if not isinstance(pixels, Tensor):
            raise TypeError(
                f"pixels must be a tensor: expected shape (batch, channels, height, width), got {type(pixels).__name__}. Pass the images alone."
            )
        self.model = model
        self._shape = tuple(pixels.shape[1:])
        self._argument = _first_parameter(model)
        wanted = AttentionCapture(model, blocks=blocks, rows=rows)
        everything = AttentionCapture(model, rows="all")
        chosen = wanted.plan.rows
        self._queries: slice | list[int] = slice(None)  # every query of a pooling
        if chosen is Rows.CLS:
            self._queries = [wanted.plan.anatomy.cls or 0]
        elif isinstance(chosen, tuple):
            self._queries = [token for token in chosen if isinstance(token, int)]
        if chosen in (Rows.ALL, Rows.MEAN) or (isinstance(chosen, tuple) and self._queries != [*chosen]):
            raise _refusal(f"rows={rows!r}", "'cls', 'pool' or token indices")
        others = [s.name for s in everything.plan.sites if s.running_kernel() is not Kernel.SDPA or not s.plain]
        if others:
            raise _refusal(f"block {others[0]!r}", "a plain call of scaled_dot_product_attention")
        mode = _RowMode(slice(0), ())
        with torch.no_grad(), everything, wanted, mode:
            model(pixels)
        self._learn(everything.maps, wanted.maps)
        if mode.calls != self._calls:
            its = f"its {self._calls} attention modules only, got {mode.calls}"
            raise _refusal("the model", f"calls of scaled_dot_product_attention in {its}")

    def _learn(self, everything: AttentionMaps, wanted: AttentionMaps) -> None:
        if len(everything) != len({block.name.partition(":")[0] for block in everything}):
            raise UnsupportedModelError(f"a module attends several times in one forward: expected once. {_EAGER}")
        for block in everything:
            layout = block.token_layout
            if not isinstance(layout, str) and (not isinstance(layout, TokenLayout) or layout.order is not None):
                order = "all patches in order in every forward, got a model that drops or shuffles them"
                raise _refusal(f"block {block.name!r}", order)
        self._calls = len(everything)
        # Truth values, not numbers: under Dynamo of torch 2.6 with `dynamic=True`, no number is in a list of a module's numbers.
        self._chosen = [block.name in wanted.block_names for block in everything]
        self._blocks = [replace(block, captured=torch.empty(block.shape, device="meta")) for block in wanted]
        self._no_blocks = wanted[:0]

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """Run the model.

        Args:
            args: The model's.
            kwargs: The model's.

        Returns:
            The model's output, and the chosen blocks' rows, each `(batch, heads, rows, keys)` float32, detached.

        Raises:
            TokenLayoutError: If the images do not have the shape of `pixels`, apart from the batch: their patches would be on another grid.
            NothingCapturedError: If the number of attention calls differs from the eager forward's: rows could not be matched to blocks.
        """
        self._check_shape(self._images(args, kwargs))
        mode = _RowMode(self._queries, self._chosen)
        with mode:
            output = self.model(*args, **kwargs)
        if mode.calls != self._calls:
            raise NothingCapturedError(
                f"this forward called scaled_dot_product_attention {mode.calls} times: expected {self._calls}, as for the pixels that the "
                "capture was created with. Create another TraceableCapture, in the mode and with the arguments that the model runs with."
            )
        return output, tuple(mode.rows)

    def _images(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The argument that takes `pixels`; among keywords that the signature does not name, the first image or video."""
        if args:
            return args[0]
        if self._argument in kwargs:
            return kwargs[self._argument]
        for value in kwargs.values():
            if isinstance(value, Tensor) and value.dim() in (4, 5):
                return value
        return None

    def _check_shape(self, images: Any) -> None:
        expected = _batch_of(self._shape)
        if not isinstance(images, Tensor):
            raise TokenLayoutError(
                f"no images found among the arguments: expected a tensor {expected}, got {type(images).__name__} in its place. Pass the images "
                "as the model's first argument."
            )
        shape = tuple(operator.index(length) for length in images.shape[1:])  # numbers, where Dynamo has symbols
        if shape != self._shape:
            raise TokenLayoutError(
                f"the images have shape {_batch_of(shape)}: expected {expected}, as the pixels that the capture was created with. Create "
                "another TraceableCapture for this size; only the batch may differ."
            )

    def maps(self, rows: tuple[Tensor, ...]) -> AttentionMaps:
        """Give rows that `forward` returned their names and layouts.

        Args:
            rows: What `forward` returned.

        Returns:
            The maps.

        Raises:
            NothingCapturedError: If the number of blocks differs.
            TokenLayoutError: If their shape is not that of the eager forward's rows: another capture made them, or the model dropped tokens.
        """
        if not isinstance(rows, tuple | list) or len(rows) != len(self._blocks):
            got = f"rows of {counted(len(rows), 'block')}" if isinstance(rows, tuple | list) else type(rows).__name__
            raise NothingCapturedError(f"{got}: expected rows of {len(self._blocks)}. Pass what forward returned.")
        pairs = list(zip(rows, self._blocks, strict=True))
        for row, block in pairs:
            if tuple(row.shape[1:]) != block.shape[1:]:
                raise TokenLayoutError(
                    f"block {block.name!r} has rows {_batch_of(row.shape[1:])}: expected {_batch_of(block.shape[1:])}, that is (batch, heads, "
                    "rows, keys) of the eager forward. Pass what this capture's forward returned, and create the capture in the mode (train or "
                    "eval) that the model runs in."
                )
        return self._no_blocks.with_blocks([replace(block, captured=row) for row, block in pairs])


def _first_parameter(model: nn.Module) -> str | None:
    """The name under which the model takes its first argument; None if its signature does not say."""
    first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    return first.name if first is not None and first.kind is first.POSITIONAL_OR_KEYWORD else None


def _batch_of(shape: Sequence[int]) -> str:
    """A shape in words, its batch left open."""
    return f"(batch, {', '.join(str(length) for length in shape)})"
