"""Detectors with object queries: each query's row is a map of the photo, the one that eager attention returns."""

import pytest
import torch
import transformers
from PIL import Image

from attnhook import AttentionCapture, ImageGeometry, describe, raw_attention
from attnhook.errors import NoReadoutError

SIZE = (200, 266)  # 7 x 9 positions of 32 pixels, which reach beyond the image
BACKBONE = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
)
SMALL = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": BACKBONE, "num_queries": 5,
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
FAMILIES = ["Detr", "ConditionalDetr", "DabDetr", "TableTransformer"]


def detector(family: str, implementation: str | None = None) -> torch.nn.Module:
    """None: fused attention where the model has it."""
    torch.manual_seed(0)
    settings = SMALL | ({"hidden_size": 32} if family == "DabDetr" else {})
    settings |= {} if implementation is None else {"attn_implementation": implementation}
    config = getattr(transformers, f"{family}Config")(**settings)
    return getattr(transformers, f"{family}ForObjectDetection")(config).eval()


def photos() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("implementation", [None, "eager"], ids=["as loaded", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_query_s_row_is_that_of_eager_attention(family: str, implementation: str | None) -> None:
    eager, model = detector(family, "eager"), detector(family, implementation)
    model.load_state_dict(eager.state_dict())
    with torch.no_grad():
        expected = eager(photos(), output_attentions=True).cross_attentions
        with AttentionCapture(model, rows="all") as capture:
            model(photos())
    crossing = [block for block in capture.maps if block.shape[2:] == (5, 63)]
    assert len(crossing) == len(expected) == 2
    for block, matrix in zip(crossing, expected, strict=True):
        for query in range(5):
            found = raw_attention(capture.maps, block=block.name, heads=None, row=query)
            torch.testing.assert_close(found.values, matrix[:, :, query].unflatten(-1, (7, 9)), rtol=1e-4, atol=1e-6)
            assert f"query {query} to patches" in found.caption
            torch.testing.assert_close(found.outside, torch.zeros(2, 4), rtol=0, atol=1e-5)


def test_the_map_lies_where_the_feature_map_lies() -> None:
    model = detector("Detr")
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(photos())
    one = raw_attention(capture.maps, row=0)[0]
    assert (one.input_size, one.area, one.grid) == (SIZE, (224, 288), (7, 9))
    where = ImageGeometry.identity((400, 532)).resize(SIZE)
    rows, columns = one.edges(where)
    assert rows.tolist() == [64.0 * number for number in range(8)]  # strides of 32 input pixels, two photo pixels each
    assert columns.tolist() == [64.0 * number for number in range(10)]
    photo = Image.new("RGB", (532, 400), "grey")
    assert one.overlay(photo, where).size == photo.size
    one.figure(photo, where, mark=(100, 50, 300, 200))


def test_a_detector_s_readout_says_what_its_head_reads() -> None:
    model = detector("Detr")
    with pytest.raises(NoReadoutError, match="its head reads one box per object query"):
        AttentionCapture(model)
    said = str(describe(model, photos()))
    assert "none (its head reads one box per object query)" in said
    assert "7 x 9 patches of a 200 x 266 px input" in said
    assert "2, 4, 5, 63" in said
