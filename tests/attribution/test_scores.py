"""Scores of maps against their definitions, written as loops."""

import math

import pytest
import torch

from attnhook.attribution.perturbation import deletion, insertion
from attnhook.attribution.scores import (
    attention_mask,
    auroc,
    centre_prior,
    energy_in_mask,
    iou_at_mass,
    pointing_game,
    random_map,
)
from attnhook.errors import ScoreError
from attnhook.imaging.styles import mass_mask

MAP = torch.tensor([[0.1, 0.2, 0.0], [0.4, 0.1, 0.2]])
MASK = torch.tensor([[0, 1, 0], [1, 0, 0]]).bool()


def test_scores_of_a_map_by_hand() -> None:
    assert float(pointing_game(MAP, MASK)) == 1.0
    assert float(pointing_game(MAP, ~MASK)) == 0.0
    assert float(energy_in_mask(MAP, MASK)) == pytest.approx(0.6)
    # 0.4 and one 0.2 hold 60 %: the first of the two in reading order, which is on the object
    assert float(iou_at_mass(MAP, MASK, keep=0.6)) == 1.0
    assert float(iou_at_mass(MAP, MASK, keep=0.4)) == 0.5


def test_auroc_is_the_part_of_pairs_in_order() -> None:
    for seed in range(5):
        values = (random_map((5, 6), seed=seed) * 60).round()  # with ties
        mask = random_map((5, 6), seed=seed + 10) > 0.04
        pairs = [(a > b) + (a == b) / 2 for a in values[mask].tolist() for b in values[~mask].tolist()]
        assert float(auroc(values, mask)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
        assert float(auroc(-values, mask)) == pytest.approx(1 - sum(pairs) / len(pairs), abs=1e-12)
    assert float(auroc(torch.ones(2, 3), MASK)) == 0.5


def test_a_flat_map_scores_chance() -> None:
    flat = torch.ones(2, 3)
    assert float(pointing_game(flat, MASK)) == pytest.approx(1 / 3)
    assert float(energy_in_mask(flat, MASK)) == pytest.approx(1 / 3)


def test_what_the_model_did_not_see_is_left_out() -> None:
    seen = torch.cat([MAP, torch.full((1, 3), math.nan)])
    mask = torch.cat([MASK, torch.ones(1, 3, dtype=torch.bool)])
    for score in (pointing_game, energy_in_mask, auroc, iou_at_mass):
        assert torch.equal(score(seen, mask), score(MAP, MASK))


def test_controls() -> None:
    prior = centre_prior((7, 9))
    assert prior.argmax() == 3 * 9 + 4
    assert float(prior.sum()) == pytest.approx(1)
    torch.testing.assert_close(prior, prior.flip(0, 1))
    assert torch.equal(random_map((3, 4), seed=5), random_map((3, 4), seed=5))
    assert not torch.equal(random_map((3, 4), seed=5), random_map((3, 4), seed=6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc(MAP, MASK[:, :2]), r"same \(h, w\), got \(2, 3\) and \(2, 2\).*heatmap"),
        (lambda: auroc(MAP, torch.ones(2, 3)), "expected some background"),
        (lambda: energy_in_mask(MAP, torch.zeros(2, 3)), "expected an object"),
        (lambda: energy_in_mask(-MAP, MASK), "at least 0 with some mass, got -0.4"),
        (lambda: energy_in_mask(torch.zeros(2, 3), MASK), "with some mass"),
        (lambda: energy_in_mask(MAP * math.nan, MASK), "NaN everywhere"),
        (lambda: energy_in_mask(MAP / 0, MASK), "finite"),
        (lambda: auroc(MAP, MAP), "True and False"),
        (lambda: iou_at_mass(MAP, MASK, keep=0), r"keep in \(0, 1\], got 0"),
        (lambda: auroc(MAP.expand(2, 2, 3), MASK.expand(2, 2, 3)), r"same \(h, w\), got \(2, 2, 3\)"),
        (lambda: deletion(lambda x: x, torch.ones(1, 3, 4, 4), MAP), "expected pixels"),
        (lambda: deletion(lambda x: x, torch.ones(1, 3, 4, 4), MAP[None], steps=7), "1 to 6 steps"),
        (lambda: deletion(lambda x: x, torch.ones(1, 3, 4, 6), MAP[None], steps=2), "one number per image"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        call()


def test_deletion_and_insertion_follow_the_map() -> None:
    pixels = torch.zeros(2, 1, 4, 6)
    pixels[0, 0, 2:, :2], pixels[1, 0, :2, 2:4] = 1.0, 1.0  # image 0: patch (1, 0); image 1: patch (0, 1)

    def score(x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=(1, 2, 3)) / 4

    maps = torch.stack([MAP, MAP])  # highest: (1, 0), then (0, 1)
    removed = deletion(score, pixels, maps, steps=6)
    assert removed.scores.tolist() == [[1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
    shown = insertion(score, pixels, maps, steps=6)
    torch.testing.assert_close(shown.scores, 1 - removed.scores)
    torch.testing.assert_close(removed.area, torch.tensor([0.5, 1.5], dtype=torch.float64) / 6)
    assert removed.parts.tolist() == pytest.approx([step / 6 for step in range(7)])
    blurred = deletion(score, pixels, maps, steps=6, baseline=torch.full_like(pixels, 0.5))
    assert blurred.scores[:, -1].tolist() == [3.0, 3.0]


def slow_region(values: list[float], keep: float) -> list[bool]:
    values = [0.0 if math.isnan(value) else value for value in values]
    mass, chosen = 0.0, [False] * len(values)
    for place in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        if mass >= keep * (1 - 1e-12) * sum(values) or values[place] == 0:
            break
        mass, chosen[place] = mass + values[place], True
    return chosen


TENTHS = [0.1] * 10
REGIONS = [
    TENTHS,
    [3.0, 0.0, 1.0, 0.0],
    [0.0, 5.0, math.nan, 5.0],
    [1e-300, 2e-300],
    random_map((4, 5)).flatten().tolist(),
]


@pytest.mark.parametrize("keep", [1e-13, 0.3, 0.6, 0.7, 0.8, 1.0])
def test_one_rule_chooses_the_fewest_patches_that_hold_a_share(keep: float) -> None:
    for values in REGIONS:
        row = torch.tensor(values, dtype=torch.float64)
        expected = slow_region(values, keep)
        assert attention_mask(row, keep).tolist() == mass_mask(row, keep).tolist() == expected
        seen = ~row.isnan()
        region = torch.tensor(expected)
        assert float(iou_at_mass(row[None], region[None], keep=keep)) == 1.0
        assert float(iou_at_mass(row[None], seen[None], keep=keep)) == int(region.sum()) / int(seen.sum())


def test_a_share_of_no_mass_holds_nothing_and_of_negative_mass_is_refused() -> None:
    assert not mass_mask(torch.zeros(2, 3)).any()
    assert not mass_mask(torch.full((2, 3), math.nan)).any()
    with pytest.raises(ScoreError, match="with some mass"):
        iou_at_mass(torch.zeros(2, 3), MASK)
    for bad in (-0.1, math.inf):
        with pytest.raises(ValueError, match="expected finite values of at least 0"):
            attention_mask(torch.tensor([1.0, bad]))
