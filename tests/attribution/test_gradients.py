"""Gradient methods against the papers' formulas, written as slow loops in float64 over dense matrices."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnhook import (
    AttentionCapture,
    AttentionMaps,
    BlockAttention,
    TokenLayout,
    gradient_attention,
    gradient_rollout,
    legrad,
    value_weighted_attention,
)
from attnhook.capture.anatomy import Readout
from attnhook.capture.operands import Operands
from attnhook.capture.output_gradients import CapturedGradients
from attnhook.capture.sites import Queries
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import (
    GradientsNotKeptError,
    NoReadoutError,
    RowsNotKeptError,
    TokenLayoutError,
    UnsupportedModelError,
)
from attnhook.options import Rows
from tests.models import TIMM, images

CASES = {case.name: case for case in TIMM}
LAYOUTS = {
    Rows.CLS: TokenLayout((3, 4), registers=2),
    Rows.MEAN: TokenLayout((3, 4), cls=None, registers=1),
    Rows.POOL: TokenLayout((3, 4), cls=None),
}
METHODS = [gradient_attention, gradient_rollout, legrad, value_weighted_attention]


def made_block(
    name: str,
    layout: TokenLayout,
    *,
    batch: int,
    key_heads: int,
    mask: str | None,
    seed: int,
    dtype,
    pooling=False,
    heads=4,
) -> BlockAttention:
    """A block of random queries, keys, values and output gradients, as a capture would keep it."""
    generator = torch.Generator().manual_seed(seed)
    tokens, width = layout.num_tokens, 8

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    queries = 1 if pooling else tokens
    query, key = 2 * drawn(batch, heads, queries, width), drawn(batch, key_heads, tokens, width)
    kept = CapturedGradients(drawn(batch, key_heads, tokens, width + 1))
    kept.add(drawn(batch, heads, queries, width + 1))
    given = None  # a mask is as large as the matrix: none is drawn that is not used
    if mask == "additive":
        given = drawn(batch, heads, queries, tokens)
    elif mask == "boolean":
        given = torch.rand(queries, tokens, generator=generator) >= 0.3
        given[:, layout.num_prefix_tokens] = True
    return BlockAttention(
        name,
        "made",
        SoftmaxMatrix(Operands(query, key, None, given)),
        layout,
        Queries.POOL if pooling else Queries.TOKENS,
        captured_gradients=kept,
    )


def made(readout: Rows, *, batch=2, key_heads=4, mask=None, dtype=torch.float64) -> AttentionMaps:
    layout = LAYOUTS[readout]
    options = {"batch": batch, "key_heads": key_heads, "mask": mask, "dtype": dtype}
    blocks = [made_block(f"blocks.{i}", layout, seed=i, **options) for i in range(3)]
    if readout is Rows.POOL:
        blocks.append(made_block("pool", layout, seed=9, pooling=True, **options))
    return AttentionMaps(blocks, rows=Rows.ALL, readout=Readout(readout, "a test"))


# --- the papers' formulas ------------------------------------------------------------------------------------------------------------------


def dense(block: BlockAttention) -> tuple[Tensor, Tensor]:
    """A and dA of a block in float64, from their definitions, entry by entry of the batch and the heads."""
    call = block.matrix._source
    values, output_gradient = block.values.double(), block.output_gradient.double()
    batch, heads, queries, keys = block.shape
    attention, gradient = torch.zeros(2, batch, heads, queries, keys, dtype=torch.float64).unbind(0)
    shared = heads // call.key.shape[1]
    for b in range(batch):
        for h in range(heads):
            scores = call.query[b, h].double() @ call.key[b, h // shared].double().T / call.query.shape[-1] ** 0.5
            if call.mask is not None:
                mask = call.mask.expand(block.shape)[b, h]
                scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask.double()
            attention[b, h] = scores.softmax(-1)
            gradient[b, h] = output_gradient[b, h] @ values[b, h // shared].T
    return attention, gradient


def relevance(block: BlockAttention) -> Tensor:
    """E_h[(A * dA)+], `(batch, queries, keys)`."""
    attention, gradient = dense(block)
    return (attention * gradient).clamp(min=0).mean(1)


def own_queries(maps: AttentionMaps, block: BlockAttention) -> list[int]:
    if block.pooling:
        return list(range(block.shape[2]))
    layout = block.layout
    return [0] if maps.readout.rows is Rows.CLS else list(range(layout.num_tokens))[layout.patch_tokens]


def slow_gradient_attention(maps: AttentionMaps) -> Tensor:
    block = maps[-1]
    return relevance(block)[:, own_queries(maps, block)].mean(1)


def slow_gradient_rollout(maps: AttentionMaps) -> Tensor:
    """R <- R + E_h[(A * dA)+] R from the first block to the last, then the readout's rows of R."""
    tokens = maps[0].shape[3]
    together = torch.eye(tokens, dtype=torch.float64).repeat(maps[0].shape[0], 1, 1)
    for block in maps:
        if block.pooling:  # attention from other queries, which start with nothing: R_qk <- R_qk + E_h[(A * dA)+] R_kk
            return (relevance(block) @ together).mean(1)
        together = together + relevance(block) @ together
    return together[:, own_queries(maps, maps[-1])].mean(1)


