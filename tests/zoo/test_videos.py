"""Video models that attend within each frame: maps come back as clips and frames."""

import pytest
import torch
import transformers

from attnhook import AttentionCapture, AttentionMaps, attention_statistics, describe, raw_attention, received_attention
from attnhook.capture.layout import TokenLayout
from attnhook.errors import TokenLayoutError

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
FRAMES = 3


def timesformer() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.TimesformerConfig(**SMALL, image_size=32, patch_size=8, num_frames=FRAMES)
    return transformers.TimesformerForVideoClassification(config).eval()


def clips(number: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(number, FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def captured(model: torch.nn.Module, pixels: torch.Tensor, **options) -> AttentionMaps:
    with torch.no_grad(), AttentionCapture(model, **options) as capture:
        model(pixels)
    return capture.maps


def test_every_clip_has_the_maps_that_it_has_alone() -> None:
    model, pixels = timesformer(), clips()
    together = raw_attention(captured(model, pixels))
    assert together.shape == (2, FRAMES, 4, 4)
    for number in range(2):
        alone = raw_attention(captured(model, pixels[number : number + 1]))
        torch.testing.assert_close(together[number].values, alone.values[0])
    assert together[1][2].shape == (4, 4)
    torch.testing.assert_close(together.outside, 1 - together.values.sum((-2, -1)))


def test_every_frame_has_its_own_map() -> None:
    model, pixels = timesformer(), clips()
    for layer in model.timesformer.encoder.layer:
        torch.nn.init.zeros_(layer.temporal_dense.weight)  # nothing moves between frames before the first block
        torch.nn.init.zeros_(layer.temporal_dense.bias)
    moving = raw_attention(captured(model, pixels), block=0).values
    for frame in range(FRAMES):
        still = pixels[:, frame : frame + 1].expand(-1, FRAMES, -1, -1, -1)
        torch.testing.assert_close(raw_attention(captured(model, still), block=0).values[:, frame], moving[:, frame])
    assert not torch.allclose(moving[:, 0], moving[:, 1])


def test_rows_are_those_of_eager_attention_with_heads_before_frames() -> None:
    model, pixels = timesformer(), clips()
    with torch.no_grad():
        eager = model(pixels, output_attentions=True).attentions[-1]  # (batch * frames, heads, tokens, tokens)
    values = raw_attention(captured(model, pixels), heads=None).values
    assert values.shape == (2, 2, FRAMES, 4, 4)
    for clip in range(2):
        for frame in range(FRAMES):
            expected = eager[clip * FRAMES + frame, :, 0, 1:].reshape(2, 4, 4)
            torch.testing.assert_close(values[clip, :, frame], expected)


def test_other_readings_of_the_same_maps(tmp_path) -> None:
    model, pixels = timesformer(), clips()
    maps = captured(model, pixels, rows="all", blocks=lambda name: "temporal" not in name)
    assert received_attention(maps).shape == (2, FRAMES, 4, 4)
    assert attention_statistics(maps)[-1].entropy.shape[0] == 2 * FRAMES
    layout = maps.layout
    torch.testing.assert_close(layout.outside(maps[-1].rows[:, :, 0]), layout._clips(maps[-1].rows[:, :, 0, 0], -1))
    maps.save(tmp_path / "maps.safetensors")
    assert AttentionMaps.load(tmp_path / "maps.safetensors").layout == layout
    assert maps._repr_png_() is None


def test_rows_of_half_a_clip_are_refused() -> None:
    layout = TokenLayout((4, 4), frames_in_batch=FRAMES)
    assert layout.describe() == "1 class + 4x4 patch tokens in each of 3 frames"
    for rows in (torch.rand(4, 17), torch.rand(17)):
        with pytest.raises(TokenLayoutError, match="expected the batch first, a multiple of 3"):
            layout.patches(rows)
    with pytest.raises(TokenLayoutError, match="frames_in_batch=0"):
        TokenLayout((4, 4), frames_in_batch=0)


def test_describe_says_how_many_frames() -> None:
    assert "3 frames of 4 x 4 patches of a 32 x 32 px input" in str(describe(timesformer(), clips()))
    config = transformers.VideoMAEConfig(**SMALL, image_size=32, patch_size=8, num_frames=4)
    assert "2 frames of 4 x 4 patches" in str(
        describe(transformers.VideoMAEModel(config).eval(), torch.rand(1, 4, 3, 32, 32))
    )


def test_blocks_are_counted_as_they_run() -> None:
    model, pixels = timesformer(), clips()
    listed = [block.name for block in describe(model, pixels).blocks]
    for index, name in enumerate(listed):
        (block,) = captured(model, pixels, rows="all", blocks=[index])
        assert (block.name, block.number) == (name, (index + 1, 4))
    assert "temporal" in listed[0]
    assert "temporal" not in listed[-1]
    assert "block 4 of 4" in raw_attention(captured(model, pixels)).description


def test_frames_that_never_see_each_other_are_frames_of_a_clip_too() -> None:
    config = transformers.TimesformerConfig(
        **SMALL, image_size=32, patch_size=8, num_frames=FRAMES, attention_type="space_only"
    )
    model, pixels = transformers.TimesformerForVideoClassification(config).eval(), clips()
    together = raw_attention(captured(model, pixels))
    assert together.shape == (2, FRAMES, 4, 4)
    torch.testing.assert_close(together.values[1:], raw_attention(captured(model, pixels[1:])).values)


def test_a_model_of_frames_inside_a_model_of_clips() -> None:
    text = transformers.XCLIPTextConfig(**SMALL, vocab_size=99, max_position_embeddings=16)
    vision = transformers.XCLIPVisionConfig(
        **SMALL,
        image_size=32,
        patch_size=8,
        num_frames=FRAMES,
        mit_hidden_size=16,
        mit_num_hidden_layers=1,
        mit_num_attention_heads=2,
    )
    model = transformers.XCLIPModel(
        transformers.XCLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    ).eval()
    try:
        with torch.no_grad():
            model.get_video_features(clips())
    except AttributeError as error:  # 4.57.6: a part returns a tuple, of which an attribute is read
        pytest.skip(f"X-CLIP does not run in transformers {transformers.__version__}, without a capture: {error}")
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model.get_video_features(clips())
    ran = [block.name for block in capture.maps]
    assert ran == [site.name for site in capture.plan.sites if site.name in ran]
    block = next(one for one in capture.maps if ".encoder.layers.1.self_attn" in one.name)
    assert received_attention(capture.maps, block.name).shape == (2, FRAMES, 4, 4)


@pytest.mark.skipif(not hasattr(transformers, "VideoPrismVisionModel"), reason="this version has no VideoPrism")
def test_a_model_whose_first_blocks_attend_within_frames() -> None:
    config = transformers.VideoPrismVisionConfig(
        hidden_size=16, num_spatial_layers=2, num_temporal_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
        tubelet_size=[1, 8, 8], num_frames=FRAMES,
    )  # fmt: skip
    maps = captured(transformers.VideoPrismVisionModel(config).eval(), clips(), rows="all")
    assert received_attention(maps, "spatial_layers.1.attention").shape == (2, FRAMES, 4, 4)
    with pytest.raises(TokenLayoutError, match="attention over time"):
        received_attention(maps, "temporal_layers.0.attention")
