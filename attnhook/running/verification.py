"""Checks the capture on *this* model: its rows against what the model itself computed, on the user's own input.

There are two checks per block, neither of which uses the code that computes captured rows: softmax rows times the kernel's values must be what
the kernel returned, and the rows must be those of the same model with its explicit softmax, where the library offers one.
"""

import copy
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from attnhook.capture.layout import TokenLayout
from attnhook.capture.records import AttentionMaps, BlockAttention
from attnhook.capture.session import AttentionCapture, MeasuringCapture
from attnhook.capture.sites import Kernel
from attnhook.running.inspection import Table, Tabular
from attnhook.running.targets import run_vision

TOLERANCE = 2e-5
"""Largest error of rows times values, relative to the largest value: float32 kernels differ by less over 4,097 tokens."""
_SUM_TOLERANCE = 1e-5
EXPLICIT_TOLERANCE = 1e-3
"""Largest error against the eager reference, whose own activations drift away from the fused model's block by block (4e-5 after 12)."""


@dataclass(frozen=True)
class BlockVerification:
    """The errors of one block, as largest absolute differences. NaN on both sides counts as equal."""

    name: str
    kernel: str  # what computed the attention
    # Rows times values from the kernel's output, over the largest value; None for explicit softmax.
    output_error: float | None
    sum_error: float  # a row's sum from 1, without `nan_rows` and the rows of fully masked queries, which sum to 0
    explicit_error: float | None  # from the rows of the model with explicit softmax; None if the library offers none
    nan_rows: int = 0  # rows that are NaN, as the kernel's output for them is


_ERRORS = "the largest of each block; - where a check does not apply"


@dataclass(frozen=True)
class VerificationReport(Tabular):
    """The result of `verify`; `str()` of it is a table.

    Attributes:
        type_name: The model's class.
        blocks: Errors by block.
        output_unchanged: Whether the model's output was the same bit for bit with and without capture.
        tolerance: The limit of `output_error`, in the model's precision; sums of rows, which are float32, must be within 1e-5.
    """

    type_name: str
    blocks: tuple[BlockVerification, ...]
    output_unchanged: bool
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance and the output was unchanged."""
        return self.output_unchanged and all(map(self._is_good, self.blocks))

    def _limits(self) -> tuple[float, float, float]:
        return self.tolerance, _SUM_TOLERANCE, max(EXPLICIT_TOLERANCE, 50 * self.tolerance)

    def _is_good(self, block: BlockVerification) -> bool:
        errors = block.output_error, block.sum_error, block.explicit_error
        return all(error is None or error <= limit for error, limit in zip(errors, self._limits(), strict=True))

    def _table(self) -> Table:
        names = zip(("rows x values", "sum of rows", "explicit softmax"), self._limits(), strict=True)
        rows: list[tuple[str, ...]] = [
            ("block", "kernel", *(f"{name} (limit {limit:.0e})" for name, limit in names), "")
        ]
        for block in self.blocks:
            errors = (block.output_error, block.sum_error, block.explicit_error)
            numbers = ["-" if error is None else f"{error:.1e}" for error in errors]
            nan_rows = f", {block.nan_rows} rows are NaN, in the kernel's output too" if block.nan_rows else ""
            verdict = ("ok" if self._is_good(block) else "OVER TOLERANCE") + nan_rows
            rows.append((block.name, block.kernel, *numbers, verdict))
        unchanged = "unchanged, bit for bit" if self.output_unchanged else "CHANGED by the capture"
        result = "passed" if self.passed else "FAILED"
        return [("model", self.type_name), ("output", unchanged), ("result", result), ("errors", _ERRORS)], rows


def verify(model: nn.Module, pixels: Tensor, *, layout: TokenLayout | None = None) -> VerificationReport:
    """Check captured attention against the model's own output, and against its explicit attention.

    Runs four forwards, one of them on a copy of the model with its explicit softmax (timm, transformers), without gradients and in the
    model's current mode. With dropout the first check is meaningless, so call `model.eval()` first.

    Args:
        model: The model.
        pixels: `(batch, 3, height, width)`.
        layout: What the tokens are, for a model that attnhook does not know; as in `AttentionCapture`.

    Returns:
        The errors; `.passed` says whether all are within tolerance.

    Raises:
        UnsupportedModelError: If the model has no attention that can be captured.

    Example:
        >>> import timm, torch
        >>> from attnhook import verify
        >>> report = verify(timm.create_model("test_vit").eval(), torch.randn(1, 3, 160, 160))
        >>> report.passed, len(report.blocks)
        (True, 6)
    """
    capture = AttentionCapture(model, rows="all", layout=layout)
    with torch.no_grad():
        expected = _run(model, pixels)
        with capture:
            output = _run(model, pixels)
        maps = capture.maps
        kernels = _fused_calls(model, pixels, layout)
        explicit = _explicit(model, pixels, capture)
    parameter = next(model.parameters(), pixels)
    eps = torch.finfo(parameter.dtype).eps if parameter.dtype.is_floating_point else 1e-7
    return VerificationReport(
        f"{type(capture.plan.model).__module__}.{type(capture.plan.model).__qualname__}",
        tuple(_errors(block, kernels.get(block.name), explicit) for block in maps),
        _identical(expected, output),
        max(TOLERANCE, 4 * eps),
    )


def _errors(
    block: BlockAttention, fused_call: tuple[Tensor, Tensor] | None, explicit: AttentionMaps | None
) -> BlockVerification:
    rows = block.rows
    sums = rows.sum(dim=-1)
    skipped = sums == 0
    output_error, nan_rows = None, 0
    if fused_call is not None and block.kernel != "softmax":
        values, output = (t.double() for t in fused_call)
        values = values.repeat_interleave(rows.shape[1] // values.shape[1], dim=1)
        largest = torch.where(values.isfinite(), values.abs(), 0.0).max().clamp_min(1e-30)
        output_error = _difference(rows.double() @ values, output) / float(largest)
        is_nan = sums.isnan() & output.isnan().all(dim=-1)
        skipped, nan_rows = skipped | is_nan, int(is_nan.sum())
    sum_error = float(torch.where(skipped, 0, (sums - 1).abs()).max())
    explicit_error = None
    if explicit is not None and block.name in explicit.block_names:
        explicit_error = _difference(rows, explicit[block.name].rows.to(rows.device))
    return BlockVerification(block.name, block.kernel, output_error, sum_error, explicit_error, nan_rows)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference: 0 where both are NaN, NaN where one is."""
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    return float(torch.where(same, 0, (ours - theirs).abs()).max())


