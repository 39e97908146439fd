"""Every error of a capture says what failed, with the numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnhook import AttentionCapture, AttentionSite, ModelAnatomy, raw_attention, register_adapter
from attnhook.errors import (
    AttnhookError,
    BlockNotCapturedError,
    NoClassTokenError,
    NoReadoutError,
    NothingCapturedError,
    RowsNotKeptError,
    TokenLayoutError,
    UnknownBlockError,
    UnsupportedModelError,
)
from tests.models import IMAGE, TIMM, images

CASES = {case.name: case for case in TIMM}


def vit() -> nn.Module:
    return CASES["vit"].build()


def test_nothing_captured() -> None:
    with AttentionCapture(vit()) as capture:
        pass
    with pytest.raises(NothingCapturedError, match=r"expected a forward of VisionTransformer .* got none"):
        _ = capture.maps
    model = vit()
    with AttentionCapture(model) as capture:
        model.patch_embed(images())
    with pytest.raises(NothingCapturedError, match="got one in which no attention module ran"):
        _ = capture.maps


def test_a_block_that_never_ran() -> None:
    model = vit()
    with torch.no_grad(), AttentionCapture(model) as capture:
        model.blocks[0](model._pos_embed(model.patch_embed(images())))
    with pytest.raises(BlockNotCapturedError, match=r"'blocks.1.attn' \(Attention\) did not run .* 1 of 2"):
        _ = capture.maps


class Blind(nn.Module):
    def forward(self, x):
        return x


class FiveDimensions(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x[None], x[None], x[None])[0]


def test_a_kernel_that_is_not_seen() -> None:
    model = nn.Sequential(Blind())
    with AttentionCapture(model, blocks="0", rows="all") as capture:
        model(torch.ones(1, 2, 3, 4))
    with pytest.raises(BlockNotCapturedError, match=r"'0' \(Blind\) ran, but no attention call was seen"):
        _ = capture.maps


def test_a_call_that_cannot_be_recorded_does_not_stop_the_model() -> None:
    model = nn.Sequential(FiveDimensions())
    with AttentionCapture(model, blocks="0", rows="all") as capture:
        model(torch.ones(1, 2, 3, 4))
    with pytest.raises(UnsupportedModelError, match=r"an attention call .*cannot be recorded"):
        _ = capture.maps


def test_rows_that_the_model_does_not_have() -> None:
    with pytest.raises(NoClassTokenError, match=r"has no class token: .*Use rows='readout' or 'mean' or 'all'"):
        AttentionCapture(CASES["vit_reg_gap"].build(), rows="cls")
    with pytest.raises(NoReadoutError, match="has no attention pooling"):
        AttentionCapture(vit(), rows="pool")
    with pytest.raises(NoReadoutError, match="rows='readout' has no meaning"):
        AttentionCapture(nn.Sequential(nn.MultiheadAttention(8, 2)))
    with pytest.raises(ValueError, match="unknown rows: expected one of"):
        AttentionCapture(vit(), rows="clas")
    with pytest.raises(ValueError, match="is empty"):
        AttentionCapture(vit(), rows=[])
    for bad in ((1, 2, 3), True, 1.5, "12", (0, "1"), torch.tensor(1.5)):
        with pytest.raises(ValueError, match="bad row "):
            AttentionCapture(vit(), rows=[bad])
    for bad in (5, None):
        with pytest.raises(ValueError, match=f"bad rows={bad}: expected one of .* or a sequence"):
            AttentionCapture(vit(), rows=bad)


def test_rows_of_a_model_with_windows_are_advised_once() -> None:
    import timm

    model = timm.models.swin_transformer.SwinTransformer(
        img_size=32, embed_dim=8, depths=(1,), num_heads=(1,), window_size=4
    )
    for rows in ("cls", "readout"):
        with pytest.raises(NoReadoutError) as raised:
            AttentionCapture(model, rows=rows)
        assert str(raised.value).endswith("Use received_attention(maps, block) with rows='all'.")


def test_rows_may_be_integers_of_any_library() -> None:
    for rows in (np.array([1, 2]), [np.int64(1), 2], torch.tensor([1, 2]), range(1, 3)):
        plan = AttentionCapture(vit(), rows=rows).plan
        assert plan.rows == (1, 2)
        assert all(type(row) is int for row in plan.rows)
    assert AttentionCapture(vit(), rows=[(np.int64(1), 2)]).plan.rows == ((1, 2),)


@pytest.mark.parametrize("blocks", [None, 1])
@pytest.mark.parametrize("rows", ["mean", [0]])
def test_rows_that_no_attention_of_the_model_has(rows, blocks) -> None:
    import timm

    model = timm.create_model("resnet50_clip", img_size=64)
    words = r"expects patches or tokens as queries, got pool\. Use rows='readout' or 'all'\."
    with pytest.raises(NoReadoutError, match=words):
        AttentionCapture(model, rows=rows, blocks=blocks)


def test_dropped_patches_leave_rows_and_no_grid() -> None:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(IMAGE, 8, embed_dim=32, depth=2, num_heads=4, patch_drop_rate=0.5).train()
    numbers = r"expected 16 = 1 class \+ 3x5 patch tokens, got 8"
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(images())
    assert capture.maps[0].rows.shape == (2, 4, 1, 8)
    with pytest.raises(TokenLayoutError, match=numbers):
        _ = capture.maps.layout
    with pytest.raises(TokenLayoutError, match=numbers):
        raw_attention(capture.maps)
    with torch.no_grad(), AttentionCapture(model, rows=[0, -1]) as capture:
        model(images())
    assert capture.maps[0].rows.shape == (2, 4, 2, 8)
    for rows in ("mean", [(0, 0)]):
        with torch.no_grad(), AttentionCapture(model, rows=rows) as capture:
            model(images())
        with pytest.raises(TokenLayoutError, match=numbers):
            _ = capture.maps


def test_rows_that_do_not_exist() -> None:
    model = vit()
    for rows, words in (([16], "token"), ([(3, 0)], r"patch \(3, 0\) lies outside")):
        with torch.no_grad(), AttentionCapture(model, rows=rows) as capture:
            model(images())
        with pytest.raises(TokenLayoutError, match=words):
            _ = capture.maps
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(images())
    with pytest.raises(RowsNotKeptError, match="has 1 of the matrix's rows"):
        capture.maps[0].weights()


@pytest.mark.parametrize(
    "blocks, words",
    [
        ("blocks.7.attn", "unknown block 'blocks.7.attn': expected one of 'blocks.0.attn'"),
        ([2], "expected an index from -2 to 1"),
        ([-3], "expected an index from -2 to 1"),
        (3, r"blocks=3 means the last 3: expected 1 to 2\. For one block, pass a list, such as blocks=\[-1\]\."),
        (np.int64(3), "blocks=3 means the last 3: expected 1 to 2"),
        (0, r"expected 1 to 2\. For one block, pass a list, such as blocks=\[0\]\."),
        (True, "expected an index or a name"),
        ([], "selects no block"),
        (lambda name: False, "the predicate blocks=<lambda> selects no block"),
    ],
)
def test_unknown_blocks(blocks, words: str) -> None:
    with pytest.raises(UnknownBlockError, match=words) as caught:
        AttentionCapture(vit(), blocks=blocks)
    assert isinstance(caught.value, (AttnhookError, LookupError))


@pytest.mark.parametrize(
    "blocks, words",
    [
        (["7"], "unknown block '7': expected one of '', '0', '0.out_proj'"),
        ([3], "expected an index from -3 to 2, or one of '0', '1', '2'"),
        ([], r"blocks=\[\] selects no block"),
        (4, "expected 1 to 3"),
        (lambda name: False, "the predicate blocks=<lambda> selects no block"),
    ],
)
def test_unknown_blocks_of_an_unknown_model(blocks, words: str) -> None:
    with pytest.raises(UnknownBlockError, match=words):
        AttentionCapture(nn.Sequential(*[nn.MultiheadAttention(8, 2) for _ in range(3)]), blocks=blocks, rows="all")


@pytest.mark.parametrize(
    "blocks, names",
    [
        ([-1], ("2",)),
        ([0, 2], ("0", "2")),
        (["2", "0", "2"], ("0", "2")),
        ([0, "1"], ("0", "1")),
        (2, ("1", "2")),
        (lambda name: name > "0", ("1", "2")),
        (None, ("0", "1", "2")),
    ],
)
def test_blocks_of_an_unknown_model_are_chosen_as_those_of_a_known_one(blocks, names: tuple[str, ...]) -> None:
    model = nn.Sequential(*[nn.MultiheadAttention(8, 2) for _ in range(3)])
    assert AttentionCapture(model, blocks=blocks, rows="all").block_names == names


def test_a_predicate_chooses_among_modules_whose_code_attends() -> None:
    model = nn.Sequential(FiveDimensions(), Blind(), FiveDimensions())
    assert AttentionCapture(model, blocks=lambda name: name > "0", rows="all").block_names == ("2",)
    hidden = nn.Sequential(Blind(), Blind())  # no module's code shows it: among all of them
    assert AttentionCapture(hidden, blocks=lambda name: name == "1", rows="all").block_names == ("1",)


class Plain(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


def test_an_adapter_that_fails_does_not_end_the_forward() -> None:
    def fails(*call):
        raise KeyError("order")

    def anatomy(model):
        return ModelAnatomy(sites=(AttentionSite("", model),), token_module=model, tokens_of=fails)

    register_adapter(Plain, anatomy)
    model, x = Plain(), torch.randn(2, 3, 5, 8)
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(x)
    assert capture.maps[0].rows.shape == (2, 3, 5, 5)
    with pytest.raises(TokenLayoutError, match=r"adapter.s tokens_of failed: KeyError: 'order'"):
        _ = capture.maps.layout


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda sites: None, "describes no model: expected a ModelAnatomy, got None. Return one"),
        (lambda sites: ModelAnatomy(sites, readout="cls"), "gives no readout: .*got readout='cls'. Pass Readout"),
        (lambda sites: ModelAnatomy(()), r"names no attention modules: .*got sites=\(\)\. Give"),
        (lambda sites: ModelAnatomy(sites[0]), "names no attention modules: .*got sites=AttentionSite"),
        (lambda sites: ModelAnatomy((sites[0].module,)), r"names no attention modules: .*got sites=\(Plain\)"),
    ],
)
def test_what_is_wrong_with_an_adapters_answer_is_said(answer, words: str) -> None:
    register_adapter(Plain, lambda model: answer((AttentionSite("", model),)))
    with pytest.raises(UnsupportedModelError, match=f"the adapter of Plain {words}"):
        AttentionCapture(nn.Sequential(Plain()), rows="all")


def test_gradients_refuse_rows_of_any_type() -> None:
    for rows in ([0], np.arange(2), torch.arange(2), "cls"):
        with pytest.raises(RowsNotKeptError, match="expected rows='all'"):
            AttentionCapture(vit(), rows=rows, gradients=True)


def test_a_model_may_be_its_own_block() -> None:
    assert AttentionCapture(Blind(), blocks="", rows="all").block_names == ("",)


def test_unsupported_models() -> None:
    from torchvision.models import resnet18

    with pytest.raises(UnsupportedModelError, match=r"ResNet has no softmax attention between tokens.*convolutions"):
        AttentionCapture(resnet18())
    several = nn.ModuleDict({"student": vit(), "teacher": vit()})
    with pytest.raises(UnsupportedModelError, match="expected one, got 'student', 'teacher'"):
        AttentionCapture(several)
    model = nn.Sequential(nn.MultiheadAttention(8, 2, add_zero_attn=True))
    with AttentionCapture(model, rows="all") as capture:
        model[0](*[torch.ones(3, 1, 8)] * 3)
    with pytest.raises(UnsupportedModelError, match="attends to keys that are not tokens"):
        _ = capture.maps
