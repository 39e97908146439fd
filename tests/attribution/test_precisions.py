"""Every precision a model may run in, against float64 from the very queries and keys that its kernel was given.

What is computed of them is float32 whatever they are in, so the bounds are the same for all: see `BOUNDS`. Operands in bfloat16 hold what the
model itself attended with; that they differ from a float32 model's is the model's business.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnhook import AttentionCapture, attention_statistics, raw_attention, rollout
from tests.attribution.test_statistics import slow_statistics
from tests.models import TIMM, TRANSFORMERS, images, sharpen

BOUNDS = {
    "rows": 1e-6,  # absolute: softmax weights
    "map": 1e-6,  # absolute: the readout's row, heads fused
    "rollout": 3e-6,  # of the largest value: a row through all blocks
    "statistics": 1e-5,  # relative: entropies, masses, distances
}


@dataclass(frozen=True)
class Precision:
    """What the weights are in, and what autocast makes of them."""

    weights: torch.dtype
    autocast: torch.dtype | None = None

    def __str__(self) -> str:
        words = str(self.weights).removeprefix("torch.")
        return words if self.autocast is None else f"autocast {str(self.autocast).removeprefix('torch.')}"

    def around(self) -> torch.autocast:
        return torch.autocast("cpu", self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    @property
    def operands(self) -> torch.dtype:
        return self.autocast or self.weights


PRECISIONS = [
    Precision(torch.float64),
    Precision(torch.float32),
    Precision(torch.bfloat16),
    Precision(torch.float16),
    Precision(torch.float32, torch.bfloat16),
    Precision(torch.float32, torch.float16),
]
each_precision = pytest.mark.parametrize("precision", PRECISIONS, ids=str)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return sharpen(VisionTransformer(24, 8, 2, 4, 32, 48, num_classes=6))


CASES = {case.name: case for case in TIMM + TRANSFORMERS}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm": CASES["vit"].build,
    "timm, registers": CASES["vit_registers"].build,
    "timm, mean": CASES["vit_avg"].build,
    "transformers": CASES["ViTModel"].build,
    "torchvision": torchvision_vit,
}
each_model = pytest.mark.parametrize("name", MODELS)


def softmax64(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    scores = query.double() @ key.double().mT * query.shape[-1] ** -0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def projected64(module: nn.MultiheadAttention, tokens: torch.Tensor) -> torch.Tensor:
    """The matrix of an nn.MultiheadAttention from its own projection in the precision that it runs in."""
    joint = F.linear(tokens, module.in_proj_weight, module.in_proj_bias)
    heads = joint.unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return softmax64(heads[0], heads[1])


def captured(name: str, precision: Precision, rows: str, monkeypatch: pytest.MonkeyPatch):
    """The maps, and the float64 matrices of the operands that the model's kernels were given in that forward."""
    model, given, kinds = MODELS[name]().to(precision.weights), [], set()
    sdpa = F.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        kinds.add(query.dtype)
        given.append(softmax64(query, key))
        return sdpa(query, key, value, **kwargs)

    def tokens_of(module, args):
        with torch.no_grad():
            given.append(projected64(module, args[0]))
            kinds.add(F.linear(args[0], module.in_proj_weight).dtype)

    pixels = images(2, size=(24, 24)) if name == "torchvision" else images(2)
    handles = [m.register_forward_pre_hook(tokens_of) for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    with monkeypatch.context() as patch, torch.no_grad(), precision.around():
        if not handles:
            patch.setattr(F, "scaled_dot_product_attention", spy)
        with AttentionCapture(model, rows=rows) as capture:
            model(pixels.to(precision.weights))
    for handle in handles:
        handle.remove()
    assert kinds == {precision.operands}
    return capture.maps, given


def readout_of(matrix: torch.Tensor, maps) -> torch.Tensor:
    layout = maps.layout
    return matrix[:, :, 0] if str(maps.readout.rows) == "cls" else matrix[:, :, layout.patch_tokens].mean(2)


@each_precision
@each_model
def test_all_rows(name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, given = captured(name, precision, "all", monkeypatch)
    assert len(maps) == len(given) == 2
    for block, matrix in zip(maps, given, strict=True):
        weights = block.weights()
        assert weights.dtype is torch.float32
        torch.testing.assert_close(weights.double(), matrix, atol=BOUNDS["rows"], rtol=0)


@each_precision
@each_model
def test_the_readouts_row_and_its_map(name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in ("readout", "all"):
        maps, given = captured(name, precision, rows, monkeypatch)
        expected = readout_of(given[-1], maps)
        if rows == "readout":
            torch.testing.assert_close(maps[-1].rows[:, :, 0].double(), expected, atol=BOUNDS["rows"], rtol=0)
        for heads, fused in (("mean", expected.mean(1)), ("max", expected.amax(1)), (2, expected[:, 2])):
            got = raw_attention(maps, heads=heads).values
            assert got.dtype is torch.float32
            torch.testing.assert_close(got.double(), maps.layout.patches(fused), atol=BOUNDS["map"], rtol=0)


@each_precision
@each_model
def test_rollout(name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, given = captured(name, precision, "all", monkeypatch)
    for heads in ("mean", "min"):
        tokens = maps.layout.num_tokens
        row = torch.zeros(2, 1, tokens, dtype=torch.float64)
        row[:, :, 0 if str(maps.readout.rows) == "cls" else maps.layout.patch_tokens] = 1
        row /= row.sum(-1, keepdim=True)
        for matrix in reversed(given):
            fused = matrix.mean(1) if heads == "mean" else matrix.amin(1)
            mixed = (fused + torch.eye(tokens, dtype=torch.float64)) / 2
            row = row @ (mixed / mixed.sum(-1, keepdim=True))
        expected = maps.layout.patches(row[:, 0])
        bound = BOUNDS["rollout"] * float(expected.max())
        torch.testing.assert_close(rollout(maps, heads=heads).values.double(), expected, atol=bound, rtol=0)


@each_precision
@pytest.mark.parametrize("name", ["timm, registers", "transformers", "torchvision"])
def test_statistics(name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, given = captured(name, precision, "all", monkeypatch)
    layout = maps.layout
    for found, matrix in zip(attention_statistics(maps, top_k=3), given, strict=True):
        for head in (0, 3):
            expected = slow_statistics(matrix[1, head], layout, range(layout.num_tokens), 3)
            got = {
                "entropy": found.entropy,
                "distance": found.distance_patches,
                "class": found.class_mass,
                "register": found.register_mass,
                "patch": found.patch_mass,
                "top": found.top_mass,
                "effective": found.effective_patches,
            }
            for measure, value in got.items():
                assert float(value[1, head]) == pytest.approx(expected[measure], rel=BOUNDS["statistics"], abs=1e-9), (
                    measure
                )
        mixed, single = torch.special.entr(matrix.mean(1)).sum(-1), torch.special.entr(matrix).sum(-1)
        assert ((mixed - single.mean(1)) >= -1e-12).all()  # the oracle's own check
        pairs = [(a, b) for a in range(4) for b in range(a)]
        apart = [
            torch.special.entr((matrix[:, a] + matrix[:, b]) / 2).sum(-1) - (single[:, a] + single[:, b]) / 2
            for a, b in pairs
        ]
        expected = torch.stack(apart).mean((0, 2))
        torch.testing.assert_close(found.head_diversity, expected, rtol=BOUNDS["statistics"], atol=1e-6)
