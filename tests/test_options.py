"""Every choice by name: legal names become members, all others are refused with the legal ones, wherever the user passes them."""

import importlib
import pkgutil
from collections.abc import Callable
from enum import StrEnum

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import attnhook
from attnhook import AttentionCapture, ImageGeometry, attention_statistics, heatmap, overlay, raw_attention, rollout
from attnhook.attribution.statistics import Averaged
from attnhook.capture.anatomy import Readout
from attnhook.capture.operands import Operands
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.imaging.rounding import CropRounding
from attnhook.options import HeadFusion, Interpolation, Rows, Scale, choose
from tests.models import TIMM, images

NOT_MODULES = (
    "attnhook.monitoring.integrations",
    "attnhook.__main__",
    "attnhook.workflows",
    "attnhook.capture.adapters",
)


def every_kind() -> list[type[StrEnum]]:
    names = [module.name for module in pkgutil.walk_packages(attnhook.__path__, "attnhook.")]
    modules = [importlib.import_module(name) for name in names if not name.startswith(NOT_MODULES)]
    values = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    kinds = [kind for kind in values if issubclass(kind, StrEnum) and kind is not StrEnum]
    return sorted((kind for kind in kinds if kind.__module__.startswith("attnhook.")), key=lambda kind: kind.__name__)


KINDS = every_kind()


def test_the_kinds_are_found() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert names >= {"Rows", "HeadFusion", "Scale", "Interpolation", "Style", "CropRounding", "Averaged", "Queries"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_values_and_members_become_members(kind: type[StrEnum]) -> None:
    for member in kind:
        assert choose(kind, member.value, "choice") is choose(kind, member, "choice") is member


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(st.one_of(st.text(), st.integers(), st.none(), st.booleans(), st.floats()))
def test_everything_else_is_refused_with_the_legal_ones(kind: type[StrEnum], value: object) -> None:
    if value in {member.value for member in kind}:
        return
    with pytest.raises(ValueError, match="unknown choice: expected one of") as caught:
        choose(kind, value, "choice")  # type: ignore[arg-type] (what users pass)
    message = str(caught.value)
    assert message.endswith(f", got {value!r}.")
    assert all(repr(member.value) in message for member in kind)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_names_are_exact(kind: type[StrEnum]) -> None:
    for member in kind:
        for wrong in (member.value.upper(), f" {member.value}", member.value[:-1]):
            with pytest.raises(ValueError, match="expected one of"):
                choose(kind, wrong, "choice")


PHOTO, MAP = Image.new("RGB", (6, 4)), torch.rand(4, 6)
SEEN = ImageGeometry.identity((4, 6))
MATRIX = SoftmaxMatrix(Operands(torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 4)))


@pytest.fixture(scope="module")
def maps() -> attnhook.AttentionMaps:
    model = TIMM[0].build()
    with torch.inference_mode(), AttentionCapture(model, rows="all") as capture:
        model(images())
    return capture.maps


USES: list[tuple[str, type[StrEnum], Callable[[str, attnhook.AttentionMaps], object], set[str]]] = [
    ("rows", Rows, lambda name, _: AttentionCapture(TIMM[0].build(), rows=name), {"pool"}),
    ("rows of a readout", Rows, lambda name, _: Readout(name, "because"), set()),
    ("raw heads", HeadFusion, lambda name, maps: raw_attention(maps, heads=name).values, set()),
    ("rollout heads", HeadFusion, lambda name, maps: rollout(maps, heads=name).values, set()),
    ("fusion", HeadFusion, lambda name, _: MATRIX.fused_left_multiply(torch.ones(1, 1, 3), name), set()),
    ("fused chunks", HeadFusion, lambda name, _: [*MATRIX.fused_chunks(name)], set()),
    ("mode", Interpolation, lambda name, _: heatmap(torch.rand(2, 3), SEEN, mode=name), set()),
    ("scale", Scale, lambda name, _: overlay(PHOTO, MAP, scale=name, uniform=0.1), set()),
    ("rounding", CropRounding, lambda name, _: SEEN.center_crop(2, rounding=name), set()),
    ("queries", Averaged, lambda name, maps: attention_statistics(maps, queries=name), set()),
]


@pytest.mark.parametrize("kind, use, without", [use[1:] for use in USES], ids=[use[0] for use in USES])
def test_users_choices_are_coerced_and_refused_where_they_are_passed(kind, use, without, maps) -> None:
    for member in kind:
        if member.value not in without:
            use(member.value, maps)
    with pytest.raises(ValueError, match="expected one of") as caught:
        use("sideways", maps)
    assert all(repr(member.value) in str(caught.value) for member in kind)
    assert "got 'sideways'" in str(caught.value)