def slow_legrad(maps: AttentionMaps) -> Tensor:
    layers = []
    for block in maps:
        _, gradient = dense(block)
        layers.append(gradient.clamp(min=0).mean(dim=(1, 2)))
    return sum(layers) / len(layers)


def slow_value_weighted_attention(maps: AttentionMaps) -> Tensor:
    """Mean over heads, and over the readout's queries, of the length of A_ij v_j."""
    block = maps[-1]
    attention, _ = dense(block)
    batch, heads, _, keys = block.shape
    found = torch.zeros(batch, keys, dtype=torch.float64)
    queries = own_queries(maps, block)
    for b in range(batch):
        for h in range(heads):
            values = block.values[b, h * block.values.shape[1] // heads].double()
            for i in queries:
                for j in range(keys):
                    found[b, j] += (attention[b, h, i, j] * values[j]).norm() / (heads * len(queries))
    return found


SLOW = {
    gradient_attention: slow_gradient_attention,
    gradient_rollout: slow_gradient_rollout,
    legrad: slow_legrad,
    value_weighted_attention: slow_value_weighted_attention,
}


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert found.dtype is torch.float32
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("mask", [None, "boolean", "additive"])
@pytest.mark.parametrize("readout", list(LAYOUTS))
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_the_papers_formula(method, readout: Rows, mask: str | None, key_heads: int, dtype) -> None:
    maps = made(readout, mask=mask, key_heads=key_heads, dtype=dtype)
    expected = maps[-1].layout.patches(SLOW[method](maps))
    found = method(maps).values
    assert found.shape == (2, 3, 4)
    assert found.min() >= 0 < found.max()
    assert_close(found, expected)


@pytest.mark.parametrize("name", ["vit", "vit_avg", "vit_siglip", "vit_registers", "vit_reg_gap", "eva_rope"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_real_models_matrices(method, name: str) -> None:
    model = CASES[name].build()
    with AttentionCapture(model, gradients=True) as capture:
        model(images())[:, 2].sum().backward()
    maps = capture.maps
    layout = maps[0].layout
    slow = SLOW[method](maps)
    if name == "vit_registers" or name == "eva_rope":
        assert layout.registers == 4
    assert_close(method(maps).values, maps[-1].layout.patches(slow), 2e-6)


@pytest.mark.parametrize("name", ["vit", "vit_avg", "vit_siglip"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_batch_of_two_equals_two_singles(method, name: str) -> None:
    model, batch = CASES[name].build(), images(2)
    with AttentionCapture(model, gradients=True) as capture:
        model(batch)[:, 2].sum().backward()
        together, singles = method(capture.maps).values, []
        for image in batch:
            model(image[None])[:, 2].sum().backward()
            singles.append(method(capture.maps).values)
    torch.testing.assert_close(together, torch.cat(singles), atol=1e-4 * float(together.max()), rtol=0)


def test_explicit_attention_gives_the_same_maps() -> None:
    case = CASES["vit"]
    found = []
    for implementation in ("sdpa", "eager"):
        model = case.build(implementation)
        with AttentionCapture(model, gradients=True) as capture:
            model(images())[:, 2].sum().backward()
        found.append([method(capture.maps).values for method in METHODS[:3]])
    for fused, eager in zip(*found, strict=True):
        torch.testing.assert_close(fused, eager, atol=1e-4 * float(eager.max()), rtol=0)


def test_one_block_alone_and_chosen_blocks() -> None:
    maps = made(Rows.CLS)
    assert_close(
        gradient_attention(maps, block="blocks.1").values, maps.layout.patches(slow_gradient_attention(maps[:2]))
    )
    assert_close(gradient_rollout(maps[1:]).values, maps.layout.patches(slow_gradient_rollout(maps[1:])))
    heads = value_weighted_attention(maps, heads=None).values
    assert heads.shape == (2, 4, 3, 4)
    torch.testing.assert_close(heads.mean(1), value_weighted_attention(maps).values)
    torch.testing.assert_close(value_weighted_attention(maps, heads=-1).values, heads[:, 3])


def test_rows_of_the_readout_are_enough_for_values() -> None:
    model = CASES["vit_avg"].build()
    with torch.inference_mode(), AttentionCapture(model, values=True) as capture:
        model(images())
    few = value_weighted_attention(capture.maps).values
    with torch.inference_mode(), AttentionCapture(model, rows="all", values=True) as capture:
        model(images())
    torch.testing.assert_close(few, value_weighted_attention(capture.maps).values)


# --- memory --------------------------------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return result


def long_maps(readout: Rows, side: int) -> AttentionMaps:
    layout = TokenLayout((side, side), cls=0 if readout is Rows.CLS else None)
    options = {"batch": 1, "heads": 2, "key_heads": 2, "mask": None, "dtype": torch.float32}
    blocks = [made_block(f"blocks.{i}", layout, seed=i, **options) for i in range(2)]
    return AttentionMaps(blocks, rows=Rows.ALL, readout=Readout(readout, "a test"))


def largest(method, maps: AttentionMaps) -> int:
    with Largest() as seen:
        method(maps)
    return seen.numel


@pytest.mark.parametrize("readout", [Rows.CLS, Rows.MEAN])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_no_array_of_queries_by_keys(method, readout: Rows) -> None:
    tokens, more = 48**2, 64**2  # a matrix of one head: 21 MiB, then 67 MiB
    small, large = (largest(method, long_maps(readout, side)) for side in (48, 64))
    assert small < tokens**2 / 4
    assert large < more**2 / 12
    assert large <= max(2 * small, 2**20)  # a chunk of at most 4.5 MiB, or a few rows


def test_the_meter_sees_a_matrix() -> None:
    maps = long_maps(Rows.CLS, 20)
    assert largest(lambda m: m[0].gradient.dense(), maps) == 2 * 401**2


# --- errors --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_what_was_not_captured_is_named(method) -> None:
    model = CASES["vit"].build()
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(images())
    gradients = method is not value_weighted_attention
    error, words = (
        (RowsNotKeptError, f"{method.__name__} needs whole matrices: .*got rows='cls'. Capture with gradients=True")
        if gradients
        else (GradientsNotKeptError, "values=True")
    )
    with pytest.raises(error, match=words):
        method(capture.maps)
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(images())
    with pytest.raises(GradientsNotKeptError, match=r"expected a capture with .*gradients=True"):
        method(capture.maps)
    if gradients:
        with AttentionCapture(model, gradients=True) as capture:
            model(images())
        with pytest.raises(GradientsNotKeptError, match=r"no gradient has reached block .*score\.backward\(\)"):
            method(capture.maps)


def swin() -> AttentionMaps:
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=32, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, num_classes=3
    )
    with AttentionCapture(model.eval(), gradients=True) as capture:
        model(images(1, size=(32, 32)))[:, 0].sum().backward()
    return capture.maps


def pooled() -> AttentionMaps:
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    cfg = MultiScaleVitCfg(depths=(1, 1), embed_dim=(16, 32), num_heads=(1, 2), mlp_ratio=2.0, pool_first=False)
    model = MultiScaleVit(cfg, img_size=(64, 64), num_classes=3).eval()
    with AttentionCapture(model, gradients=True) as capture:
        model(images(1, size=(64, 64)))[:, 0].sum().backward()
    return capture.maps


@pytest.mark.parametrize("maps_of", [swin, pooled])
@pytest.mark.parametrize("method", METHODS[:3], ids=lambda method: method.__name__)
def test_windows_and_pooled_keys_name_the_block(method, maps_of) -> None:
    maps = maps_of()
    options = {"block": 0} if method is gradient_attention else {}  # legrad looks at the last block first
    name = maps.block_names[-1 if method is legrad and maps_of is swin else 0].replace(".", r"\.")
    with pytest.raises(
        TokenLayoutError, match=rf"{method.__name__} (cannot pass through|has no map of) block '{name}'"
    ):
        method(maps, **options)


def test_a_head_that_reads_none_of_the_three() -> None:
    maps = made(Rows.CLS)
    lost = AttentionMaps(list(maps), rows=Rows.ALL, readout=Readout(None, "it reads nothing"))
    with pytest.raises(NoReadoutError, match="gradient_rollout has no readout to start from: it reads nothing"):
        gradient_rollout(lost)
    with pytest.raises(NoReadoutError, match=r"block 'blocks\.2' has no readout row: it reads nothing"):
        gradient_attention(lost)
    assert legrad(lost).values.shape == (2, 3, 4)  # all queries count


def test_gated_values_are_refused() -> None:
    maps = made(Rows.CLS)
    mixed = AttentionMaps(
        [replace(block, value_multiplier="a gate") for block in maps], rows=Rows.ALL, readout=maps.readout
    )
    for method in (gradient_rollout, value_weighted_attention):
        with pytest.raises(
            UnsupportedModelError, match=rf"{method.__name__} cannot pass through .*: expected .*, got a gate"
        ):
            method(mixed)


def test_grids_that_differ() -> None:
    blocks = [
        made_block(
            f"blocks.{side}", TokenLayout((2, side)), seed=side, batch=1, key_heads=4, mask=None, dtype=torch.float32
        )
        for side in (2, 3)
    ]
    maps = AttentionMaps(blocks, rows=Rows.ALL, readout=Readout(Rows.CLS, "a test"))
    with pytest.raises(TokenLayoutError, match=r"cannot average block 'blocks\.2'.*expected a grid of 2x3, got 2x2"):
        legrad(maps)
