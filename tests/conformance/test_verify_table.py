"""The table of kernels and versions: what is measured, and what is written of it."""

from functools import partial

import pytest
import torch

from attnhook.capture.softmax_matrix import SoftmaxMatrix
from tests.conformance import verify_table
from tests.conformance.coverage_table import placed
from tests.documents import DOCS

CASES = {case[:3]: case[3] for case in verify_table.cases()}
VERSIONS = {
    "torch": "2.6.0+cu124",
    "torchvision": "0.21.0",
    "timm": "1.0.22",
    "transformers": "4.57.6",
    "open_clip": "3.3.0",
}


@pytest.mark.parametrize("kernel", ["sdpa, flash", "sdpa, math", "eager"])
def test_a_kernel_is_compared_with_eager_attention(kernel: str) -> None:
    torch.manual_seed(3)  # what is measured does not depend on it
    found = verify_table.one(kernel, CASES["transformers", "ViTModel", kernel])
    assert found["blocks"] == 4
    assert "failed" not in found
    assert (0 if kernel == "eager" else 1e-9) <= found["from_eager"] < 1e-4
    assert found["kernels"] == ["softmax" if kernel == "eager" else "scaled_dot_product_attention"]


def test_wrong_rows_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SoftmaxMatrix.dense
    monkeypatch.setattr(SoftmaxMatrix, "dense", lambda matrix: right(matrix).flip(-1))
    found = verify_table.one("sdpa, math", CASES["transformers", "ViTModel", "sdpa, math"])
    assert found["failed"] == "verify did not pass"


def test_what_a_library_does_not_have_is_absent() -> None:
    build = partial(verify_table._of_timm, "mvitv2_tiny", "sdpa, math")
    assert verify_table.one("sdpa, math", build) == {"absent": "mvitv2_tiny has no fused kernel"}


def environment(python: str, **results: dict) -> dict:
    return {
        "python": python,
        "date": "2026-11-30",
        **VERSIONS,
        "results": {f"timm/{n}/eager": r for n, r in results.items()},
    }


def test_the_table_has_a_column_for_each_environment() -> None:
    one = environment("3.11.7", vit={"from_eager": 0.0}, swin={"absent": "no"}, beit={"failed": "wrong: 0.3"})
    other = environment("3.13.0", vit={"from_eager": 1.26e-05}, swin={"absent": "no"})
    lines = verify_table.table([one, other]).splitlines()
    assert lines[0] == (
        "- 1: 2026-11-30, Python 3.11.7, torch 2.6.0, torchvision 0.21.0, timm 1.0.22, transformers 4.57.6, open_clip 3.3.0"
    )
    assert "| library | model | kernel | 1 | 2 |" in lines
    assert lines[-2:] == ["| timm | vit | eager | 0 | 1e-05 |", "| timm | beit | eager | **wrong: 0.3** | - |"]


def test_the_page_has_the_place() -> None:
    page = (DOCS / "coverage.md").read_text(encoding="utf-8")
    assert "a new line" in placed(page, "verify", "a new line")
    table = page.partition("<!-- verify -->")[2].partition("<!-- end -->")[0]
    assert "**" not in table  # a failure
    assert "| torchvision | VisionTransformer | nn.MultiheadAttention |" in table
