"""What users write by mistake, from photos to maps: each refusal says what to write instead."""

import re

import numpy as np
import pytest
import torch
import transformers
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from attnhook import (
    AttentionCapture,
    ImageGeometry,
    VisionModel,
    attend,
    blocks_figure,
    heatmap,
    overlay,
    raw_attention,
    rollout,
)
from attnhook.errors import GeometryError, UnknownBlockError
from tests.models import GRID, IMAGE, TIMM, images
from tests.results.test_results import PHOTO, pixels_of, prepare, seen

CASES = {case.name: case for case in TIMM}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 8}
NAMES = {0: "cat", 1: "dog", 2: "bird"}
TRANSFORM = Compose([Resize(24), CenterCrop(IMAGE), ToTensor()])


@pytest.fixture(scope="module")
def module():
    return CASES["vit"].build()


@pytest.fixture(scope="module")
def maps(module):
    with torch.no_grad(), AttentionCapture(module, rows="all") as capture:
        module(images())
    return capture.maps


def classifier(**settings):
    config = transformers.ViTConfig(
        **SMALL, image_size=32, id2label=NAMES, label2id={name: i for i, name in NAMES.items()}, **settings
    )
    return transformers.ViTForImageClassification(config).eval()


def processor(size: int = 32):
    return transformers.ViTImageProcessor(size={"height": size, "width": size})


class OwnClassifier(transformers.ViTPreTrainedModel):
    """A classifier of the user's, on a tower of transformers."""

    def __init__(self, config) -> None:
        super().__init__(config)
        self.vit = transformers.ViTModel(config, add_pooling_layer=False)
        self.head = torch.nn.Linear(config.hidden_size, 3)

    def forward(self, pixel_values):
        return self.head(self.vit(pixel_values).last_hidden_state[:, 0])


# --- blocks ---------------------------------------------------------------------------------------------------------------------------------


def test_a_number_of_blocks_is_the_last_ones(module) -> None:
    (result,) = attend(module, PHOTO, preprocess=prepare, blocks=1)
    assert result.maps.block_names == ("blocks.1.attn",)


@pytest.mark.parametrize(
    "block, blocks, one",
    [(1, "[1]", "1"), ([0, 1], "[0, 1]", "0"), ("blocks.1.attn", "['blocks.1.attn']", "'blocks.1.attn'")],
)
def test_block_of_attend_says_what_to_pass(module, block, blocks, one) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"Pass blocks={blocks}, or capture all blocks and take result[{one}].")
    ):
        attend(module, PHOTO, preprocess=prepare, block=block)
    attend(module, PHOTO, preprocess=prepare, blocks=block if isinstance(block, list) else [block])


@pytest.mark.parametrize("block", [[0, 1], (0, 1)])
def test_several_blocks_are_not_one(module, maps, block) -> None:
    words = "is not one block: expected an index or a name, got several"
    with pytest.raises(UnknownBlockError, match=words):
        raw_attention(maps, block=block)
    with pytest.raises(UnknownBlockError, match=words):
        attend(module, PHOTO, preprocess=prepare)[0][block]
    with pytest.raises(UnknownBlockError, match=words):
        AttentionCapture(module, blocks=[block])


@pytest.mark.parametrize("blocks", [1.5, [1.5], slice(0, 1), True, [None]])
def test_what_selects_no_block(module, maps, blocks) -> None:
    with pytest.raises(UnknownBlockError, match=r"unknown block .*: expected an index"):
        AttentionCapture(module, blocks=blocks)


def test_numpy_numbers_are_numbers(module, maps) -> None:
    assert AttentionCapture(module, blocks=np.int64(1)).block_names == ("blocks.1.attn",)
    assert AttentionCapture(module, blocks=np.array([0])).block_names == ("blocks.0.attn",)
    head = raw_attention(maps, heads=np.int64(1), block=np.int64(0))
    assert torch.equal(head.values, raw_attention(maps, heads=1, block=0).values)
    assert head.caption == raw_attention(maps, heads=1, block=0).caption
    assert torch.equal(rollout(maps, heads=np.int64(1)).values, rollout(maps, heads=1).values)


