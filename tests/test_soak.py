"""`tests/soak.py`, shorter, and that it would notice what grows."""

import pytest

from tests import soak


@pytest.fixture(scope="module")
def script():
    return soak


@pytest.mark.slow
def test_five_hundred_captures_leave_nothing_behind(script) -> None:
    found = script.soak(500)
    assert [one.captures for one in found] == list(range(50, 501, 50))
    assert script.growing(found) == []
    assert {(one.hooks, one.modes) for one in found} == {(0, 0)}


def test_every_way_is_taken_with_every_model_in_one_thread_and_in_several(
    script, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        script, "WAYS", tuple(lambda model, _, way=way: seen.append((way, model)) for way in script.WAYS)
    )
    monkeypatch.setattr(script, "STYLES", (script.one_after_the_other, script.in_threads))
    script.soak(30, counts=1)
    assert len(seen) == 30
    assert len(set(seen)) == 3 * len(script.WAYS) == 15


def test_tasks_have_captures_of_their_own(script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "STYLES", (script.in_tasks,))
    assert script.growing(script.soak(24, counts=2)) == []
    real = script.scores_of
    monkeypatch.setattr(script, "scores_of", lambda model, pixels: real(model, pixels[:1]))
    with pytest.raises(RuntimeError, match="capture of another task"):
        script.soak(24, counts=1)


def test_a_leak_of_tensors_and_hooks_is_noticed(script, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def leaking(model, pixels) -> None:
        kept.append(pixels + 1)
        model.register_forward_hook(lambda *_: None)

    monkeypatch.setattr(script, "WAYS", (leaking,))
    monkeypatch.setattr(script, "STYLES", (script.one_after_the_other,))
    hooks, tensors = script.growing(script.soak(20))
    assert hooks.startswith("hooks: expected 2 all along, got [2, 4,")
    assert tensors.startswith("tensors: expected ")


def test_the_slope_is_that_of_a_line_after_the_warm_up(script) -> None:
    counts = [script.Count(1000 * n, 5000 if n == 1 else 10_000 + 7 * n, 0, 0, 0) for n in range(1, 11)]
    assert script.slope(counts) == pytest.approx(7)
    assert script.growing(counts) == []
