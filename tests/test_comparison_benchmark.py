"""`benchmarks/comparison.py` at a tiny size: its books balance, and a comparison that measured nothing is noticed."""

import pytest

from attnhook.errors import ComparisonError
from tests.benchmark_scripts import imported


@pytest.fixture
def script(monkeypatch):
    with imported("comparison") as found:
        monkeypatch.setattr(found, "NAMES", ("test_vit",))
        yield found


def test_every_part_is_timed(script) -> None:
    seconds = script.run_times(2, script.photos(2))
    assert set(seconds) == {"prepare", "build", "bare", "compare", "save"}
    assert min(seconds.values()) > 0


def test_a_comparison_that_failed_is_not_timed(script, monkeypatch) -> None:
    monkeypatch.setattr(script, "NAMES", ("test_resnet",))
    with pytest.raises(ComparisonError, match="could be measured"):
        script.run_times(1, script.photos(1))