@pytest.mark.parametrize("heads", [True, [0, 1], 1.0])
@pytest.mark.parametrize("method", [raw_attention, rollout])
def test_heads_that_are_none(maps, method, heads) -> None:
    with pytest.raises(
        ValueError, match="unknown heads: expected 'mean', 'max', 'min', one head's index, or None, got"
    ):
        method(maps, heads=heads)


# --- rows -----------------------------------------------------------------------------------------------------------------------------------


def test_two_numbers_may_be_a_patch_or_two_tokens(module) -> None:
    words = re.escape("Pass rows=[(1, 2)] for the patch in row 1 and column 2, or rows=[1, 2] for the tokens 1 and 2.")
    with pytest.raises(ValueError, match=words):
        AttentionCapture(module, rows=(1, 2))
    with pytest.raises(ValueError, match=words):
        attend(module, PHOTO, preprocess=prepare, rows=(1, 2))
    for rows in ([(1, 2)], [1, 2], (1, 2, 3), ((1, 2), 3), range(2)):
        AttentionCapture(module, rows=rows)


def test_attend_shows_one_row(module) -> None:
    with pytest.raises(
        ValueError,
        match=re.escape("attend shows one row: expected one patch, rows=[(row, column)], got rows=[(0, 1), 3]"),
    ):
        attend(module, PHOTO, preprocess=prepare, rows=[(0, 1), 3])


# --- figures and maps -----------------------------------------------------------------------------------------------------------------------


def test_blocks_figure_takes_a_number_of_blocks_and_names_the_nearest_option(module) -> None:
    (result,) = attend(module, PHOTO, preprocess=prepare)
    blocks_figure(result, blocks=2)
    for draw in (blocks_figure, lambda one, **look: one.figure(**look), lambda one, **look: one.overlay(**look)):
        with pytest.raises(TypeError, match=r"got 'cmap'\. Did you mean 'colormap'\?"):
            draw(result, cmap="jet")


def test_what_was_captured_is_no_map(maps) -> None:
    for captured in (maps, maps[-1]):
        with pytest.raises(
            GeometryError, match=rf"expected what raw_attention\(capture.maps\) returns.*got {type(captured).__name__}"
        ):
            heatmap(captured, seen((PHOTO.height, PHOTO.width)))
        with pytest.raises(GeometryError, match="not a patch map"):
            overlay(PHOTO, captured, seen((PHOTO.height, PHOTO.width)))


def test_a_geometry_with_the_width_first_is_refused_before_anything_is_drawn(module) -> None:
    def width_first(photo):
        return pixels_of(photo)[None], seen(photo.size)

    for run in (
        lambda: attend(module, PHOTO, preprocess=width_first),
        lambda: VisionModel(module, width_first).preprocess(PHOTO),
        lambda: attend(module, PHOTO, preprocess=prepare)[0].patch_map.overlay(PHOTO, seen(PHOTO.size)),
    ):
        with pytest.raises(
            GeometryError, match=r"Height and width look swapped: PIL's photo.size is \(width, height\)"
        ):
            run()


# --- preprocessing --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["batch", "no batch"])
@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_pixels_with_and_without_a_batch_axis_are_the_same(axes, channels) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(channels, 3, 1), CASES["vit"].build()).eval()

    def pixels(photo):
        made = TRANSFORM(photo)[torch.arange(channels) % 3]
        return (made if axes == "no batch" else made[None]), ImageGeometry.of(TRANSFORM, photo)

    (result,) = attend(module, PHOTO, preprocess=pixels)
    with torch.no_grad(), AttentionCapture(module) as capture:
        module(TRANSFORM(PHOTO)[torch.arange(channels) % 3][None])
    torch.testing.assert_close(result.attention, raw_attention(capture.maps).values[0])


