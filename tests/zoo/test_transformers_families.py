"""Families of transformers with orders of their own, each against every softmax of the same forward in float64; what their tokens are, in words.

`tests/conformance/coverage_transformers.py` does the same for all families; here are those whose rules nothing else tries.
"""

import pytest
import transformers

from tests.conformance import coverage_transformers

pytestmark = pytest.mark.slow

EXACT = {
    "CvtModel": "",
    "DetrModel": "object queries",
    "Ernie4_5_VLMoeVisionTransformerPretrainedModel": "",
    "Glm4vVisionModel": "",
    "GroupViTVisionModel": "segments and group tokens",
    "Idefics2VisionTransformer": "readout mean",
    "Kimi_K25VisionModel": "",
    "LevitModel": "",
    "Llama4VisionModel": "readout cls",
    "MiniCPMV4_6VisionModel": "",
    "MobileViTModel": "",
    "Phi4MultimodalVisionModel": "readout pool",
    "PixtralVisionModel": "",
    "PvtModel": "",
    "PvtV2Model": "",
    "Qwen2_5_VisionTransformerPretrainedModel": "",
    "RTDetrModel": "object queries",
    "Siglip2VisionModel": "readout pool",
    "TimesformerModel": "attention over time",
    "VideoMAEModel": "readout mean",
    "VideoPrismVisionModel": "attention over time",
    "XCLIPVisionModel": "messages between the frames of a clip",
    "YolosModel": "readout cls",
}
REFUSED = {
    "FocalNetModel": "focal modulation",
    "MobileNetV2Model": "convolutions",
    "MobileViTV2Model": "separable linear attention",
}


@pytest.fixture(scope="module")
def script():
    return coverage_transformers


def outcome_of(script, name: str) -> tuple[str, str]:
    if not hasattr(transformers, name):
        found = [
            kind
            for kinds in script.transformers_families.families().values()
            for kind in kinds
            if kind.__name__ == name
        ]
        if not found:
            pytest.skip(f"this transformers has no {name}")
        return script.one(found[0])
    return script.one(getattr(transformers, name))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXACT)
def test_rows_are_exact_and_tokens_are_told(script, name: str) -> None:
    outcome, words = outcome_of(script, name)
    assert outcome == "exact", words
    assert EXACT[name] in words


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_attention_between_tokens_is_refused(script, name: str) -> None:
    outcome, words = outcome_of(script, name)
    assert outcome == "refused", words
    assert REFUSED[name] in words