def _fused_calls(model: nn.Module, pixels: Tensor, layout: TokenLayout | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Values and outputs of the fused calls, by block."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def record(block: str, values: Tensor, output: Tensor) -> None:
        calls[block] = values, output

    with MeasuringCapture(model, lambda *_: None, on_output=record, layout=layout):
        _run(model, pixels)
    return calls


def _run(model: nn.Module, pixels: Tensor) -> Any:
    """One forward. All draw the same random numbers (MAE's masks), and leave the caller's generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return run_vision(model, pixels)


def _explicit(model: nn.Module, pixels: Tensor, capture: AttentionCapture) -> AttentionMaps | None:
    """The maps of a copy of the model with an explicit softmax (the eager reference); None if the library has no such switch."""
    fused = [s.name for s in capture.plan.sites if s.running_kernel() in (Kernel.SDPA, Kernel.INTERFACE)]
    if not fused:
        return None
    reference = copy.deepcopy(capture.plan.model)
    switch = getattr(reference, "set_attn_implementation", None)
    if isinstance(switch, MethodType):
        switch("eager")
    modules = dict(reference.named_modules())
    for name in fused:
        if hasattr(modules[name], "fused_attn"):
            modules[name].fused_attn = False
    explicit = AttentionCapture(reference, rows="all", layout=capture.plan.layout)
    if any(s.running_kernel() is Kernel.SDPA for s in explicit.plan.sites if s.name in fused):
        return None
    with explicit:
        _run(reference, pixels)
    return explicit.maps


def _identical(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict):
        return all(_identical(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return all(_identical(a, b) for a, b in zip(one, other, strict=True))
    return True
