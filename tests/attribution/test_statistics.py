"""Statistics against slow loops over the dense matrix, in float64."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from attnhook import AttentionCapture, AttentionMaps, attention_statistics
from attnhook.attribution import row_measures
from attnhook.attribution.row_measures import (
    attention_distance,
    head_divergence,
    patch_distances,
    row_divergence,
    row_entropy,
    stream_rows,
    token_mass,
    top_mass,
)
from attnhook.attribution.statistics import find_sinks, received_mass
from attnhook.attribution.summaries import summarise_block
from attnhook.attribution.token_tables import TokenTable, distinct_entries, token_table
from attnhook.capture import softmax_matrix
from attnhook.capture.layout import TokenLayout
from attnhook.errors import RowsNotKeptError, TokenLayoutError
from tests.models import GRID, IMAGE, TIMM, TRANSFORMERS, images

CASES = {case.name: case for case in TIMM + TRANSFORMERS}


def maps_of(name: str, rows="all", **options) -> AttentionMaps:
    case = CASES[name]
    with torch.no_grad(), AttentionCapture(case.build(), rows=rows, **options) as capture:
        case.feed(capture.plan.model)
    return capture.maps


def slow_statistics(matrix: torch.Tensor, layout: TokenLayout, queries: range, k: int) -> dict[str, float]:
    """Of one head of one image: `(tokens, tokens)`; every sum a Python loop."""
    width, first = layout.grid[1], layout.num_prefix_tokens
    patches = range(first, first + layout.num_patches)
    sums = dict.fromkeys(["entropy", "distance", "class", "register", "patch", "top", "effective"], 0.0)
    reached = 0
    for i in queries:
        row = [float(value) for value in matrix[i]]
        mass = sum(row[j] for j in patches)
        sums["entropy"] += -sum(p * math.log(p) for p in row if p)
        sums["top"] += sum(sorted(row)[-k:])
        sums["class"] += row[layout.cls] if layout.cls is not None else 0.0
        sums["register"] += sum(row[first - layout.registers : first])
        sums["patch"] += mass
        sums["effective"] += math.exp(-sum(row[j] / mass * math.log(row[j] / mass) for j in patches if row[j]))
        if i in patches:
            reached += 1
            y, x = divmod(i - first, width)
            for j in patches:
                v, u = divmod(j - first, width)
                sums["distance"] += row[j] / mass * math.hypot(y - v, x - u)
    return {name: value / (reached if name == "distance" else len(queries)) for name, value in sums.items()}


@pytest.mark.parametrize("queries", ["all", "patches"])
@pytest.mark.parametrize("name", ["vit", "vit_registers", "vit_reg_gap", "beit", "Dinov2WithRegisters"])
def test_statistics_equal_the_loops(name: str, queries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_matrix, "BUDGET_BYTES", 700)  # several chunks an image
    maps = maps_of(name)
    for block, found in zip(maps, attention_statistics(maps, queries=queries, top_k=3), strict=True):
        dense, layout = block.weights().double(), block.layout
        tokens = range(layout.num_tokens)
        asked = tokens if queries == "all" else tokens[layout.patch_tokens]
        assert found.name == block.name
        assert found.queries == len(asked)
        for image in range(2):
            for head in range(4):
                expected = slow_statistics(dense[image, head], layout, asked, 3)
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
                    assert float(value[image, head]) == pytest.approx(expected[measure], rel=2e-6, abs=1e-9), measure
        torch.testing.assert_close(found.relative_entropy, found.entropy / math.log(len(tokens)))
        torch.testing.assert_close(found.distance_pixels, found.distance_patches * IMAGE[0] / GRID[0])
        masses = found.class_mass + found.register_mass + found.patch_mass + found.other_mass
        torch.testing.assert_close(masses, torch.ones_like(masses), atol=1e-6, rtol=0)


def test_head_diversity_is_the_mean_over_pairs() -> None:
    block = maps_of("vit")[-1]
    dense = block.weights().double()
    expected = torch.zeros(2, dtype=torch.float64)
    for image in range(2):
        for a, b in combinations(range(4), 2):
            p, q = dense[image, a], dense[image, b]
            middle = (p + q) / 2
            divergence = (p * (p / middle).log() + q * (q / middle).log()) / 2  # the definition, by Kullback-Leibler
            expected[image] += divergence.sum(-1).mean() / 6
    torch.testing.assert_close(attention_statistics(maps_of("vit"))[-1].head_diversity, expected, rtol=2e-6, atol=0)


def test_a_summary_compares_every_two_heads() -> None:
    maps = maps_of("vit")
    summary = summarise_block(maps[-1], maps.readout)
    rows = summary.readout.double()
    pairs = [row_divergence(rows[:, a], rows[:, b]) for a, b in combinations(range(4), 2)]
    assert float(summary.head_diversity) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-12)
    assert replace(summary, readout=rows[:, :1]).head_diversity.isnan()


def test_given_rows_are_enough_for_what_they_tell() -> None:
    cls, whole = attention_statistics(maps_of("vit", "cls"))[-1], maps_of("vit")[-1]
    assert cls.queries == 1
    torch.testing.assert_close(cls.entropy, row_entropy(whole.weights()[:, :, 0].double()), rtol=1e-6, atol=1e-6)
    assert cls.distance_patches.isnan().all()  # a class token stands nowhere
    chosen = attention_statistics(maps_of("vit", [(1, 2), 0, (0, 0)]))[-1]
    assert chosen.queries == 3
    layout = whole.layout
    expected = [
        slow_statistics(m.double(), layout, range(t, t + 1), 10)["distance"]
        for m in whole.weights()[0]
        for t in (layout.token_of((1, 2)), layout.token_of((0, 0)))
    ]
    assert float(chosen.distance_patches[0].mean()) == pytest.approx(sum(expected) / len(expected), rel=1e-6)
    assert attention_statistics(maps_of("vit", [(1, 2), 0, (0, 0)]), queries="patches")[-1].queries == 2
    with pytest.raises(RowsNotKeptError, match=r"queries='patches'.*rows='all'"):
        attention_statistics(maps_of("vit", "cls"), queries="patches")


def test_batch_of_two_is_two_singles() -> None:
    case = CASES["vit_registers"]
    model, pixels = case.build(), images(2)
    found = []
    for part in (pixels, pixels[:1], pixels[1:]):
        with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
            model(part)
        found.append(attention_statistics(capture.maps)[-1])
    for name in ("entropy", "distance_pixels", "top_mass", "head_diversity", "effective_patches"):
        both, first, second = (getattr(statistics, name) for statistics in found)
        torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-6, atol=1e-9)


def test_sinks_are_found_and_named() -> None:
    rows = torch.full((2, 3, 1, 1 + 15), 0.01)
    rows[1, :, :, 1 + 5 + 2] = 0.85
    block = maps_of("vit", "cls")[-1].__class__("block", "softmax", rows, TokenLayout(GRID))
    (sink,) = find_sinks(stream_rows(block), ratio=10)
    assert (sink.image, sink.token, sink.patch) == (1, 8, (1, 2))
    assert sink.mass == pytest.approx(0.85)
    assert sink.ratio == pytest.approx(0.85 * 16)
    assert find_sinks(stream_rows(block), ratio=14) == ()
    rows[0, :, :, 0] = 0.9
    assert [(s.image, s.token, s.patch) for s in find_sinks(stream_rows(block))] == [
        (0, 0, None),
        (1, 8, (1, 2)),
    ]


def test_received_mass_is_the_column_mean() -> None:
    for name in ("vit", "beit"):
        block = maps_of(name)[0]
        expected = block.weights().double().mean(2)
        torch.testing.assert_close(received_mass(block), expected, rtol=0, atol=1e-7)


def test_entropy_of_one_hot_and_of_uniform_rows() -> None:
    one_hot, uniform = torch.eye(7), torch.full((7, 7), 1 / 7)
    assert (row_entropy(one_hot) == 0).all()
    torch.testing.assert_close(
        row_entropy(uniform), torch.full((7,), math.log(7), dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert top_mass(one_hot, 1).eq(1).all()
    assert top_mass(uniform, 99).sub(1).abs().max() < 1e-6
    with pytest.raises(ValueError, match="at least 1, got 0"):
        top_mass(uniform, 0)


def test_distance_of_known_rows() -> None:
    keys = token_table(TokenLayout((2, 2)))
    rows = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    coordinates = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    patches = keys.chosen("patch")
    distances = patch_distances(coordinates, keys.coordinates[patches], (16.0, 8.0))
    found = attention_distance(rows, patches, distances)
    assert found[:2].tolist() == pytest.approx([math.hypot(16, 8), 8.0])
    assert found[2].isnan()
    torch.testing.assert_close(
        attention_distance(3 * rows, patches, distances, torch.empty(3, 5)), found, equal_nan=True
    )
    with pytest.raises(TokenLayoutError, match="expected 5 keys, got 4"):
        token_mass(rows[:, 1:], keys)


def test_distances_are_exact_on_large_grids() -> None:
    coordinates = torch.cartesian_prod(torch.arange(64.0), torch.arange(64.0)) + 0.3  # a coarser grid's centres
    found = patch_distances(coordinates[:70], coordinates[:70])
    expected = (coordinates[:70, None].double() - coordinates[:70].double()).square().sum(-1).sqrt()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_divergence_of_equal_and_of_disjoint_heads() -> None:
    rows = torch.eye(4).view(1, 1, 4, 4).repeat(1, 2, 1, 1)
    assert head_divergence(rows).eq(0).all()
    rows[:, 1] = rows[:, 1].flip(-1)
    torch.testing.assert_close(head_divergence(rows), torch.full((1, 4), math.log(2), dtype=torch.float64))
    assert head_divergence(rows[:, :1]).isnan().all()


def test_windows_count_their_real_queries() -> None:
    import timm

    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=96, window_size=7, embed_dim=24, depths=(2, 2), num_heads=(2, 2)
    )
    with torch.no_grad(), AttentionCapture(model.eval(), rows="all") as capture:
        model(images(2, size=(96, 96)))
    for block, found in zip(capture.maps, attention_statistics(capture.maps), strict=True):
        layout = block.layout
        real = (layout.positions >= 0).repeat(2, 1)
        dense = block.weights().double()
        entropy = torch.special.entr(dense).sum(-1).movedim(1, 2)[real]  # (batch * real queries, heads)
        expected = entropy.view(2, -1, dense.shape[1]).mean(1)
        assert found.queries == layout.grid[0] * layout.grid[1]
        torch.testing.assert_close(found.entropy, expected, rtol=1e-6, atol=0)
        assert found.distance_pixels.max() < 96
        assert (found.distance_patches < 7 * math.sqrt(2)).all() or "shifted" in layout.words


@pytest.mark.parametrize(("name", "distinct"), [("vit", 1), ("ViTMAE", 2)])
def test_tokens_are_looked_up_once_where_they_differ(name: str, distinct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_matrix, "BUDGET_BYTES", 700)  # several chunks an image
    looked_up: list[int] = []

    def watched(layout: TokenLayout, entry: int = 0) -> TokenTable:
        looked_up.append(entry)
        return token_table(layout, entry)

    monkeypatch.setattr(row_measures, "token_table", watched)
    maps = maps_of(name)
    attention_statistics(maps[:1], sink_ratio=1e9)
    assert looked_up == [*range(distinct)]
    assert distinct_entries(maps[0]) == distinct


@pytest.mark.parametrize("name", ["vit", "ViTMAE"])
def test_a_dense_matrix_has_the_statistics_of_the_implicit_one(name: str) -> None:
    maps = maps_of(name)
    dense = [replace(block, captured=block.weights()) for block in maps]
    whole = attention_statistics(
        AttentionMaps(dense, rows=maps.selected_rows, readout=maps.readout, input_size=maps.input_size)
    )
    for one, other in zip(whole, attention_statistics(maps), strict=True):
        for field in ("entropy", "distance_patches", "patch_mass", "effective_patches", "top_mass"):
            torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=1e-6, atol=1e-9, msg=field)


def test_unknown_layouts_leave_what_needs_none() -> None:
    maps = maps_of("vit")
    block = type(maps[-1])("block", "softmax", maps[-1].captured, "no grid was seen")
    found = attention_statistics(AttentionMaps([block], rows=maps.selected_rows, readout=maps.readout))[0]
    assert found.entropy.isfinite().all()
    assert found.patch_mass.isnan().all()
    assert math.isnan(found.means()["distance_pixels"])
    assert found.means()["entropy"] == pytest.approx(float(found.entropy.mean()))
    sinks = find_sinks(stream_rows(block), ratio=0.0)
    assert len(sinks) == 2 * block.shape[3]
    assert {sink.patch for sink in sinks} == {None}
