"""What would be captured from a model, what would not, and why."""

import html
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor, nn

from attnhook.capture.layout import TokenLayout
from attnhook.capture.notebook import html_table
from attnhook.capture.plan import CapturePlan, make_plan
from attnhook.capture.records import AttentionMaps
from attnhook.capture.session import AttentionCapture
from attnhook.capture.sites import Kernel
from attnhook.options import Size
from attnhook.running.targets import run_vision
from attnhook.zoo.uncaptured import uncaptured_attention

_KERNELS = {
    Kernel.SDPA: "fused (scaled_dot_product_attention)",
    Kernel.MULTIHEAD: "nn.MultiheadAttention",
    Kernel.ENCODER_LAYER: "nn.TransformerEncoderLayer",
    Kernel.INTERFACE: "registered attention function",
    Kernel.ANY: "SDPA or explicit softmax",
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")  # of repeated modules, in a path


@dataclass(frozen=True)
class BlockDescription:
    """One attention module."""

    name: str  # its path
    type_name: str  # its class
    kernel: str  # how it computes attention; after a forward, the kernel that ran
    pooling: bool  # whether its queries are learned pooling queries
    shape: tuple[int, int, int, int] | None = None  # after a forward: (batch, heads, queries, keys)


@dataclass(frozen=True)
class PartDescription:
    """A part of a model that has attention."""

    name: str  # its path; empty for the whole model; `*` stands for the numbers of repeated modules
    num_modules: int  # attention modules in it


Table: TypeAlias = tuple[
    Sequence[tuple[str, str]], Sequence[Sequence[str]]
]  # named facts, and rows of which the first is the head


class Tabular(ABC):
    """What is printed, and shown in a notebook, as a table below some facts."""

    @abstractmethod
    def _table(self) -> Table: ...

    def __str__(self) -> str:
        facts, rows = self._table()
        wide = max(len(name) for name, _ in facts)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*(f"{name:<{wide}} {value}" for name, value in facts), "", *lines])

    def _repr_html_(self) -> str:
        facts, rows = self._table()
        said = "".join(f"<div><strong>{html.escape(name)}</strong> {html.escape(value)}</div>" for name, value in facts)
        return f"<div>{said}{html_table(rows)}</div>"


@dataclass(frozen=True)
class ModelDescription(Tabular):
    """What attnhook knows about a model; `str()` of it is a table.

    Attributes:
        type_name: The model's class.
        blocks: Its attention modules, in order.
        tokens: The tokens in words.
        readout: What the head reads (`"cls"`, `"pool"`, `"mean"`), or None.
        readout_reason: Why.
        grid: After a forward: patch rows and columns.
        input_size: After a forward: height and width of the images in pixels.
        frames: After a forward of a video model: steps in time of the grid, or frames of a clip.
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
    frames: int = 1
    captured: tuple[PartDescription, ...] = ()
    not_captured: tuple[PartDescription, ...] = ()

    def _table(self) -> Table:
        grid = "read from each forward" if self.grid is None else f"{self.grid[0]} x {self.grid[1]}"
        if self.frames > 1:
            grid = f"{self.frames} frames of {grid}"
        if self.input_size is not None:
            grid += f" patches of a {self.input_size[0]} x {self.input_size[1]} px input (height x width)"
        captured = _in_words(self.captured, "block")
        if self.not_captured:
            captured += f"; not captured: {_in_words(self.not_captured, 'attention module')}; name modules with blocks= to capture them"
        head = [
            ("model", self.type_name),
            ("captured", captured),
            ("tokens", self.tokens),
            ("readout", f"{self.readout or 'none'} ({self.readout_reason})"),
            ("grid", grid),
        ]
        rows = [("block", "module", "kernel", "batch, heads, queries, keys")]
        for number, block in enumerate(self.blocks):
            kind = f"{block.type_name} (pooling)" if block.pooling else block.type_name
            shape = "" if block.shape is None else ", ".join(map(str, block.shape))
            rows.append((f"{number:>2}  {block.name}", kind, block.kernel, shape))
        return head, rows


def describe(model: nn.Module, pixels: Tensor | None = None) -> ModelDescription:
    """Describe what would be captured from a model, what would not, and why.

    Args:
        model: The model.
        pixels: `(batch, 3, height, width)`. With them, one forward runs, and the description contains the kernels that ran, the shapes and
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
    maps = None
    if pixels is not None:
        with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
            run_vision(model, pixels)
        maps = capture.maps
    layouts = () if maps is None else (block.token_layout for block in maps)
    layout = next((layout for layout in layouts if isinstance(layout, TokenLayout)), None)
    readout, blocks = plan.anatomy.readout, _blocks(plan, maps)
    hooked = [site.name for site in plan.sites]
    others = uncaptured_attention(plan.model, hooked)
    return ModelDescription(
        type_name=f"{type(plan.model).__module__}.{type(plan.model).__qualname__}",
        blocks=blocks,
        tokens=_tokens_in_words(plan),
        readout=None if readout.rows is None else readout.rows.value,
        readout_reason=readout.reason,
        grid=None if layout is None else layout.grid,
        frames=1 if layout is None else max(layout.frames, layout.frames_in_batch),
        input_size=None if maps is None else maps.input_size,
        captured=_parts([*dict.fromkeys(block.name.partition(":")[0] for block in blocks)], without=others),
        not_captured=_parts(others, without=hooked),
    )


def _blocks(plan: CapturePlan, maps: AttentionMaps | None) -> tuple[BlockDescription, ...]:
    types = {site.name: type(site.module).__name__ for site in plan.sites}
    if maps is None:
        sites = ((site, _KERNELS[site.running_kernel()]) for site in plan.sites)
        return tuple(BlockDescription(site.name, types[site.name], kernel, site.pooling) for site, kernel in sites)
    found = ((block, types[block.name.partition(":")[0]]) for block in maps)
    return tuple(BlockDescription(block.name, kind, block.kernel, block.pooling, block.shape) for block, kind in found)


def _tokens_in_words(plan: CapturePlan) -> str:
    anatomy = plan.anatomy
    counts = {"class token": anatomy.cls is not None, "distillation token": anatomy.distillation}
    words = [f"1 {name}" for name, present in counts.items() if present]
    words += [f"{anatomy.registers} register tokens"] if anatomy.registers else []
    words += ["patches"]
    words += [f"{anatomy.suffix} tokens after them"] if anatomy.suffix else []
    return ", ".join(words)


def _parts(names: Sequence[str], *, without: Sequence[str]) -> tuple[PartDescription, ...]:
    """The outermost modules that hold some of the named modules, and none of the others."""
    shared = {path for name in without for path in _paths(name)}
    own = (next((path for path in _paths(name) if path not in shared), name) for name in names)
    counts = Counter(_NUMBER.sub("*", path) for path in own)
    return tuple(PartDescription(path, count) for path, count in counts.items())


def _paths(name: str) -> list[str]:
    """The paths of a module and of all that contain it, beginning with the whole model's."""
    return ["", *accumulate(name.split("."), "{}.{}".format)]


def _in_words(parts: Sequence[PartDescription], what: str) -> str:
    counts = [(part.name, f"{part.num_modules} {what}{'' if part.num_modules == 1 else 's'}") for part in parts]
    return ", ".join(f"{name} ({count})" if name else count for name, count in counts)
