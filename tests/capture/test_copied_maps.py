"""Copies of maps: equal to the original and usable, however and wherever they are made; none of what was overwritten."""

import copy
import io
import pickle
import subprocess
import sys
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from attnhook import AttentionCapture, AttentionMaps, rollout
from attnhook.capture.operands import Operands
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import GradientsNotKeptError, RowsNotKeptError
from tests.capture.test_calls import LAYOUT, explicit, tokens, tower
from tests.models import TIMM, TRANSFORMERS, images

CASES = {case.name: case for case in TIMM + TRANSFORMERS}
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "enable_grad": torch.enable_grad}


def swin(implementation: str) -> nn.Module:
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=32, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,), patch_size=4
    ).eval()
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = implementation == "sdpa"
    return model


@cache
def built(name: str, implementation: str) -> nn.Module:
    return swin(implementation) if name == "swin" else CASES[name].build(implementation)


def through_pickle(maps):
    return pickle.loads(pickle.dumps(maps))  # noqa: S301 (our own)


def through_torch_save(maps):
    file = io.BytesIO()
    torch.save(maps, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "copies of the blocks": lambda maps: maps.with_blocks([copy.copy(block) for block in maps]),
    "deepcopy": copy.deepcopy,
    "pickle": through_pickle,
    "torch.save": through_torch_save,
    "a copy of a copy": lambda maps: copy.deepcopy(through_pickle(copy.copy(maps))),
    "a pickle of a deepcopy": lambda maps: through_torch_save(copy.deepcopy(maps)),
}


def assert_equal(copied: AttentionMaps, maps: AttentionMaps) -> None:
    assert copied.block_names == maps.block_names
    assert (copied.readout, copied.input_size, copied.selected_rows) == (
        maps.readout,
        maps.input_size,
        maps.selected_rows,
    )
    for ours, theirs in zip(copied, maps, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert ours.rows.count_nonzero() > 0
        assert (ours.token_layout, ours.kernel, ours.queries) == (theirs.token_layout, theirs.kernel, theirs.queries)
        assert torch.equal(ours.matrix.entropy(), theirs.matrix.entropy())
        assert torch.equal(ours.matrix.image(0).head(1).dense(), theirs.matrix.image(0).head(1).dense())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["vit", "swin", "ViTModel"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_copy_equals_the_original(name: str, implementation: str, mode: str) -> None:
    model = built(name, implementation)
    capture = AttentionCapture(model, rows="all", values=True)
    with MODES[mode](), capture:
        model(images(1, size=(32, 32) if name == "swin" else (24, 40)))
    maps = capture.maps
    for made in COPIES.values():
        copied = made(maps)
        assert_equal(copied, maps)
        if implementation == "sdpa":
            assert all(torch.equal(ours.values, theirs.values) for ours, theirs in zip(copied, maps, strict=True))
        if name != "swin":
            assert torch.equal(rollout(copied).values, rollout(maps).values)
        with MODES[mode]():
            assert_equal(made(maps), maps)


@pytest.mark.parametrize("name", ["vit", "ViTModel"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_gradients_are_copied_once_they_have_arrived(name: str, implementation: str) -> None:
    model = built(name, implementation)
    with AttentionCapture(model, gradients=True) as capture:
        output = model(images(1))
    maps = capture.maps
    for kind, made in COPIES.items():
        if not kind.startswith("cop"):
            with pytest.raises(GradientsNotKeptError, match=r"copied or saved .* expected score\.backward\(\) first"):
                made(maps)
    early = copy.copy(maps)
    (output if isinstance(output, torch.Tensor) else output.last_hidden_state).square().sum().backward()
    for copied in (early, *(made(maps) for made in COPIES.values())):
        assert_equal(copied, maps)
        for ours, theirs in zip(copied, maps, strict=True):
            assert torch.equal(ours.gradient.dense(), theirs.gradient.dense())
            assert ours.gradient.dense().count_nonzero() > 0


@pytest.mark.parametrize("kind", ["query", "key", "mask", "dense"])
def test_what_was_overwritten_is_not_laundered_by_a_copy(kind: str) -> None:
    query, key, mask = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4), torch.randn(5, 5)
    source = torch.rand(1, 2, 5, 5) if kind == "dense" else Operands(query, key, None, mask)
    matrix = SoftmaxMatrix(source)
    wanted, shallow, deep = matrix.dense(), copy.copy(matrix), copy.deepcopy(matrix)
    (source if kind == "dense" else getattr(source, kind)).zero_()
    for lost in (matrix, shallow):
        with pytest.raises(RowsNotKeptError, match="overwritten"):
            lost.dense()
        for made in (copy.copy, copy.deepcopy, pickle.dumps, through_torch_save):
            with pytest.raises(RowsNotKeptError, match="overwritten"):
                made(lost)
    assert torch.equal(deep.dense(), wanted)
    assert torch.equal(copy.deepcopy(deep).dense(), wanted)


def overwriting(q, k, v, mask=None):
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for tensor in (q, k, v) if mask is None else (q, k, v, mask):
        tensor.fill_(-1.0)
    return output


def apart(q, k, v):  # each in memory of its own
    return overwriting(q.contiguous(), k.contiguous(), v.contiguous())


def padded(q, k, v):
    seen = torch.ones(q.shape[0], 1, 1, q.shape[2], dtype=torch.bool)
    return overwriting(q, k, v, seen)


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("kernel", [overwriting, apart, padded])
def test_what_a_model_overwrites_in_inference_mode_is_kept_as_it_was(kernel, values: bool) -> None:
    model, x = tower(kernel), tokens()
    q, k, v = model.blocks[0].heads(x)
    with torch.inference_mode(), AttentionCapture(model, rows="all", values=values, layout=LAYOUT) as capture:
        model(x)
    torch.testing.assert_close(capture.maps[0].weights(), explicit(q, k), atol=1e-6, rtol=0)
    if values:
        torch.testing.assert_close(capture.maps[0].values, v, atol=1e-6, rtol=0)


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad])
def test_values_that_a_model_overwrites_are_missed_also_in_a_copy(around) -> None:
    def of_values(q, k, v):
        v = v.contiguous()
        output = F.scaled_dot_product_attention(q, k, v)
        v.fill_(-1.0)
        return output

    model = tower(of_values).requires_grad_(False)
    with around(), AttentionCapture(model, rows="all", values=True, layout=LAYOUT) as capture:
        model(tokens())
    block = capture.maps[0]
    for read in (lambda: block.values, lambda: copy.deepcopy(block), lambda: pickle.dumps(block)):
        with pytest.raises(GradientsNotKeptError, match=r"values are lost.*overwritten"):
            read()


def test_maps_sent_to_another_process_stay_as_they_were() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.capture.sent_maps_run", "fork", "spawn"],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("unchanged") == 4  # both strategies of sharing memory
