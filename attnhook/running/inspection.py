"""What would be captured from a model, what would not, and why."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnhook.capture.layout import TokenLayout
from attnhook.capture.plan import CapturePlan, make_plan
from attnhook.capture.records import AttentionMaps
from attnhook.capture.session import AttentionCapture
from attnhook.capture.sites import Kernel
from attnhook.options import Size
from attnhook.running.vision_forward import run_vision
from attnhook.zoo.uncaptured import uncaptured_attention

_KERNELS = {
    Kernel.SDPA: "fused (scaled_dot_product_attention)",
    Kernel.MULTIHEAD: "nn.MultiheadAttention",
    Kernel.ENCODER_LAYER: "nn.TransformerEncoderLayer",
    Kernel.INTERFACE: "registered attention function",
    Kernel.ANY: "explicit softmax or any",
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")  # of a repeated module


@dataclass(frozen=True)
class BlockDescription:
    """One attention module.

    Attributes:
        name: Its path.
        type_name: Its class.
        kernel: How it computes attention, or, after a forward, what was seen to.
        pooling: Whether its queries are learned pooling queries.
        shape: After a forward: `(batch, heads, queries, keys)`.
    """

    name: str
    type_name: str
    kernel: str
    pooling: bool
    shape: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class PartDescription:
    """A part of a model that has attention.

    Attributes:
        name: Its path; empty for the whole model. `*` stands for the numbers of repeated modules.
        num_modules: How many attention modules it has.
    """

    name: str
    num_modules: int


@dataclass(frozen=True)
class ModelDescription:
    """What attnhook knows of a model; `str()` of it is a table.

    Attributes:
        type_name: The model's class.
        blocks: Its attention modules, in order.
        tokens: The special tokens in words.
        readout: What the head reads (`"cls"`, `"pool"`, `"mean"`), or None.
        readout_reason: Why.
        grid: After a forward: patch rows and columns.
        input_size: After a forward: height and width of the images in pixels.
        captured: The parts of the model whose attention is captured.
        not_captured: The parts whose attention is not: text towers, language models, decoders.
    """

    type_name: str
    blocks: tuple[BlockDescription, ...]
    tokens: str
    readout: str | None
    readout_reason: str
    grid: Size | None = None
    input_size: Size | None = None
    captured: tuple[PartDescription, ...] = ()
    not_captured: tuple[PartDescription, ...] = ()

    def __str__(self) -> str:
        grid = "read off each forward" if self.grid is None else f"{self.grid[0]} x {self.grid[1]}"
        if self.input_size is not None:
            grid += f" patches of a {self.input_size[0]} x {self.input_size[1]} px input (height x width)"
        head = [
            ("model", self.type_name),
            ("captured", self._captured_in_words()),
            ("tokens", self.tokens),
            ("readout", f"{self.readout or 'none'} ({self.readout_reason})"),
            ("grid", grid),
        ]
        rows = [("block", "module", "kernel", "batch, heads, queries, keys")]
        for number, block in enumerate(self.blocks):
            kind = f"{block.type_name} (pooling)" if block.pooling else block.type_name
            shape = "" if block.shape is None else ", ".join(map(str, block.shape))
            rows.append((f"{number:>2}  {block.name}", kind, block.kernel, shape))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*(f"{name:<8} {value}" for name, value in head), "", *table])

    def _captured_in_words(self) -> str:
        words = [_in_words(self.captured, "block")]
        words += [f"not captured: {_in_words(self.not_captured, 'attention module')}"] if self.not_captured else []
        return "; ".join(words)


def describe(model: nn.Module, pixels: Tensor | None = None) -> ModelDescription:
    """Say what would be captured from a model, what would not, and why.

    Args:
        model: The model.
        pixels: `(batch, 3, height, width)`: one forward is run on them, and the description then says which kernel ran, the shapes and
            the grid. None runs nothing.

    Returns:
        The description.

    Raises:
        UnsupportedModelError: If it has no attention that can be captured.

    Example:
        >>> import timm
        >>> from attnhook import describe
        >>> description = describe(timm.create_model("vit_tiny_patch16_224"))
        >>> len(description.blocks), description.readout
        (12, 'cls')
    """
    plan = make_plan(model, None, "all", None)
    maps = None if pixels is None else _run(model, pixels)
    layout = (
        None if maps is None else next((b.token_layout for b in maps if isinstance(b.token_layout, TokenLayout)), None)
    )
    readout = plan.anatomy.readout
    blocks = _from_plan(plan) if maps is None else _from_maps(plan, maps)
    hooked = [site.name for site in plan.sites]
    others = uncaptured_attention(plan.model, hooked)
    return ModelDescription(
        type_name=f"{type(plan.model).__module__}.{type(plan.model).__qualname__}",
        blocks=blocks,
        tokens=_tokens_in_words(plan),
        readout=None if readout.rows is None else readout.rows.value,
        readout_reason=readout.reason,
        grid=None if layout is None else layout.grid,
        input_size=None if maps is None else maps.input_size,
        captured=_parts([*dict.fromkeys(block.name.partition(":")[0] for block in blocks)], beside=others),
        not_captured=_parts(others, beside=hooked),
    )


def _run(model: nn.Module, pixels: Tensor) -> AttentionMaps:
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        run_vision(model, pixels)
    return capture.maps


def _from_plan(plan: CapturePlan) -> tuple[BlockDescription, ...]:
    return tuple(
        BlockDescription(site.name, type(site.module).__name__, _KERNELS[site.running_kernel()], site.pooling)
        for site in plan.sites
    )


def _from_maps(plan: CapturePlan, maps: AttentionMaps) -> tuple[BlockDescription, ...]:
    types = {site.name: type(site.module).__name__ for site in plan.sites}
    return tuple(
        BlockDescription(block.name, types[block.name.partition(":")[0]], block.kernel, block.pooling, block.shape)
        for block in maps
    )


def _tokens_in_words(plan: CapturePlan) -> str:
    known = plan.anatomy
    counts = (
        (int(known.cls is not None), "class token"),
        (int(known.distillation), "distillation token"),
        (known.registers, "register tokens"),
    )
    words = [f"{count} {name}" for count, name in counts if count] + ["patches"]
    words += [f"{known.suffix} tokens behind them"] if known.suffix else []
    return ", ".join(words)


def _parts(names: Sequence[str], *, beside: Sequence[str]) -> tuple[PartDescription, ...]:
    """The outermost modules that hold some of the named modules, and none of those beside them."""
    shared = {path for name in beside for path in _paths(name)}
    own = (next((path for path in _paths(name) if path not in shared), name) for name in names)
    counts = Counter(_NUMBER.sub("*", path) for path in own)
    return tuple(PartDescription(path, count) for path, count in counts.items())


def _paths(name: str) -> list[str]:
    """The paths of a module and of all that hold it, the whole model's first."""
    steps = name.split(".")
    return ["", *(".".join(steps[: depth + 1]) for depth in range(len(steps)))]


def _in_words(parts: Sequence[PartDescription], what: str) -> str:
    words = []
    for part in parts:
        count = f"{part.num_modules} {what}" + ("" if part.num_modules == 1 else "s")
        words.append(f"{part.name} ({count})" if part.name else count)
    return ", ".join(words)
