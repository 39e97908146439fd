"""Whether a word's map lies on what the word names, where that is known: a tiny trained model that names two digits from left to right."""

import pytest
import torch
from torch import Tensor

from tests.reading import Reading, read

COUNT = 250
"""Pictures of digits that no training saw; each gives two cases."""


@pytest.fixture(scope="module")
def trained() -> Reading:
    return read(COUNT, trained=True)


@pytest.fixture(scope="module")
def untrained() -> Reading:
    return read(COUNT, trained=False)


def test_the_model_reads(trained: Reading, untrained: Reading) -> None:
    assert trained.right > 0.9
    assert untrained.right < 0.05


def test_the_default_map_of_a_name_peaks_in_its_digit(trained: Reading, untrained: Reading) -> None:
    own, other = trained.peaks(trained.maps())
    assert own >= 0.9
    assert other <= 0.1
    own, other = untrained.peaks(untrained.maps())
    assert own < 0.3  # by chance 9 patches of 64: 0.14
    assert other < 0.3


def test_maps_that_are_swapped_peak_in_the_other_digit(trained: Reading) -> None:
    swapped: Tensor = trained.maps().flip(1)
    own, other = trained.peaks(swapped)
    assert own <= 0.1
    assert other >= 0.9


def test_readings_are_means_and_maxima_of_the_rows(trained: Reading) -> None:
    rows = trained.answers[0].rows
    assert torch.equal(trained.maps(layers=[-1])[0, 0], rows[0, -1].mean(0).view(8, 8))
    assert torch.equal(trained.maps(heads="max", fusion="max")[0, 1], rows[2].amax((0, 1)).view(8, 8))
