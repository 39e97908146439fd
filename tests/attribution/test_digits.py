"""Class-specific maps where the truth is known: two digits on a canvas, and a small ViT that tells them apart."""

from functools import cache

import pytest
import torch
from torch import Tensor

from attnhook import (
    METHODS,
    AttentionCapture,
    attend,
    gradient_attention,
    gradient_rollout,
    legrad,
    raw_attention,
    rollout,
    value_weighted_attention,
)
from attnhook.attribution.methods import NEEDS
from tests.digits import GRID, WEIGHTS, DigitPairs, digits, draw, trained

pytest.importorskip("sklearn")
CASES = 4000  # of 400, one draw differs from the next by up to 3.5 % either way


@cache
def held_out() -> DigitPairs:
    """Images that no training saw, of digits that no training saw; each gives two cases, one a class."""
    return draw(digits(held_out=True), CASES // 2, torch.Generator().manual_seed(2024))


def maps_towards(method, number: int) -> Tensor:
    """The maps for the first (0) or second (1) class of each image: `(2000, 8, 8)`."""
    pairs, model = held_out(), trained()
    with AttentionCapture(model, gradients=True) as capture:
        scores = model(pairs.pixels)
        scores.gather(1, pairs.classes[:, number, None]).sum().backward()
    return method(capture.maps)


def peak_shares(method) -> tuple[float, float]:
    """In how many of the cases the map peaks inside the digit of its class, and inside the other one."""
    right, wrong = [], []
    for number in range(2):
        peaks = maps_towards(method, number).flatten(1).argmax(1)[:, None]
        right.append(held_out().inside(number).flatten(1).gather(1, peaks))
        wrong.append(held_out().inside(1 - number).flatten(1).gather(1, peaks))
    return torch.cat(right).double().mean().item(), torch.cat(wrong).double().mean().item()


def test_the_asset_is_small() -> None:
    assert WEIGHTS.stat().st_size < 1_000_000


def test_the_model_knows_its_digits() -> None:
    pairs = held_out()
    with torch.no_grad():
        best = trained()(pairs.pixels).topk(2).indices
    assert (best.sort().values == pairs.classes.sort().values).all(1).double().mean() > 0.75


def test_pairs_are_what_they_say() -> None:
    pairs = held_out()
    assert (pairs.classes[:, 0] != pairs.classes[:, 1]).all()
    assert not (pairs.inside(0) & pairs.inside(1)).any()
    assert pairs.inside(0).flatten(1).sum(1).min() >= 9
    ink = torch.nn.functional.avg_pool2d(pairs.pixels[:, 0] + 0.5, 4)
    assert ink.shape[1:] == (GRID, GRID)
    assert ink[pairs.inside(0) | pairs.inside(1)].mean() > 10 * ink[~(pairs.inside(0) | pairs.inside(1))].mean()
    training, unseen = digits(held_out=False)[0], digits(held_out=True)[0]
    assert (len(training), len(unseen)) == (1437, 360)


# One block knows less than all: gradient_attention is right in about 90 % of the cases, on either side of it from one draw to the next.
@pytest.mark.parametrize(
    "method, least", [(gradient_rollout, 0.96), (gradient_attention, 0.87)], ids=lambda x: getattr(x, "__name__", "")
)
def test_relevance_for_a_class_peaks_inside_its_digit(method, least: float) -> None:
    right, wrong = peak_shares(method)
    print(f"{method.__name__}: right {right:.3f}, wrong {wrong:.3f}")
    assert right >= least
    assert wrong <= 1 - least


def test_legrad_of_the_final_score_leans_to_the_right_digit_and_no_more() -> None:
    right, wrong = peak_shares(legrad)
    # Its paper scores every layer on its own; one backward of the final score tells classes apart less.
    assert right > 0.6 > 0.4 > wrong


@pytest.mark.parametrize("method", [raw_attention, rollout, value_weighted_attention], ids=lambda m: m.__name__)
def test_what_is_read_off_the_forward_cannot_tell_classes_apart(method) -> None:
    first, second = (maps_towards(method, number) for number in range(2))
    assert torch.equal(first, second)
    right, wrong = peak_shares(method)
    assert right <= 0.6  # whichever digit it prefers, it prefers it for both classes
    assert right == pytest.approx(wrong)


def test_every_method_is_tried() -> None:
    followed = {name for name, needs in NEEDS.items() if needs.gradients}
    assert followed == {"gradient_rollout", "gradient_attention", "legrad"}
    assert set(METHODS) == followed | {"raw_attention", "rollout", "value_weighted_attention"}


def test_attend_with_a_target() -> None:
    from attnhook import ImageGeometry, VisionModel

    pairs = held_out()
    labels = tuple(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    model = VisionModel(trained(), "digits", "timm", lambda photo: photo, ImageGeometry.identity, labels, (32, 32))
    photo = (pairs.pixels[0] * 255 + 127.5).byte()
    for number in range(2):
        (result,) = attend(
            model,
            photo,
            method="gradient_rollout",
            target=labels[pairs.classes[0, number]],
            preprocess=lambda image: (pairs.pixels[:1], ImageGeometry.identity((image.height, image.width))),
        )
        torch.testing.assert_close(result.attention, maps_towards(gradient_rollout, number)[0], atol=1e-6, rtol=1e-4)
