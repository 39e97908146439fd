"""What `overhead.py` compares: the models, the ways to get attention out of them, and the proof that each gives what it claims.

All weights are random. The twins of a case (the same model with another attention kernel) share their weights' memory, so that none of them
finds a warmer cache than another; the queries' and keys' weights are enlarged, so that attention is far from uniform and a wrong row shows.
Every candidate builds only the models it needs: a memory probe runs it alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import timm
import torch
import torch.nn.functional as F
import transformers
from timm.layers import set_fused_attn, use_fused_attn
from timm.models import _features_fx  # noqa: F401 (what AttentionExtract imports: no candidate's process has more libraries than another)
from timm.utils.attention_extract import AttentionExtract
from torch import Tensor, nn
from torchvision.models.vision_transformer import vit_b_16

from attnhook import AttentionCapture, TraceableCapture

ROW_TOLERANCE = 2e-5
SUM_TOLERANCE = 1e-5
# Of logits up to 1. Two graphs of one model may be fused differently; so far both gave the same bits, and eager ones were off by 1.2e-06.
COMPILED_TOLERANCE = 1e-5
BACKEND = "inductor"


class CheckError(Exception):
    """A candidate gave a wrong result: its time would mean nothing."""


@dataclass(frozen=True)
class Spec:
    """One case.

    Attributes:
        architecture: A timm model's name, or `"torchvision"` for its ViT-B/16.
        size: Height and width of the images in pixels.
        batch: Number of images.
        repeats: Rounds to time unless the user says otherwise.
        compiled: Whether everything runs compiled, and the compiled model is what the others are divided by.
    """

    architecture: str
    size: int
    batch: int
    repeats: int
    compiled: bool = False


CASES = {
    "vit_tiny-b1": Spec("vit_tiny_patch16_224", 224, 1, 200),
    "vit_tiny-b1-compiled": Spec("vit_tiny_patch16_224", 224, 1, 200, compiled=True),
    "vit_tiny-b8": Spec("vit_tiny_patch16_224", 224, 8, 60),
    "vit_small-b1": Spec("vit_small_patch16_224", 224, 1, 100),
    "vit_small-b8": Spec("vit_small_patch16_224", 224, 8, 30),
    "vit_base-b1": Spec("vit_base_patch16_224", 224, 1, 60),
    "vit_base-b8": Spec("vit_base_patch16_224", 224, 8, 20),
    "vit_small-512px-b1": Spec("vit_small_patch16_224", 512, 1, 30),
    "vit_small-1024px-b1": Spec("vit_small_patch16_224", 1024, 1, 11),
    "torchvision_vit_b_16-b1": Spec("torchvision", 224, 1, 60),
    "torchvision_vit_b_16-b8": Spec("torchvision", 224, 8, 20),
}


@dataclass(frozen=True)
class Candidate:
    """One way to run a forward.

    Attributes:
        run: Runs it once; what it returns is what `check` takes.
        base: The bare forward that its time and memory are divided by or compared with; None for a bare forward.
        check: Raises `CheckError` if the result is wrong, else returns the largest error of a row; None where there is nothing to check.
    """

    run: Callable[[], Any]
    base: str | None = None
    check: Callable[[Any], float] | None = None


class Case:
    """A model, its twins and its candidates, each built when first needed."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    @cached_property
    def images(self) -> Tensor:
        """Random images, the same in every process."""
        shape = (self.spec.batch, 3, self.spec.size, self.spec.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    @cached_property
    def model(self) -> nn.Module:
        """The model as the library builds it by default: fused."""
        if self.spec.architecture == "torchvision":
            torch.manual_seed(0)
            return _sharpened(vit_b_16(image_size=self.spec.size))
        return self._timm(fused=True)

    @cached_property
    def unfused(self) -> nn.Module:
        """The timm twin that computes its softmax explicitly."""
        return self._sharing("model", self._timm(fused=False))

    @cached_property
    def compiled(self) -> Callable[..., Any]:
        """The model, compiled into one graph when it first runs."""
        return torch.compile(self.model, fullgraph=True, backend=BACKEND)

    @cached_property
    def sdpa(self) -> nn.Module:
        """A transformers ViT of the same size, fused."""
        return self._transformers("sdpa")

    @cached_property
    def eager(self) -> nn.Module:
        """The same with transformers' eager attention."""
        return self._sharing("sdpa", self._transformers("eager"))

    def _timm(self, *, fused: bool) -> nn.Module:
        torch.manual_seed(0)
        with fused_attention(enabled=fused):
            return _sharpened(timm.create_model(self.spec.architecture, img_size=self.spec.size))

    def _transformers(self, implementation: str) -> nn.Module:
        size = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}[self.spec.architecture.split("_")[1]]
        config = transformers.ViTConfig(
            hidden_size=size[0],
            num_attention_heads=size[1],
            intermediate_size=4 * size[0],
            num_hidden_layers=12,
            image_size=self.spec.size,
        )
        torch.manual_seed(0)
        return _sharpened(
            transformers.AutoModel.from_config(config, attn_implementation=implementation, add_pooling_layer=False)
        )

    def _sharing(self, original: str, twin: nn.Module) -> nn.Module:
        """Point the twin to the original's weights, if the original is there (in a memory probe it is not)."""
        if original in self.__dict__:
            twin.load_state_dict(self.__dict__[original].state_dict(), assign=True)
        return twin

    @cached_property
    def expected(self) -> tuple[Tensor, list[Tensor]]:
        """The bare output, and the class token's row of every block by an explicit softmax."""
        output = self.model(self.images)
        if self.spec.architecture == "torchvision":
            return output, explicit_rows_of_multihead(self.model, self.images)
        return output, explicit_rows_of_timm(self.unfused, self.images)

    def candidates(self) -> dict[str, Candidate]:
        """Every candidate by name; building this builds no model."""
        if self.spec.compiled:
            return {
                "compiled": Candidate(lambda: self.compiled(self.images)),
                "compiled again": Candidate(lambda: self.compiled(self.images), "compiled"),
                "TraceableCapture, compiled": self._traceable(),
            }
        chosen = {
            "bare": Candidate(lambda: self.model(self.images)),
            "bare again": Candidate(lambda: self.model(self.images), "bare"),
            "attnhook, all blocks": self._attnhook(None),
        }
        if self.spec.architecture == "torchvision":
            return chosen
        return chosen | {
            "rows alone": Candidate(self._rows_alone, "bare", lambda result: check_capture(result, *self.expected)),
            "attnhook, last block": self._attnhook(1),
            "timm AttentionExtract": Candidate(
                lambda: self._extract(self.images), "bare", lambda maps: check_matrices(list(maps.values()), 12)
            ),
            "HF bare": Candidate(lambda: self.sdpa(self.images)),
            "HF eager": Candidate(
                lambda: self.eager(self.images, output_attentions=True),
                "HF bare",
                lambda output: check_matrices(output.attentions, 12),
            ),
        }

    def _rows_alone(self) -> tuple[Tensor, list[Tensor]]:
        """The fewest operations that give the class token's rows of one known model, with nothing checked: what no tool can go below."""
        fused, scores = F.scaled_dot_product_attention, []

        def attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
            scores.extend(torch.bmm(query[i, :, :1], key[i].mT) for i in range(len(query)))
            return fused(query, key, value, **kwargs)

        F.scaled_dot_product_attention = attention
        try:
            output = self.model(self.images)
        finally:
            F.scaled_dot_product_attention = fused
        rows = torch.softmax(torch.stack(scores) * self.model.blocks[0].attn.scale, dim=-1)
        return output, list(rows.split(len(self.images)))

    @cached_property
    def _extract(self) -> nn.Module:
        return AttentionExtract(self.unfused)

    def _attnhook(self, blocks: int | None) -> Candidate:
        opened: list[AttentionCapture] = []

        def run() -> tuple[Tensor, list[Tensor]]:
            if not opened:
                opened.append(AttentionCapture(self.model, blocks=blocks, rows="cls"))  # once, in the checked run
            with opened[0] as capture:
                output = self.model(self.images)
            return output, [block.rows for block in capture.maps]

        def check(result: tuple[Tensor, list[Tensor]]) -> float:
            output, rows = self.expected
            return check_capture(result, output, rows if blocks is None else rows[-blocks:])

        return Candidate(run, "bare", check)

    def _traceable(self) -> Candidate:
        made: list[tuple[TraceableCapture, Callable[..., Any]]] = []

        def run() -> tuple[Tensor, list[Tensor]]:
            if not made:  # once, in the checked run
                capture = TraceableCapture(self.model, self.images, rows="cls")
                made.append((capture, torch.compile(capture, fullgraph=True, backend=BACKEND)))
            capture, together = made[0]
            output, rows = together(self.images)
            return output, [block.rows for block in capture.maps(rows)]

        def check(result: tuple[Tensor, list[Tensor]]) -> float:
            return check_capture(result, self.compiled(self.images), self.expected[1], tolerance=COMPILED_TOLERANCE)

        return Candidate(run, "compiled", check)


