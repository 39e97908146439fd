"""Further families: rows against eager attention, and a bright square through their processors; models that are refused."""

from typing import Any

import pytest
import torch
import transformers

from attnhook import AnswerCapture
from attnhook.errors import UnsupportedModelError
from tests.answers import more_families
from tests.answers.families import prompts
from tests.answers.more_families import MORE, aya_row, cohere_row
from tests.answers.test_answer_places import PHOTOS, check_square, counted, square
from tests.answers.test_answer_rows import check


@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
@pytest.mark.parametrize("family", MORE)
def test_rows_of_further_families_equal_eager_attention(family: str, cache: str) -> None:
    check(*MORE[family](), **({"use_cache": False} if cache == "none" else {"cache_implementation": cache}))


def packed(name: str) -> Any:
    sizes = {"size": {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}, "patch_size": 8, "merge_size": 2}
    kind = getattr(transformers, name)
    return kind(**sizes, temporal_patch_size=1 if "Paddle" in name else 2)


POINTS = [[64, 128], [128, 64], [128, 128], [64, 192], [192, 64]]
PROCESSORS: dict[str, Any] = {
    "glm4v": lambda: packed("Glm4vImageProcessor"),
    "glm4v_moe": lambda: packed("Glm4vImageProcessor"),
    "glm46v": lambda: packed("Glm46VImageProcessor"),
    "glm_ocr": lambda: packed("Glm46VImageProcessor"),
    "qwen3_vl_moe": lambda: packed("Qwen2VLImageProcessor"),
    "qwen3_5": lambda: packed("Qwen2VLImageProcessor"),
    "qwen3_5_moe": lambda: packed("Qwen2VLImageProcessor"),
    "paddleocr_vl": lambda: packed("PaddleOCRVLImageProcessor"),
    "gemma4": lambda: transformers.Gemma4ImageProcessor(max_soft_tokens=70, patch_size=8, pooling_kernel_size=2),
    "janus": lambda: transformers.JanusImageProcessor(**square(64), min_size=14),
    "deepseek_vl": lambda: transformers.DeepseekVLImageProcessor(**square(64), min_size=14),
    "lighton_ocr": lambda: transformers.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=16),
    "llava_next_video": lambda: transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_grid_pinpoints=POINTS
    ),
    "cohere2_vision": lambda: transformers.Cohere2VisionImageProcessor(
        **square(64), crop_to_patches=True, max_patches=4
    ),
    "aya_vision": lambda: transformers.GotOcr2ImageProcessor(**square(64), crop_to_patches=True, max_patches=4),
}
LARGER = {"janus", "deepseek_vl", "cohere2_vision", "aya_vision"}
ROWS = {"cohere2_vision": cohere_row, "aya_vision": aya_row}


def made(family: str) -> tuple[Any, Any]:
    make: Any = getattr(more_families, family, MORE[family])
    if family == "llava_next_video":
        return make(64, POINTS)[0], PROCESSORS[family]()
    return make(*([64] if family in LARGER else []))[0], PROCESSORS[family]()


def prompt_of(family: str) -> Any:
    """A prompt as the processor writes it; a tile has 16 tokens."""
    if family not in ROWS:
        return counted
    return lambda model, out: prompts([1, *ROWS[family](len(out["pixel_values"]), 16), 5])["input_ids"]


@pytest.mark.parametrize("shape", PHOTOS)
@pytest.mark.parametrize("family", MORE)
def test_a_bright_square_in_further_families(family: str, shape: str) -> None:
    check_square(lambda: made(family), prompt_of(family), {}, shape)


REFUSED = (
    "AriaForConditionalGeneration Blip2ForConditionalGeneration BlipForQuestionAnswering BlipModel Florence2Model FuyuForCausalLM "
    "GitForCausalLM GotOcr2ForConditionalGeneration Idefics2ForConditionalGeneration IdeficsForVisionText2Text LlavaModel "
    "InstructBlipForConditionalGeneration Kosmos2ForConditionalGeneration Kosmos2_5ForConditionalGeneration Llama4ForCausalLM "
    "Lfm2VlForConditionalGeneration Ovis2ForConditionalGeneration VideoLlama3ForConditionalGeneration VideoLlavaForConditionalGeneration"
)


@pytest.mark.parametrize("name", REFUSED.split())
def test_other_models_are_refused_by_name(name: str) -> None:
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(kind.config_class())
    with pytest.raises(UnsupportedModelError, match=f"answers of {name} .*{model.config.model_type}.*qwen2_vl"):
        AnswerCapture(model)


def test_layers_that_skip_the_prompt_are_refused() -> None:
    model, _ = more_families.gemma4(num_kv_shared_layers=2)
    with pytest.raises(UnsupportedModelError, match="num_kv_shared_layers=2"):
        AnswerCapture(model)
