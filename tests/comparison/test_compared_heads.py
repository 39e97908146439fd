"""`compare(heads=...)`: the maps of `attend`, a view for each choice of heads, and what takes no heads."""

import json
import re

import pytest
import torch

from attnhook import attend, compare
from attnhook.comparison.measurements import make_map_kinds
from tests.comparison.test_cache_keys import kept_and_new
from tests.comparison.zoo import photo, timm_vit


def alone(models, photos, **asked):
    return compare(models, photos, cache=None, progress=False, **asked)


@pytest.mark.parametrize("method", ["raw_attention", "value_weighted_attention", "received_attention", "rollout"])
def test_maps_are_those_of_attend(method) -> None:
    choices = [1, -1, "max", "min", "mean"]
    found = alone(timm_vit(), photo(), methods=method, heads=choices)
    assert found.failures == ()
    assert [view.heads for view in found.views] == choices
    for number, heads in enumerate(choices):
        (one,) = attend(
            timm_vit(), photo(), method=method, heads=heads, rows="all" if method == "rollout" else "readout"
        )
        torch.testing.assert_close(found.heatmap(0, 0, number), one.heatmap, equal_nan=True)


def test_a_single_choice_is_the_only_view() -> None:
    found = alone(timm_vit(), photo(), heads=2, depths=[0.5, 1])
    assert [view.id for view in found.views] == ["raw_attention-head2", "raw_attention@0.5-head2"]
    assert found.views[0].label == "raw attention, last block, head 2"
    assert alone(timm_vit(), photo()).views[0].id == "raw_attention"


def test_heads_are_saved_and_shown(tmp_path) -> None:
    found = alone([timm_vit("a"), timm_vit("b", depth=2)], photo(), heads=[0, "mean"])
    assert found.settings["heads"] == [0, "mean"]
    page = found.save(tmp_path).read_text()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["settings"]["heads"] == [0, "mean"]
    assert "raw attention, last block, head 0" in page
    assert "raw attention, last block, mean over heads" in page
    assert set(found.agreement()["view"]) == {"raw_attention-head0", "raw_attention"}
    assert any("head 0; row of" in text.get_text() for text in found.figure("raw_attention-head0").texts)


def test_a_head_that_a_model_does_not_have_costs_its_map_alone() -> None:
    found = alone([timm_vit("a"), timm_vit("b", depth=2)], photo(), heads=[3, 4], methods=["raw_attention", "rollout"])
    assert {(one.model, one.what) for one in found.failures} == {
        (model, view) for model in "ab" for view in ("raw_attention-head4", "rollout-head4")
    }
    assert re.search("head 4 of block .* does not exist: expected -4 to 3", found.failures[0].error)
    assert found.heatmap("a", 0, "raw_attention-head3").shape == (90, 120)


def test_other_heads_are_other_measurements(tmp_path) -> None:
    maps = [
        next(iter(kept_and_new(timm_vit(), tmp_path, heads=heads)[0].maps.values())).values for heads in (0, 1, "mean")
    ]
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[1], maps[2])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("legrad", 1.0, 0), "'legrad' takes the mean over heads: expected heads='mean', got 0"),
        ((["raw_attention", "gradient_rollout"], 1.0, ["mean", "max"]), "'gradient_rollout' takes the mean over heads"),
        (("raw_attention", 1.0, None), "expected heads='mean', 'max', 'min' or a head's index, got None"),
        (("raw_attention", 1.0, "sum"), "unknown heads: expected one of 'mean', 'max', 'min', got 'sum'"),
        (("raw_attention", 1.0, []), "at least one choice of heads"),
        (("raw_attention", 1.0, [1, 1]), "no duplicates"),
    ],
)
def test_heads_that_mean_nothing_are_refused(asked, words) -> None:
    with pytest.raises(ValueError, match=words):
        make_map_kinds(*asked)
