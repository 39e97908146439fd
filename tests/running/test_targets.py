"""One class's score run backward by `attend`, and what that leaves behind: nothing."""

import pytest
import torch
from torch import nn

from attnhook import METHODS, AttentionCapture, VisionModel, attend
from attnhook.attribution.methods import NEEDS
from attnhook.errors import TargetError
from attnhook.imaging.images import read_image
from attnhook.running.targets import class_index, class_scores
from tests.models import GRID, TIMM, TRANSFORMERS
from tests.results.test_results import PHOTO, pixels_of, prepare

CASES = {case.name: case for case in TIMM + TRANSFORMERS}
LABELS = ("tabby, tabby cat", "tiger cat", "Egyptian cat", "dog", "hen", "cock")
FOLLOWED = [name for name, needs in NEEDS.items() if needs.gradients]


def vision(name: str = "vit", labels: tuple[str, ...] | None = LABELS, **options) -> VisionModel:
    return VisionModel(CASES[name].build(**options), prepare, name="tiny", labels=labels)


@pytest.mark.parametrize("method", FOLLOWED)
def test_the_map_is_that_of_the_class(method: str) -> None:
    model = vision()
    (result,) = attend(model, PHOTO, method=method, target="Tabby Cat")
    with AttentionCapture(model.model, gradients=True) as capture:
        model.model(pixels_of(PHOTO)[None])[0, 0].backward()
    torch.testing.assert_close(result.attention, METHODS[method](capture.maps).values[0])
    assert result.settings.target == LABELS[0]
    others = [attend(model, PHOTO, method=method, target=index)[0].attention for index in (0, 1)]
    assert torch.equal(others[0], result.attention)
    assert not torch.allclose(others[1], result.attention)


def test_without_a_target_the_highest_score_counts() -> None:
    model = vision(labels=None)
    with torch.no_grad():
        best = int(model.model(pixels_of(PHOTO)[None]).argmax())
    (result,) = attend(model, PHOTO, method="gradient_rollout")
    assert result.settings.target == best


@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_is_left_as_found(frozen: bool) -> None:
    model = vision()
    module = model.model
    module.requires_grad_(not frozen)
    parameters = dict(module.named_parameters())
    if not frozen:
        parameters["head.bias"].grad = torch.full_like(parameters["head.bias"], 3.0)
    attend(model, [PHOTO, PHOTO], method="legrad", target=2)
    for name, parameter in parameters.items():
        assert parameter.requires_grad is not frozen
        if name == "head.bias" and not frozen:
            assert (parameter.grad == 3.0).all()
        else:
            assert parameter.grad is None
    assert not module.training


def test_inside_inference_mode() -> None:
    model = vision()
    with torch.inference_mode():
        (result,) = attend(model, PHOTO, method="gradient_attention", target=1)
    assert result.attention.max() > 0


def test_transformers_logits() -> None:
    model = vision("ViTForImageClassification", labels=("no", "yes"))
    (result,) = attend(model, PHOTO, method="gradient_rollout", target="yes")
    assert result.attention.shape == GRID


def test_caption_and_scale() -> None:
    model = vision()
    (result,) = attend(model, PHOTO, method="gradient_rollout", target="dog")
    with torch.no_grad():
        score = model.model(model.prepare(read_image(PHOTO)).inputs.pixels)[0, model.labels.index("dog")]
    assert result.settings.score == pytest.approx(float(score), abs=1e-6)
    assert result.caption == (
        "tiny: gradient rollout, CLS to patches, blocks 1 to 2 of 2, mean of 4 heads, "
        f"for class 'dog' (score {float(score):.3g}), centre crop"
    )
    assert "all queries" in attend(vision(), PHOTO, method="legrad", target="dog")[0].caption
    with pytest.raises(ValueError, match=r"expected a map of attention, got one of gradient rollout"):
        result.overlay(scale="uniform")
    with pytest.raises(ValueError, match=r"Use scale='minmax'"):
        result.figure(scale="uniform")
    assert result.overlay().size == PHOTO.size


def test_values() -> None:
    (result,) = attend(vision(), PHOTO, method="value_weighted_attention", heads="max", blocks=[0])
    assert result.attention.shape == GRID
    assert "outside" not in result.caption


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"method": "raw_attention", "target": 1},
            "'raw_attention' is the same for every class: expected no target, got 1",
        ),
        ({"method": "rollout", "target": "dog"}, "use one of 'gradient_attention', 'gradient_rollout', 'legrad'"),
        ({"method": "legrad", "heads": "max"}, "takes the mean over heads: expected heads='mean', got 'max'"),
        ({"method": "gradient_rollout", "rows": "cls"}, "expected rows='readout' or 'all', got 'cls'"),
    ],
)
def test_options_that_do_not_go_together(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        attend(vision(), PHOTO, **options)


@pytest.mark.parametrize(
    "target, labels, words",
    [
        (6, LABELS, "class 6 does not exist: expected an index from 0 to 5"),
        (-1, LABELS, "class -1 does not exist"),
        ("dog", None, "the names of this model's classes are not known; expected an index from 0 to 5"),
        ("dog", LABELS[:2], "the names of this model's classes do not fit: it has 6 classes and 2 names"),
        ("cat", LABELS, "unknown class 'cat': .* such as 0 'tabby, tabby cat', 1 'tiger cat', 2 'Egyptian cat'"),
        ("doog", LABELS, "such as 3 'dog'"),
        ("zebra", LABELS, r"one of the model's 6 classes\. Pass its index"),
        ("a", ("a", "A", "b", "c", "d", "e"), "is not one class: expected one, got 0 'a', 1 'A'"),
    ],
)
def test_classes_that_are_none(target, labels, words) -> None:
    with pytest.raises(TargetError, match=words):
        class_index(target, labels, 6)


@pytest.mark.parametrize(
    "name, kind", [("vit_no_pool", "of a model without a head"), ("Dinov2Model", "BaseModelOutputWithPooling")]
)
def test_a_model_without_class_scores(name: str, kind: str) -> None:
    case = CASES[name]
    model = case.build()
    with pytest.raises(TargetError, match=rf"has no class scores: expected a classifier's output.*{kind}"):
        class_scores(model, case.feed(model))


def test_a_tower_of_features() -> None:
    tower = nn.Linear(3, 4)
    tower.get_image_features = tower.forward
    with pytest.raises(TargetError, match="without a head"):
        class_scores(tower, torch.zeros(1, 4))
