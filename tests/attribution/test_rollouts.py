"""Rollout against slow float64 loops written from the paper, for every readout, on real models and on made-up operands."""

import math
from dataclasses import replace

import pytest
import torch

from attnhook import AttentionCapture, AttentionMaps, BlockAttention, attention_mask, rollout
from attnhook.attribution.propagation import readout_queries
from attnhook.attribution.rollouts import ranked_entry, rollout_by_block
from attnhook.capture import softmax_matrix
from attnhook.capture.anatomy import Readout
from attnhook.capture.layout import TokenLayout
from attnhook.capture.operands import Operands
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import NoReadoutError, RowsNotKeptError, TokenLayoutError, UnsupportedModelError
from attnhook.options import Rows
from tests.capture.test_matrix_products import Largest
from tests.capture.test_softmax_matrix import slow
from tests.models import GRID, TIMM, TRANSFORMERS, images

MODELS = {case.name: case for case in TIMM + TRANSFORMERS}
TOKENS = 1 + GRID[0] * GRID[1]


# --- the paper, slowly ----------------------------------------------------------------------------------------------------------------------


def fused(heads: list, choice) -> list:
    """One matrix of the heads' matrices, as nested lists."""
    if isinstance(choice, int):
        return [list(row) for row in heads[choice]]
    join = {"mean": lambda values: sum(values) / len(values), "max": max, "min": min}[choice]
    size = len(heads[0])
    return [[join([head[i][j] for head in heads]) for j in range(size)] for i in range(size)]


def discarded(matrix: list, fraction: float, cls: int | None) -> list:
    """vit-explain: the lowest fraction of the flattened matrix is 0, the class token's entry for itself stays."""
    size = len(matrix)
    order = sorted((matrix[i][j], i, j) for i in range(size) for j in range(size))
    for _, i, j in order[: int(fraction * size * size)]:
        if not (cls is not None and i == j == cls):
            matrix[i][j] = 0.0
    return matrix


def with_residual(matrix: list, residual: float) -> list:
    """Half identity (or another share), half attention, rows summing to 1."""
    result = []
    for i, row in enumerate(matrix):
        mixed = [residual * (i == j) + (1 - residual) * value for j, value in enumerate(row)]
        total = sum(mixed) or 1.0
        result.append([value / total for value in mixed])
    return result


def product(left: list, right: list) -> list:
    size = len(right)
    return [[sum(row[k] * right[k][j] for k in range(size)) for j in range(size)] for row in left]


def slow_rollout(matrices, start, *, heads="mean", residual=0.5, discard=0.0, cls=0) -> list:
    """Of one image: `matrices` are `(heads, tokens, tokens)`, first block first; `start` weighs the tokens of the readout."""
    through = None
    for matrix in matrices:
        step = with_residual(discarded(fused(matrix.tolist(), heads), discard, cls), residual)
        through = step if through is None else product(step, through)
    return [sum(start[i] * through[i][j] for i in range(len(start))) for j in range(len(start))]


def exact(block: BlockAttention) -> torch.Tensor:
    """The block's matrix in float64 from what it was computed from."""
    source = block.matrix._source
    return slow(source) if isinstance(source, Operands) else source.double()


def expected_of(maps: AttentionMaps, **options) -> torch.Tensor:
    blocks = [block for block in maps if not block.pooling]
    layout, kind = blocks[-1].layout, maps.readout.rows
    matrices = [exact(block) for block in blocks]
    found = []
    for image in range(len(matrices[0])):
        start = [0.0] * layout.num_tokens
        if kind is Rows.CLS:
            start[layout.class_token()] = 1.0
        else:
            weights = [1 / layout.num_patches] * layout.num_patches
            if kind is Rows.POOL:
                rows = exact(maps[-1])[image, :, 0].tolist()
                join = {"max": max, "min": min}.get(
                    options.get("heads", "mean"), lambda values: sum(values) / len(values)
                )
                weights = [join(column) for column in zip(*rows, strict=True)]
            first = 0 if len(weights) == layout.num_tokens else layout.num_prefix_tokens
            for j, weight in enumerate(weights):
                start[first + j] = weight / sum(weights)
        row = slow_rollout([matrix[image] for matrix in matrices], start, cls=layout.cls, **options)
        found.append(layout.patches(torch.tensor(row, dtype=torch.float64)))
    return torch.stack(found)


