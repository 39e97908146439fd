"""`benchmarks/overlay.py` checks what it times."""

import numpy as np
import pytest

from tests.benchmark_scripts import imported


@pytest.fixture(scope="module")
def script():
    with imported("overlay") as found:
        yield found


def test_every_way_is_timed(script) -> None:
    found = script.measure(script.Case(None), repeats=1)
    assert set(found) == set(script.Case(None).candidates())
    assert all(milliseconds > 0 for milliseconds, _ in found.values())
    assert found[script.BASE][1].median == 1.0


def test_wrong_pictures_are_noticed(script) -> None:
    case = script.Case(None)
    photo = np.asarray(case.photo)
    with pytest.raises(script.CheckError, match="stand out"):
        case.check("the photo", photo)
    with pytest.raises(script.CheckError, match="expected a picture"):
        case.check("turned", photo.transpose(1, 0, 2))
    with pytest.raises(script.CheckError, match="stand out"):
        case.check("upside down", case.colormapped()[::-1])
