"""Controls of the scores against masks: many random maps, one centre prior, the object's area; and the strips that show them."""

import math

import numpy as np
import pytest
import torch

from attnhook import compare, heatmap
from attnhook.attribution.scores import auroc, centre_prior, energy_in_mask, pointing_game, random_map
from attnhook.comparison.dot_strips import score_strips
from attnhook.comparison.objects import RANDOM_DRAWS
from tests.comparison.zoo import disc, hf_dinov2, photo, timm_vit

PHOTOS = [photo(seed=1), photo(130, 80, seed=2), photo(seed=3)]
MASKS = [disc(), disc(130, 80), None]
KINDS = ["model", "random weights", "random map"]


@pytest.fixture(scope="module")
def found():
    models = [timm_vit(), hf_dinov2()]
    return compare(
        models, PHOTOS, methods=["raw_attention", "rollout"], masks=MASKS, cache=None, resolution=None, progress=False
    )


def seen_by_all(found, number):
    return ~torch.stack([found.heatmap(model, number) for model in range(2)]).isnan().any(dim=0)


def test_the_random_map_is_the_mean_of_many_draws_with_their_error(found) -> None:
    """Against one draw, photo and score at a time."""
    assert RANDOM_DRAWS >= 20
    table = found.table("objects").set_index(["view", "model", "map"])
    row = table.loc["raw_attention", "timm:tiny", "random map"]
    scores = np.empty((2, RANDOM_DRAWS, 2))
    for number, draw in np.ndindex(2, RANDOM_DRAWS):
        one = found.measurements[0, number]
        values = random_map((4, 4), seed=number * RANDOM_DRAWS + draw)
        pixels = heatmap(values, one.geometry).masked_fill(~seen_by_all(found, number), math.nan)
        scores[number, draw] = [float(score(pixels, MASKS[number] > 0)) for score in (energy_in_mask, auroc)]
    for place, name in enumerate(("energy", "auroc")):
        assert row[name] == pytest.approx(scores[..., place].mean(), abs=1e-6)
        over_draws = scores[..., place].mean(axis=0)
        assert row[f"{name}_error"] == pytest.approx(over_draws.std(ddof=1) / math.sqrt(RANDOM_DRAWS), abs=1e-6)
        assert row[f"{name}_n"] == 2
        assert 0 < row[f"{name}_error"] < 0.05
    assert 0 < row["pointing"] < 1  # of one draw and a photo it is 0 or 1


def test_random_maps_have_an_error_with_a_single_photo_and_touch_no_generator() -> None:
    before = torch.get_rng_state()
    tables = [
        compare(timm_vit(), PHOTOS[:1], masks=MASKS[:1], cache=None, seed=seed, progress=False).table("objects")
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    rows = [table[table["map"] == "random map"].iloc[0] for table in tables]
    assert rows[0]["energy_error"] > 0
    assert rows[0]["energy"] == rows[1]["energy"] != rows[2]["energy"]


def test_the_centre_prior_is_said_once(found) -> None:
    table = found.table("objects")
    assert list(table["map"]) == KINDS * 4 + ["centre prior"]
    prior = table.iloc[-1]
    expected = []
    for number in range(2):
        size = PHOTOS[number].height, PHOTOS[number].width
        known = centre_prior(size).masked_fill(~seen_by_all(found, number), math.nan)
        expected.append([float(score(known, MASKS[number] > 0)) for score in (pointing_game, energy_in_mask, auroc)])
    assert [prior[name] for name in ("pointing", "energy", "auroc")] == pytest.approx(
        np.mean(expected, axis=0), abs=1e-9
    )
    assert prior["energy_n"] == 2
    assert prior["energy_low"] <= prior["energy"] <= prior["energy_high"]


def test_the_objects_area_is_its_share_of_what_all_saw(found, tmp_path) -> None:
    shares = [float((torch.from_numpy(MASKS[n] > 0)[seen_by_all(found, n)]).double().mean()) for n in range(2)]
    table = found.table("objects")
    assert list(table["area"]) == pytest.approx([np.mean(shares)] * len(table))
    found.save(tmp_path, pictures=False)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len([line for line in lines if ",area," in line]) == len(table)
    # It is what a map without any knowledge scores: so do random maps, within their error.
    row = table[table["map"] == "random map"].iloc[0]
    assert row["energy"] == pytest.approx(np.mean(shares), abs=max(0.05, 4 * row["energy_error"]))


def test_what_is_ignored_is_no_area() -> None:
    mask = np.zeros((90, 120), np.uint8)
    mask[:, :60] = 255
    mask[:45] = 128
    found = compare(timm_vit(size=64), photo(), masks=[mask], cache=None, resolution=None, progress=False)
    # The crop shows the middle square, whose left half is the object's, below the ignored half.
    assert found.table("objects")["area"][0] == pytest.approx(0.5, abs=0.02)


def test_strips_show_the_tables_numbers(found) -> None:
    strips = score_strips(found)
    titles = [strip["title"] for strip in strips if strip["view"] == 1]
    assert titles[:3] == ["pointing game", "energy in mask", "AUROC"]
    assert {strip["group"] for strip in strips} == {"Maps against masks", "Agreement between models"}
    energy = next(strip for strip in strips if strip["view"] == 1 and strip["title"] == "energy in mask")
    assert [row["name"] for row in energy["rows"]] == ["timm:tiny", "hf:registers", "centre prior", "object's area"]
    table = found.table("objects").set_index(["view", "model", "map"])
    for row in energy["rows"][:2]:
        assert [mark["kind"] for mark in row["marks"]] == ["model", "random_weights", "random_map"]
        for mark in row["marks"]:
            truth = table.loc["rollout", row["name"], mark["kind"].replace("_", " ")]
            assert mark["value"] == truth["energy"]
            assert mark["low"] <= mark["value"] <= mark["high"]
    for strip in strips:
        marks = [mark for row in strip["rows"] for mark in row["marks"]]
        assert all(strip["low"] <= mark["value"] <= strip["high"] for mark in marks)
        steps = (strip["high"] - strip["low"]) / strip["step"]
        assert steps == pytest.approx(round(steps))


def test_strips_without_masks_are_of_agreement_alone() -> None:
    found = compare([timm_vit("a"), timm_vit("b", depth=2)], PHOTOS[:1], cache=None, progress=False)
    strips = score_strips(found)
    assert {strip["group"] for strip in strips} == {"Agreement between models"}
    assert [mark["kind"] for mark in strips[0]["rows"][0]["marks"]] == ["pair", "shuffled"]  # there is no other photo
    assert score_strips(compare(timm_vit(), PHOTOS[:1], cache=None, progress=False)) == []
