"""`benchmarks/whole_photos.py` checks what it times."""

from dataclasses import replace

import pytest

from tests.benchmark_scripts import imported


@pytest.fixture
def script():
    with imported("whole_photos") as found:
        yield found


@pytest.fixture
def case(script, tmp_path):
    return script.Case(tmp_path, large=(400, 300), architecture="test_vit")


def test_every_way_is_timed(script, case) -> None:
    found = script.measure(case, repeats=1)
    assert set(found) == set(case.candidates())
    assert all(one["ms"] > 0 for one in found.values())
    assert {name for name, one in found.items() if "ratio" in one} == set(script.BASES)
    assert found[script.AGAIN]["ms"] < found[script.MEASURED]["ms"]


def test_wrong_results_are_noticed(script, case, monkeypatch) -> None:
    right, hidden = case.map, case.hidden
    case.map = replace(right, values=right.values.flip(-1))
    with pytest.raises(script.CheckError, match="another map"):
        case.check()
    case.map = right
    monkeypatch.setattr(case, "hidden", lambda: lambda photo: hidden()(photo.crop((40, 0, *photo.size))))
    with pytest.raises(script.CheckError, match="photo pixels from the exact one"):
        case.check()
