"""A map lies in the same place however it gets there: by hand with the transform, by `attend`, with a geometry."""

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from attnhook import AttentionCapture, ImageGeometry, VisionModel, attend, raw_attention, received_attention, rollout
from attnhook.errors import GeometryError

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 150, 3), np.uint8))
NORMALISE = transforms.Normalize([0.5] * 3, [0.5] * 3)
COMPOSE = transforms.Compose([transforms.Resize(72), transforms.CenterCrop(64), transforms.ToTensor(), NORMALISE])
NEWER = v2.Compose([v2.Resize((64, 64)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def by_hand(photo):
    """Letterboxed, blue first, as OpenCV's users have it."""
    small = photo.copy()
    small.thumbnail((64, 64))
    square = Image.new("RGB", (64, 64), (114, 114, 114))
    square.paste(small, ((64 - small.width) // 2, (64 - small.height) // 2))
    return np.asarray(square)[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / 255


def timm_model():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_heads=3).eval()


def hf_model():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64, image_size=64
    )
    return transformers.ViTModel(config).eval()


PROCESSOR = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
CASES = {
    "compose": (timm_model, COMPOSE, lambda: COMPOSE(PHOTO)[None]),
    "v2": (timm_model, NEWER, lambda: NEWER(PHOTO)[None]),
    "numpy": (timm_model, by_hand, lambda: torch.from_numpy(by_hand(PHOTO))[None]),
    "processor": (hf_model, PROCESSOR, lambda: PROCESSOR(images=PHOTO, return_tensors="pt")["pixel_values"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("style", ["heat", "patches", "contours"])
def test_by_hand_is_pixel_for_pixel_what_attend_draws(case, style):
    build, preprocess, pixels = CASES[case]
    model = build()
    with torch.inference_mode(), AttentionCapture(model) as capture:
        model(pixels())
    by_hand_picture = raw_attention(capture.maps).overlay(PHOTO, preprocess, style=style)
    (result,) = attend(model, PHOTO, preprocess=preprocess)
    assert by_hand_picture.tobytes() == result.overlay(style=style).tobytes()
    (wrapped,) = attend(VisionModel(model, preprocess), PHOTO)
    assert wrapped.overlay(style=style).tobytes() == by_hand_picture.tobytes()
    assert (
        by_hand_picture.tobytes()
        == raw_attention(capture.maps).overlay(PHOTO, ImageGeometry.of(preprocess, PHOTO), style=style).tobytes()
    )


def test_a_transform_that_makes_another_input_is_refused():
    model = timm_model()
    with torch.inference_mode(), AttentionCapture(model) as capture:
        model(COMPOSE(PHOTO)[None])
    other = transforms.Compose([transforms.Resize(96), transforms.CenterCrop(80), transforms.ToTensor()])
    with pytest.raises(
        GeometryError, match=r"expected an input of 64 x 64 pixels, .* got a geometry for an input of 80 x 80"
    ):
        raw_attention(capture.maps).overlay(PHOTO, other)


def test_behind_a_cnn_the_grid_covers_the_image():
    """A ViT on the features of a ResNet: the patch embedding sees 7 x 7 positions, the map lies over 224 x 224 pixels."""
    model = timm.create_model("vit_tiny_r_s16_p8_224", num_classes=0).eval()
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(torch.rand(1, 3, 224, 224))
    assert capture.maps.patch_area == (224, 224)
    heat = raw_attention(capture.maps).heatmap(ImageGeometry.identity((224, 224)))
    assert not heat.isnan().any()


def test_uniform_attention_of_windows_is_of_the_whole_grid():
    """Every position of a window model that attends uniformly receives 1 / positions."""
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, depths=(2, 1, 1, 1), embed_dim=24, num_heads=(1, 1, 1, 1)
    ).eval()
    for module in model.modules():
        if type(module).__name__ == "WindowAttention":
            torch.nn.init.zeros_(module.qkv.weight)
            torch.nn.init.zeros_(module.qkv.bias)
            torch.nn.init.zeros_(module.relative_position_bias_table)
    with torch.no_grad(), AttentionCapture(model, rows="all", blocks=[0]) as capture:
        model(torch.rand(1, 3, 224, 224))
    found = received_attention(capture.maps, 0)
    torch.testing.assert_close(found.values, torch.full((1, 56, 56), found.uniform), atol=1e-7, rtol=0)
    torch.testing.assert_close(found.outside, torch.zeros(1), atol=1e-5, rtol=0)


def test_captions_name_the_blocks_place_in_the_model():
    model = timm_model()
    with torch.no_grad(), AttentionCapture(model, rows="all", blocks=1) as capture:
        model(torch.rand(1, 3, 64, 64))
    assert raw_attention(capture.maps).caption.startswith(
        "raw attention, CLS to patches, block 2 of 2, mean of 3 heads; "
    )
    assert raw_attention(capture.maps, heads=-1, row=0).caption.startswith(
        "raw attention, token 0 to patches, block 2 of 2, head 2; "
    )
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(torch.rand(1, 3, 64, 64))
    assert rollout(capture.maps).caption.startswith("rollout, CLS to patches, blocks 1 to 2 of 2, mean of 3 heads; ")
    assert received_attention(capture.maps).caption.startswith(
        "received attention, all queries to patches, block 2 of 2, mean of 3 heads; "
    )


@pytest.mark.parametrize("family", ["timm", "transformers"])
def test_the_last_positions_of_stages_that_pad_reach_beyond_the_image(family):
    """Swin halves 15 positions to 8, the last of them half padding: each is 32 pixels wide, 8 times 30 are not what it saw."""
    torch.manual_seed(0)
    if family == "timm":
        small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
        model = timm.create_model("swin_tiny_patch4_window7_224", img_size=240, **small).eval()
    else:
        config = transformers.SwinConfig(embed_dim=16, depths=[1] * 4, num_heads=[1] * 4, image_size=240, window_size=7)
        model = transformers.SwinModel(config).eval()
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(torch.rand(1, 3, 240, 240))
    seen = ImageGeometry.identity((240, 240))
    found = [received_attention(capture.maps, block) for block in range(4)]
    assert [one.grid for one in found] == [(60, 60), (30, 30), (15, 15), (8, 8)]
    assert [one.box(seen, (0, 1)) for one in found] == [(0, side, side, 2 * side) for side in (4, 8, 16, 32)]
    assert found[-1].box(seen, (7, 7)) == (224, 224, 240, 240)
    assert [one.area for one in found] == [(240, 240)] * 3 + [(256, 256)]


def test_behind_a_cnn_that_pads():
    """Five halvings of 112 pixels: 4 positions of 32 pixels, not of 28."""
    torch.manual_seed(0)
    model = timm.create_model("vit_small_r26_s32_224", img_size=112, depth=1, embed_dim=48, num_heads=3).eval()
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(torch.rand(1, 3, 112, 112))
    found = raw_attention(capture.maps)
    assert (found.grid, found.area) == ((4, 4), (128, 128))
    assert found[0].box(ImageGeometry.identity((112, 112)), (3, 1)) == (96, 32, 112, 64)


def test_the_image_of_a_model_of_patches_and_their_pixels_is_the_image():
    model = timm.create_model("tnt_s_patch16_224", img_size=64, depth=1).eval()
    result = attend(model, PHOTO, preprocess=COMPOSE)[0]
    assert (result.patch_map.input_size, result.patch_map.area_on(result.geometry)) == ((64, 64), (64, 64))


def test_blocks_that_run_twice_have_no_place_among_the_models_blocks():
    model = timm_model()
    model.blocks = torch.nn.Sequential(*model.blocks, *model.blocks)
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(torch.rand(1, 3, 64, 64))
    assert raw_attention(capture.maps).caption.startswith(
        "raw attention, CLS to patches, block blocks.1.attn:1, mean of 3 heads"
    )
    assert rollout(capture.maps).caption.startswith(
        "rollout, CLS to patches, 4 blocks from blocks.0.attn to blocks.1.attn:1, mean"
    )


def test_labels_by_index_are_in_the_order_of_the_numbers():
    names = {str(index): f"class {index}" for index in range(12)}
    assert VisionModel(timm_model(), COMPOSE, labels=names).labels[2:11:8] == ("class 2", "class 10")
    assert VisionModel(timm_model(), COMPOSE, labels={1: "b", 0: "a"}).labels == ("a", "b")
    for wrong in ({1: "a", 2: "b"}, {0: "a", 2: "b"}, {"cat": 0, "dog": 1}):
        with pytest.raises(ValueError, match="bad labels: expected a name for every output"):
            VisionModel(timm_model(), COMPOSE, labels=wrong)


def test_the_default_device_moves_no_map():
    model, pictures = timm_model(), []
    for device in ("cpu", "meta"):
        with torch.device(device):
            (result,) = attend(model, PHOTO, preprocess=lambda photo: by_hand(photo))
            pictures.append(result.overlay())
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_a_timm_model_in_place_of_a_transform_is_its_own_preprocessing():
    """At the size that it was built for, which its pretrained_cfg does not say."""
    model = timm_model()
    (result,) = attend(model, PHOTO)
    assert result.geometry.input_size == (64, 64)
    assert ImageGeometry.of(model, PHOTO) == result.geometry
    assert result.patch_map.overlay(PHOTO, model).tobytes() == result.overlay().tobytes()
