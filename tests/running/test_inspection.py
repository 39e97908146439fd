"""What `describe` says."""

import html
import re

import pytest
import timm
from PIL import Image
from torch import nn

from attnhook import describe, verify
from attnhook.capture.notebook import html_table
from attnhook.errors import UnsupportedModelError
from tests.answers.families import BEFORE_5
from tests.models import IMAGE, TIMM, images

VIT = next(case for case in TIMM if case.name == "vit_registers")


def test_static_description_runs_nothing():
    model = VIT.build()
    model.forward = None
    said = describe(model)
    assert (len(said.blocks), said.readout, said.grid, said.input_size) == (2, "cls", None, None)
    assert said.blocks[0].shape is None
    assert "read from each forward" in str(said)
    assert "1 class token, 4 register tokens, patches" in str(said)


def test_description_with_pixels():
    said = describe(VIT.build(), images(1))
    assert said.grid == (3, 5)
    assert said.input_size == IMAGE
    assert said.blocks[1].shape == (1, 4, 20, 20)
    lines = str(said).splitlines()
    assert "3 x 5 patches of a 24 x 40 px input" in str(said)
    assert lines[-1].split()[:2] == ["1", "blocks.1.attn"]
    assert lines[-1].endswith("1, 4, 20, 20")


def test_no_attention():
    with pytest.raises(UnsupportedModelError):
        describe(nn.Linear(2, 2))


# --- what is not captured ---------------------------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VISION = {**SIZES, "image_size": 24, "patch_size": 8}
TEXT = {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 4, "vocab_size": 99}


def parts(found) -> dict[str, int]:
    return {part.name: part.num_modules for part in found}


def clip(kind: str = "CLIP"):
    transformers = pytest.importorskip("transformers")
    config = {"text_config": {**TEXT, "max_position_embeddings": 16}, "vision_config": VISION, "projection_dim": 16}
    return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config))


def llava():
    transformers = pytest.importorskip("transformers")
    vision, text = transformers.CLIPVisionConfig(**VISION), transformers.LlamaConfig(**TEXT)
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=98)
    )


def qwen2_vl():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2VLConfig(
        vision_config={"embed_dim": 32, "hidden_size": 32, "num_heads": 4, "depth": 2, "patch_size": 8},
        text_config={**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def mixture_of_experts():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3VLMoeConfig(
        vision_config={**VISION, "num_heads": 4, "depth": 2, "out_hidden_size": 32, "deepstack_visual_indexes": [0]},
        text_config={**TEXT, "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
                     "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    )  # fmt: skip
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


def captioner():
    transformers = pytest.importorskip("transformers")
    decoder = transformers.BertConfig(**SIZES, vocab_size=99, is_decoder=True, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION), decoder
    )
    return transformers.VisionEncoderDecoderModel(config)


def detector():
    transformers = pytest.importorskip("transformers")
    config = transformers.DetrConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=5,
        backbone_config=transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"]),
        **(dict.fromkeys(("use_timm_backbone", "use_pretrained_backbone", "backbone")) if BEFORE_5 else {}),
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config)


def open_clip():
    library = pytest.importorskip("open_clip")
    vision = {"layers": 2, "width": 32, "head_width": 8, "image_size": 24, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 4, "layers": 3}
    return library.CLIP(16, vision, text)


@pytest.mark.parametrize(
    ("build", "captured", "not_captured"),
    [
        (clip, {"vision_model": 2}, {"text_model": 3}),
        (lambda: clip("Siglip"), {"vision_model": 3}, {"text_model": 3}),
        (llava, {"model.vision_tower": 2}, {"model.language_model": 3}),
        (qwen2_vl, {"model.visual": 2}, {"model.language_model": 3}),
        (mixture_of_experts, {"model.visual": 2}, {"model.language_model": 3}),  # routers do not count
        (captioner, {"encoder": 2}, {"decoder": 4}),
        (detector, {"": 6}, {}),
        (open_clip, {"visual": 2}, {"transformer": 3}),
        (VIT.build, {"": 2}, {}),
    ],
    ids=["clip", "siglip", "llava", "qwen2_vl", "moe", "captioner", "detector", "open_clip", "timm"],
)
def test_parts_without_capture_are_named_and_counted(build, captured, not_captured):
    said = describe(build())
    assert parts(said.captured) == captured
    assert parts(said.not_captured) == not_captured
    assert sum(captured.values()) == len(said.blocks)


def test_the_line_about_what_is_captured():
    lines = str(describe(clip())).splitlines()
    assert lines[1] == (
        "captured vision_model (2 blocks); not captured: text_model (3 attention modules); name modules with blocks= to capture them"
    )
    assert str(describe(VIT.build())).splitlines()[1] == "captured 2 blocks"
    assert str(describe(VIT.build(), images(1))).splitlines()[1] == "captured 2 blocks"


class Gate(nn.Module):
    def forward(self, tokens):
        return tokens.softmax(-1)


class WordAttention(nn.Module):
    def forward(self, tokens):
        return (tokens @ tokens.mT).softmax(-1) @ tokens


class SeesAndReads(nn.Module):
    """A known model beside modules of no known library."""

    def __init__(self):
        super().__init__()
        self.eyes = VIT.build()
        self.words = nn.ModuleList([nn.ModuleList([WordAttention(), Gate()]) for _ in range(3)])
        self.mixer = nn.TransformerDecoderLayer(32, 4, 48)


class Interleaved(nn.Module):
    """Blocks with attention of two kinds, one of which is not recognised without a layout."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"image": nn.MultiheadAttention(8, 2), "words": WordAttention()}) for _ in range(3)
        )


def test_parts_of_home_made_models():
    said = describe(SeesAndReads())
    assert parts(said.captured) == {"eyes": 2}
    assert parts(said.not_captured) == {"words": 3, "mixer": 2}
    said = describe(Interleaved())
    assert parts(said.captured) == {"blocks.*.image": 3}
    assert parts(said.not_captured) == {"blocks.*.words": 3}


@pytest.mark.parametrize("family", ["Dinov2", "Dinov2WithRegisters"])
def test_a_head_that_reads_the_class_token_and_the_mean(family):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(**VISION)
    said = describe(getattr(transformers, f"{family}ForImageClassification")(config))
    assert said.readout == "cls"
    assert "readout  cls (its head reads the class token and the mean of the patches; rows='mean' gives" in str(said)
    assert describe(getattr(transformers, f"{family}Model")(config)).readout_reason == "the class token"


def test_notebooks_show_the_same_table() -> None:
    said = describe(timm.create_model("test_vit", pretrained=False))
    page = said._repr_html_()
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page)]
    assert [cells[start].split()[-1] for start in range(0, len(cells), 4)] == [block.name for block in said.blocks]
    for words in (said.type_name, said.tokens, said.readout_reason):
        assert html.escape(words) in page
    assert html_table([["<b>"], ["&"]]) == (
        "<table><thead><tr><th>&lt;b&gt;</th></tr></thead><tbody><tr><td>&amp;</td></tr></tbody></table>"
    )


@pytest.mark.parametrize("run", [describe, verify])
@pytest.mark.parametrize("make", [lambda: {"pixel_values": images()}, lambda: Image.new("RGB", IMAGE)])
def test_what_is_no_pixels_is_refused(run, make):
    with pytest.raises(TypeError, match=r"expected a tensor .*, got (dict|Image)\. Pass the preprocessed images alone"):
        run(VIT.build(), make())