@contextmanager
def fused_attention(*, enabled: bool) -> Iterator[None]:
    """Build timm models with or without fused attention; the process-wide switch is put back."""
    before, experimental = use_fused_attn(), use_fused_attn(experimental=True)
    set_fused_attn(enabled)
    try:
        yield
    finally:
        set_fused_attn(before, experimental)


def _sharpened(model: nn.Module) -> nn.Module:
    """Enlarge the weights of queries and keys (of fused projections: the values' too) in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("qkv.weight", "in_proj_weight", "q_proj.weight", "k_proj.weight")):
                parameter.mul_(3)
            if "cls_token" in name or "class_token" in name:
                parameter.add_(0.02)  # else it is zero in some libraries, and its norm amplifies rounding
    return model.eval()


def check_capture(
    result: tuple[Tensor, list[Tensor]], output: Tensor, expected: list[Tensor], *, tolerance: float = 0.0
) -> float:
    """Hold captured rows against explicit ones, and the captured model's output against the bare one's.

    The rows' error must be under 2e-05 and under a hundredth of the rows' own spread: at 4,097 tokens a row's entries are about 2e-04.

    Args:
        result: Output and rows of each block, `(batch, heads, 1, keys)`.
        output: The bare output.
        expected: Explicit rows of the same blocks.
        tolerance: How much the outputs may differ.

    Returns:
        The largest error of a row.

    Raises:
        CheckError: If anything differs.
    """
    got, rows = result
    if got.shape != output.shape:
        raise CheckError(f"the output has shape {tuple(got.shape)}, the bare one {tuple(output.shape)}")
    difference = (got - output).abs().max().item()
    if not difference <= tolerance:
        raise CheckError(f"the output differs from the bare one by {difference:.1e}, expected at most {tolerance:.1e}")
    if len(rows) != len(expected):
        raise CheckError(f"expected {len(expected)} blocks, got {len(rows)}")
    worst = 0.0
    for number, (row, wanted) in enumerate(zip(rows, expected, strict=True)):
        if row.shape != wanted.shape:
            raise CheckError(f"block {number}: expected shape {tuple(wanted.shape)}, got {tuple(row.shape)}")
        error, allowed = (row - wanted).abs().max().item(), min(ROW_TOLERANCE, 0.01 * wanted.std(dim=-1).min().item())
        if not error <= allowed:
            raise CheckError(f"block {number}: rows differ by {error:.1e}, expected at most {allowed:.1e}")
        _check_sums(row, number)
        worst = max(worst, error)
    return worst


def check_matrices(matrices: Any, blocks: int) -> float:
    """See that a peer gave a matrix of softmax rows for every block, so that its time is the time of what it promises."""
    if not matrices or len(matrices) != blocks:
        raise CheckError(f"expected {blocks} attention matrices, got {len(matrices or ())}")
    for number, matrix in enumerate(matrices):
        if matrix.shape[-1] != matrix.shape[-2]:
            raise CheckError(f"block {number}: expected a square matrix, got {tuple(matrix.shape)}")
        _check_sums(matrix, number)
    return 0.0


def _check_sums(rows: Tensor, number: int) -> None:
    error = (rows.sum(dim=-1) - 1).abs().max().item()
    if not error <= SUM_TOLERANCE:
        raise CheckError(f"block {number}: sums of rows are off 1 by {error:.1e}")


def explicit_rows_of_timm(unfused: nn.Module, images: Tensor) -> list[Tensor]:
    """The class token's rows that an unfused timm model computes on its own."""
    rows: list[Tensor] = []
    drops = [module for name, module in unfused.named_modules() if name.endswith("attn_drop")]
    hooks = [drop.register_forward_hook(lambda _, __, matrix: rows.append(matrix[:, :, :1].clone())) for drop in drops]
    unfused(images)
    for hook in hooks:
        hook.remove()
    return rows


def explicit_rows_of_multihead(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The class token's rows of every `nn.MultiheadAttention`, run a second time with `need_weights`."""
    inputs: list[tuple[nn.Module, Tensor]] = []
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    hooks = [a.register_forward_hook(lambda module, args, _: inputs.append((module, args[0]))) for a in attentions]
    model(images)
    for hook in hooks:
        hook.remove()
    return [
        module(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)[1][:, :, :1].clone()
        for module, tokens in inputs
    ]