@pytest.mark.parametrize("with_geometry", [False, True])
def test_pixels_without_channels(module, with_geometry) -> None:
    def grey(photo):
        pixels = TRANSFORM(photo)[0]
        return (pixels, ImageGeometry.of(TRANSFORM, photo)) if with_geometry else pixels

    for run in (lambda: attend(module, PHOTO, preprocess=grey), lambda: VisionModel(module, grey).preprocess(PHOTO)):
        with pytest.raises(
            GeometryError,
            match=r"expected pixels \(channels, height, width\), .* got shape \(24, 40\)",
        ):
            run()


def test_pixels_that_do_not_depend_on_the_photo(module) -> None:
    constant = images(1)
    with pytest.raises(GeometryError, match="expected pixels that depend on the photo, got the same ones"):
        attend(module, PHOTO, preprocess=lambda _: constant)


# --- sizes ----------------------------------------------------------------------------------------------------------------------------------


def siglip():
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL, image_size=32)).eval()


@pytest.mark.parametrize(
    "build, words",
    [
        (
            classifier,
            r"expected an input of 32 x 32 pixels, got 48 x 48 pixels \(Input image size \(48\*48\) doesn't match",
        ),
        (siglip, r"expected an input of 32 x 32 pixels, got 48 x 48 pixels \(The size of tensor a \(36\) must match"),
        (CASES["vit"].build, r"expected an input of the size that it was built for, got 48 x 48 pixels \(Input height"),
    ],
    ids=["checked", "by its positions", "timm"],
)
def test_a_size_that_the_model_does_not_take(build, words) -> None:
    with pytest.raises(GeometryError, match=words) as caught:
        attend(build(), PHOTO, preprocess=processor(48))
    assert caught.value.__suppress_context__  # the model's traceback is long
    if build is not CASES["vit"].build:
        assert 'model_kwargs={"interpolate_pos_encoding": True}' in str(caught.value)
        (result,) = attend(
            build(), PHOTO, preprocess=processor(48), rows="mean", model_kwargs={"interpolate_pos_encoding": True}
        )
        assert result.attention.shape == (6, 6)


def test_other_errors_of_the_model_stay_its_own(module) -> None:
    def five_channels(photo):
        return TRANSFORM(photo)[torch.arange(5) % 3][None], ImageGeometry.of(TRANSFORM, photo)

    with pytest.raises(RuntimeError, match="to have 3 channels"):
        attend(module, PHOTO, preprocess=five_channels)


# --- classes --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [classifier, lambda: OwnClassifier(classifier().config).eval()], ids=["transformers", "own"]
)
def test_classes_by_the_names_of_the_configuration(build) -> None:
    model = build()
    (by_name,) = attend(model, PHOTO, preprocess=processor(), method="gradient_rollout", target="dog")
    (by_index,) = attend(model, PHOTO, preprocess=processor(), method="gradient_rollout", target=1)
    assert torch.equal(by_name.attention, by_index.attention)
    assert by_name.settings.target == by_index.settings.target == "dog"
    assert VisionModel(model, processor()).labels == tuple(NAMES.values())


def test_a_backbone_has_no_classes() -> None:
    assert VisionModel(transformers.ViTModel(classifier().config), processor()).labels is None


def test_a_wrapped_classifier_asks_for_the_names() -> None:
    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier()

        def forward(self, pixel_values):
            return self.inner(pixel_values).logits

    model = Logits()
    with pytest.raises(ValueError, match=re.escape("or the names: VisionModel(model, preprocess, labels=[...])")):
        attend(model, PHOTO, preprocess=processor(), method="gradient_rollout", target="dog")
    named = VisionModel(model, processor(), labels=NAMES)
    assert attend(named, PHOTO, method="gradient_rollout", target="dog")[0].settings.target == "dog"


def test_the_grid_of_these_tests(maps) -> None:
    assert maps.layout.grid == GRID