def close(got, expected):
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7 * float(expected.max()))


# --- real models ----------------------------------------------------------------------------------------------------------------------------


def captured(name: str, pixels=None, **settings) -> AttentionMaps:
    case = MODELS[name]
    with torch.no_grad(), AttentionCapture(case.build(), rows="all", **settings) as capture:
        case.feed(capture.plan.model) if pixels is None else capture.plan.model(pixels)
    return capture.maps


FOLLOWED = (
    "vit",
    "vit_avg",
    "vit_siglip",
    "vit_map_registers",
    "vit_registers",
    "vit_reg_gap",
    "vit_distilled",
    "eva_rope",
    "beit",
    "beit_token",
    "ViTModel",
    "Dinov2WithRegisters",
    "BeitModel",
    "SiglipVision",
    "YolosModel",
)


@pytest.mark.parametrize("name", FOLLOWED)
def test_real_models(name):
    maps = captured(name)
    assert maps.readout.rows == MODELS[name].readout
    close(rollout(maps).values, expected_of(maps))


OPTIONS = (
    {"heads": "max"},
    {"heads": "min"},
    {"residual": 0.0},
    {"residual": 0.9},
    {"residual": 1.0},
    {"discard": 0.9},
    {"discard": 0.3, "heads": "max", "residual": 0.2},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["vit", "vit_avg", "vit_siglip", "beit_token"])
def test_options(name, options, monkeypatch):
    monkeypatch.setattr(softmax_matrix, "BUDGET_BYTES", 600)  # a few rows a chunk
    maps = captured(name)
    close(rollout(maps, **options).values, expected_of(maps, **options))


@pytest.mark.parametrize("name", ["vit_distilled", "vit_avg", "vit_siglip"])
def test_every_token_through_each_block(name):
    """The readout's rows of the last product are what `rollout` computes from one row."""
    maps = captured(name)
    products = list(rollout_by_block(maps, residual=0.3))
    assert len(products) == len(maps)
    queries = readout_queries(maps, maps[-1])
    rows = products[-1][:, queries].mean(dim=1)
    torch.testing.assert_close(maps[0].layout.patches(rows), rollout(maps, residual=0.3).values)
    blocks = [exact(block)[0].tolist() for block in maps if not block.pooling]
    steps = [with_residual(fused(matrix, "mean"), 0.3) for matrix in blocks]
    expected = torch.tensor(product(steps[1], steps[0]), dtype=torch.float32)
    torch.testing.assert_close(products[1][0], expected)


def test_one_head_and_a_later_start():
    maps = captured("vit")
    close(rollout(maps, heads=-1).values, expected_of(maps, heads=-1))
    close(rollout(maps, start=1).values, expected_of(maps[1:]))
    close(rollout(maps, start="blocks.1.attn").values, expected_of(maps[1:]))


@pytest.mark.parametrize("options", [{}, {"discard": 0.5}, {"heads": "max"}], ids=str)
@pytest.mark.parametrize("name", ["vit_registers", "vit_siglip", "vit_avg"])
def test_a_batch_of_two_is_two_singles(name, options):
    model, pixels = MODELS[name].build(), images(2)
    found = []
    for part in (pixels, pixels[:1], pixels[1:]):
        with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
            model(part)
        found.append(rollout(capture.maps, **options).values)
    torch.testing.assert_close(found[0], torch.cat(found[1:]), rtol=1e-5, atol=1e-8)
    assert not torch.allclose(found[1], found[2], rtol=1e-2)


def test_saved_maps_give_the_same(tmp_path):
    maps = captured("vit_siglip")
    maps.save(tmp_path / "maps.safetensors")
    torch.testing.assert_close(rollout(AttentionMaps.load(tmp_path / "maps.safetensors")).values, rollout(maps).values)


def test_autocast_around_it_changes_nothing():
    maps = captured("vit")
    with torch.autocast("cpu", torch.bfloat16):
        rolled = rollout(maps, heads="max").values
    assert torch.equal(rolled, rollout(maps, heads="max").values)


