"""`verify`: passes where the capture is right, fails where it is not."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import transforms

from attnhook import TokenLayout, VisionModel, verify
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.cli import main
from tests.answers.families import BEFORE_5
from tests.models import GRID, TIMM, TRANSFORMERS, images, sharpen

CASES = {case.name: case for case in TIMM + TRANSFORMERS}


@pytest.mark.parametrize("name", ["vit", "vit_map_registers", "eva_rope", "BeitModel", "DINOv3ViT", "Data2VecVision"])
def test_a_right_capture_passes_on_both_checks(name: str) -> None:
    model = CASES[name].build()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    report = verify(model, images())
    assert report.passed, str(report)
    assert report._repr_html_().count("<td>ok</td>") == len(report.blocks)
    assert "rows x values (limit 2e-05)  sum of rows (limit 1e-05)  explicit softmax (limit 1e-03)" in str(report)
    assert "errors the largest of each block" in str(report)
    assert torch.equal(state, torch.get_rng_state())
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    if name == "BeitModel" and BEFORE_5:  # its kernel is chosen when it is built
        assert all(block.output_error is not None for block in report.blocks)
    elif name != "Data2VecVision":  # explicit softmax only
        assert all(block.output_error is not None and block.explicit_error is not None for block in report.blocks)


def test_windows_and_multihead_attention() -> None:
    from torchvision.models import VisionTransformer

    swin = timm.models.swin_transformer.SwinTransformer(
        img_size=64, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2), patch_size=4
    ).eval()
    for layer in swin.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = True
    report = verify(swin, torch.randn(1, 3, 64, 64))
    assert report.passed, str(report)
    assert all(block.output_error is not None for block in report.blocks)
    vit = VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=3).eval()
    assert verify(vit, torch.randn(1, 3, 32, 32)).passed


class HomeMade(nn.Module):
    """Of nobody's library: what its tokens are is all that is known."""

    def __init__(self):
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 16, 8, 8), nn.Sequential(Fused(), SpelledOut())

    def forward(self, pixels):
        return self.blocks(self.patches(pixels).flatten(2).mT).mean(1)


class Fused(nn.Module):
    def forward(self, x):
        q = x.unflatten(-1, (2, 8)).transpose(1, 2)
        return x + F.scaled_dot_product_attention(q, q.flip(-1), q).transpose(1, 2).flatten(2)


class SpelledOut(nn.Module):
    def forward(self, x):
        q = x.unflatten(-1, (2, 8)).transpose(1, 2)
        return x + ((q @ q.mT).softmax(-1) @ q).transpose(1, 2).flatten(2)


def test_a_home_made_model_is_verified_by_its_layout_alone() -> None:
    report = verify(sharpen(HomeMade()), images(), layout=TokenLayout(GRID, cls=None))
    assert report.passed, str(report)
    fused, spelled_out = report.blocks
    assert fused.output_error is not None
    assert spelled_out.output_error is None


class Padded(nn.Module):
    """Its last token is padding, which a boolean mask hides from the others."""

    def forward(self, x):
        q = x.unflatten(-1, (2, 8)).transpose(1, 2)
        seen = (torch.arange(x.shape[1]) < x.shape[1] - 1)[None]
        values = q.nan_to_num(0.0)
        return x + F.scaled_dot_product_attention(q, q.flip(-1), values, attn_mask=seen).transpose(1, 2).flatten(2)


def test_rows_that_are_nan_where_the_kernels_output_is_agree_and_are_reported(monkeypatch) -> None:
    model = sharpen(HomeMade())
    model.blocks = nn.Sequential(Padded(), Fused())
    pixels = images()
    pixels[0, :, -1, -1] = torch.nan  # in the last patch of the first image
    report = verify(model, pixels, layout=TokenLayout(GRID, cls=None))
    assert report.passed, str(report)
    assert [block.nan_rows for block in report.blocks] == [2 * 15, 2 * 15]
    assert "ok, 30 rows are NaN, in the kernel's output too" in str(report)
    clean = verify(model, images(), layout=TokenLayout(GRID, cls=None))
    assert clean.passed
    assert "NaN" not in str(clean)
    rows = SoftmaxMatrix.rows
    monkeypatch.setattr(SoftmaxMatrix, "rows", lambda self, index: rows(self, index).nan_to_num(0.0))
    assert not verify(model, pixels, layout=TokenLayout(GRID, cls=None)).passed
    monkeypatch.setattr(SoftmaxMatrix, "rows", lambda self, index: rows(self, index) * torch.nan)
    wrong = verify(model, images(), layout=TokenLayout(GRID, cls=None))
    assert not wrong.passed
    assert "nan" in str(wrong)


def test_a_wrong_row_fails_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SoftmaxMatrix.rows

    def wrong(self, index):
        right = rows(self, index)
        return right.flip(-1)

    monkeypatch.setattr(SoftmaxMatrix, "rows", wrong)
    report = verify(CASES["vit"].build(), images())
    assert not report.passed
    assert "OVER TOLERANCE" in str(report)
    assert "FAILED" in str(report)


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from attnhook.zoo import loading

    model = CASES["vit"].build()
    loaded = VisionModel(model, transforms.Compose([transforms.Resize((24, 40)), transforms.ToTensor()]), name="tiny")
    monkeypatch.setattr(loading, "load", lambda spec, **_: loaded)
    assert main(["verify", "--model", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "passed" in printed
    assert "blocks.1.attn" in printed