# --- made-up operands -----------------------------------------------------------------------------------------------------------------------

HIDDEN = torch.rand(TOKENS, TOKENS, generator=torch.Generator().manual_seed(5)) > 0.3
HIDDEN[3] = False
BIAS = torch.randn(2, 4, TOKENS, TOKENS, generator=torch.Generator().manual_seed(6))
SETTINGS = {
    "plain": {},
    "gqa": {"key_heads": 2},
    "one key head": {"key_heads": 1},
    "bool mask, a row hidden": {"mask": HIDDEN},
    "key mask": {"mask": (torch.arange(TOKENS) != 5).view(1, 1, 1, -1)},
    "bias": {"mask": BIAS},
    "minus infinity": {"mask": torch.zeros(TOKENS, TOKENS).masked_fill(~HIDDEN, -math.inf)},
    "causal": {"causal": True},
    "gqa, causal, masked": {"key_heads": 2, "causal": True, "mask": HIDDEN},
    "scale": {"scale": 2.0},
}
READOUTS = {"cls": Rows.CLS, "mean": Rows.MEAN}


def made_up(readout=Rows.CLS, blocks=3, tokens=TOKENS, grid=GRID, key_heads=4, **settings) -> AttentionMaps:
    generator = torch.Generator().manual_seed(8)
    layout = TokenLayout(grid)
    made = []
    for number in range(blocks):
        query = torch.randn(2, 4, tokens, 6, generator=generator)
        key = torch.randn(2, key_heads, tokens, 6, generator=generator)
        made.append(BlockAttention(f"b{number}", "made up", SoftmaxMatrix(Operands(query, key, **settings)), layout))
    return AttentionMaps(made, rows=Rows.ALL, readout=Readout(readout, "made up"))


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", SETTINGS)
def test_masks_and_shared_keys(name, readout):
    maps = made_up(READOUTS[readout], **SETTINGS[name])
    for options in ({}, {"heads": "max"}, {"discard": 0.6}):
        close(rollout(maps, **options).values, expected_of(maps, **options))


def test_the_residual_alone_leads_nowhere_and_mass_is_kept():
    maps = made_up()
    assert (rollout(maps, residual=1.0).values == 0).all()  # all of it stays at the class token
    mean = rollout(made_up(Rows.MEAN), residual=1.0).values
    torch.testing.assert_close(mean, torch.full_like(mean, 1 / mean[0].numel()))
    own = maps[0].matrix.rows([0])[:, :, 0].mean(1)
    torch.testing.assert_close(rollout(maps[:1], residual=0.0).values.flatten(1), own[:, 1:])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", ["plain", "bool mask, a row hidden", "gqa, causal, masked"])
@pytest.mark.parametrize(
    "options", [{}, {"heads": "max"}, {"heads": "min", "residual": 0.2}, {"heads": "max", "discard": 0.6}]
)
def test_the_mass_outside_is_what_the_dense_product_leaves_on_special_tokens(readout, name, options):
    maps = made_up(READOUTS[readout], **SETTINGS[name])
    heads, residual, discard = options.get("heads", "mean"), options.get("residual", 0.5), options.get("discard", 0.0)
    row = torch.zeros(2, 1, TOKENS, dtype=torch.float64)
    row[:, 0, slice(0, 1) if readout == "cls" else slice(1, None)] = 1.0
    row /= row.sum(-1, keepdim=True)
    for block in reversed(maps):
        matrix = exact(block)
        joined = {"mean": matrix.mean(1), "max": matrix.amax(1), "min": matrix.amin(1)}[heads].flatten(1)
        own = joined[:, 0].clone()  # the class token's attention to itself
        lowest = joined.argsort(dim=1, stable=True)[:, : int(discard * TOKENS**2)]
        joined = joined.scatter(1, lowest, 0.0)
        joined[:, 0] = own
        weights = residual * torch.eye(TOKENS, dtype=torch.float64) + (1 - residual) * joined.view(2, TOKENS, TOKENS)
        row = row @ (weights / weights.sum(-1, keepdim=True))
    outside = rollout(maps, **options).outside
    assert outside is not None
    torch.testing.assert_close(outside.double(), row[:, 0, 0], rtol=0, atol=1e-6)


def test_equal_entries_are_not_discarded():
    same = torch.zeros(1, 1, TOKENS, 4)
    block = BlockAttention("b", "made up", SoftmaxMatrix(Operands(same, same)), TokenLayout(GRID))
    maps = AttentionMaps([block], rows=Rows.ALL, readout=Readout(Rows.CLS, "made up"))
    torch.testing.assert_close(rollout(maps, discard=0.9).values, rollout(maps).values)


@pytest.mark.parametrize("options", [{}, {"heads": "min"}, {"discard": 0.9}], ids=str)
def test_no_matrix_is_ever_there(options):
    maps = made_up(Rows.MEAN, blocks=2, tokens=1 + 36 * 40, grid=(36, 40))
    square = 4 * maps[0].shape[2] ** 2
    with Largest() as largest:
        rollout(maps, **options)
    assert 0 < largest.seen <= softmax_matrix.BUDGET_BYTES < square


def test_the_ranked_entry_is_the_sorted_ones():
    numbers = torch.rand(5, 200, generator=torch.Generator().manual_seed(9)) ** 8
    numbers[0, :50] = 0.0
    for rank in (0, 49, 50, 500, 999):
        assert ranked_entry(lambda: iter(numbers), rank) == numbers.flatten().sort().values[rank]


# --- what cannot be rolled out ----------------------------------------------------------------------------------------------------------------


def test_rows_alone_are_not_enough():
    with torch.no_grad(), AttentionCapture(MODELS["vit"].build()) as capture:
        MODELS["vit"].feed(capture.plan.model)
    with pytest.raises(RowsNotKeptError, match=r"expected a capture with rows='all', got rows='cls'"):
        rollout(capture.maps)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": None}, "expected heads='mean'.*got None"),
        ({"heads": "median"}, "unknown heads: expected one of"),
        ({"residual": 1.5}, "0 <= residual <= 1, got 1.5"),
        ({"discard": 1.0}, "0 <= discard < 1, got 1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        rollout(made_up(), **options)


def test_a_head_that_does_not_exist():
    with pytest.raises(IndexError, match="head 4 does not exist: expected -4 to 3"):
        rollout(made_up(), heads=4)


def test_a_pooling_that_was_not_captured():
    with pytest.raises(NoReadoutError, match=r"starts from the attention pooling.*blocks\.1\.attn"):
        rollout(captured("vit_siglip", blocks=[0, 1]))


def test_a_pooling_alone_and_no_readout():
    with pytest.raises(NoReadoutError, match="has no block to pass through"):
        rollout(captured("vit_siglip"), start=-1)
    with pytest.raises(NoReadoutError, match="no readout to start from"):
        rollout(made_up(None))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name, settings, block",
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 96, "embed_dim": 24, "num_heads": (2, 2, 2, 2)}, r"layers\.\d"),
        ("pvt_v2_b0", {}, "stages.0"),
    ],
)
def test_windows_and_pooled_keys_are_refused_by_name(name, settings, block):
    import timm

    model = timm.create_model(name, **settings).eval()
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(images(1, size=(96, 96)))
    with pytest.raises(
        TokenLayoutError, match=rf"rollout cannot pass through block '{block}.*raw_attention or received_attention"
    ):
        rollout(capture.maps)


def test_other_sequences_and_other_mixings_are_refused_by_name():
    first, second = made_up(blocks=1), made_up(blocks=1, tokens=7, grid=(2, 3))
    mixed = AttentionMaps([*first, *second], rows=Rows.ALL, readout=first.readout)
    with pytest.raises(TokenLayoutError, match=r"'b0': expected the tokens of 'b0', 1 class \+ 2x3"):
        rollout(mixed)
    block = BlockAttention("talks", "softmax", first[0].captured, first[0].layout, value_multiplier="heads are mixed")
    with pytest.raises(UnsupportedModelError, match=r"'talks'.*heads are mixed"):
        rollout(AttentionMaps([block], rows=Rows.ALL, readout=first.readout))


def test_tokens_in_another_order_are_refused_and_dropped_ones_are_nan():
    whole = made_up(blocks=2, tokens=4, grid=(2, 3))
    near, far = torch.tensor([[0, 1, 2]]), torch.tensor([[2, 1, 5]])

    def ordered(*orders: torch.Tensor | None) -> AttentionMaps:
        layouts = [TokenLayout((2, 3), order=order) for order in orders]
        pairs = zip(whole, layouts, strict=True)
        blocks = [BlockAttention(b.name, b.kernel, b.captured, layout) for b, layout in pairs]
        return AttentionMaps(blocks, rows=Rows.ALL, readout=whole.readout)

    assert rollout(ordered(far, far.clone())).values[0].isnan().tolist() == [[True, False, False], [True, True, False]]
    for orders in ((near, far), (near.expand(2, -1), near)):
        with pytest.raises(
            TokenLayoutError, match=r"'b0': expected the tokens of 'b1', .* \(3 kept\) tokens in another order"
        ):
            rollout(ordered(*orders))


# --- masks ----------------------------------------------------------------------------------------------------------------------------------


def test_masks_are_those_of_dino():
    attentions = torch.rand(3, 2, 4, 5, generator=torch.Generator().manual_seed(10)) ** 3
    values, order = torch.sort(attentions.flatten(2))
    values /= values.sum(dim=-1, keepdim=True)
    kept = values.cumsum(-1) > 1 - 0.6  # DINO's visualize_attention.py
    expected = torch.zeros_like(kept).scatter(-1, order, kept).view(attentions.shape)
    assert torch.equal(attention_mask(attentions), expected)
    assert torch.equal(attention_mask(attentions[0, 0]), expected[0, 0])
    assert torch.equal(attention_mask(attentions[0, 0].flatten()), expected[0, 0].flatten())


def test_masks_of_nothing_and_of_everything():
    assert attention_mask(torch.rand(2, 3), keep=1.0).all()
    with pytest.raises(ValueError, match=r"0 < keep <= 1"):
        attention_mask(torch.rand(2, 3), keep=0.0)
    with pytest.raises(ValueError, match="got a scalar"):
        attention_mask(torch.tensor(1.0))


@pytest.mark.parametrize("heads", ["mean", "max", 1])
@pytest.mark.parametrize("hidden", [0, 3])
def test_a_token_that_sees_nothing_passes_nothing_on(hidden: int, heads: str | int) -> None:
    """Without a residual the row of a token whose keys are all hidden is zero and stays so: nothing is divided by nothing."""
    seen = torch.ones(5, 5, dtype=torch.bool)
    seen[hidden] = False
    query, key = torch.randn(2, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    matrix = SoftmaxMatrix(Operands(query, key, mask=seen))
    block = BlockAttention("blocks.0", "sdpa", matrix, TokenLayout((2, 2)))
    maps = AttentionMaps([block, block], rows=Rows.ALL, readout=Readout(Rows.CLS, "a test"))
    dense = matrix.dense().double()
    joined = {"mean": dense.mean(1), "max": dense.amax(1), 1: dense[:, 1]}[heads]
    weights = joined / joined.sum(-1, keepdim=True).clamp_min(1e-300)
    expected = (weights @ weights)[:, 0, 1:].reshape(1, 2, 2)
    found = rollout(maps, heads=heads, residual=0.0)
    torch.testing.assert_close(found.values.double(), expected, atol=1e-6, rtol=0)
    lost = float(weights[0, 0].sum() - (weights @ weights)[0, 0].sum()) + (hidden == 0)
    assert (found.outside is None) == (lost > 1e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_a_row_of_nan_is_the_highest_and_reaches_the_map_of_its_image_alone(heads: str, sign: float) -> None:
    maps = captured("vit")
    rows = maps[0].weights()
    rows[0, :, 3] = math.copysign(math.nan, sign)
    broken = maps.with_blocks([replace(maps[0], captured=SoftmaxMatrix(rows)), *maps[1:]])
    for discard in (0.0, 0.3, 0.999):
        values = rollout(broken, heads=heads, discard=discard).values
        assert values[0].isnan().all()
        torch.testing.assert_close(values[1], rollout(maps, heads=heads, discard=discard).values[1])
