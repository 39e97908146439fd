"""A few rows of plain float32 calls: right however the operands lie, whatever ran before, and each forward's own."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

from attnhook import AttentionCapture
from tests.capture.test_calls import LAYOUT, call, explicit, tokens, tower
from tests.models import TIMM, images

CASES = {case.name: case for case in TIMM}


def contiguous(q, k, v):
    return call(q.contiguous(), k.contiguous(), v)


def beside_others(q, k, v):
    wide = torch.nn.functional.pad(torch.stack((q, k)), (3, 5, 2, 0))[..., 2:, 3:-5]
    return call(*wide, v)


def head_last(q, k, v):
    return call(q.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), k, v)


def one_for_all_heads(q, k, v):
    return call(q, k[:, :1].expand_as(k), v)


def twice_the_scale(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=2 * 8**-0.5)


@pytest.mark.parametrize("batch", [1, 3])
def test_operands_may_lie_otherwise_in_memory_at_every_call(batch: int) -> None:
    kernels = call, contiguous, beside_others, head_last, one_for_all_heads, call, twice_the_scale, contiguous
    model, x = tower(*kernels), tokens(batch)
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(x)
        with capture.paused():
            for block, kernel in zip(capture.maps, kernels, strict=True):
                module = capture.plan.site_of[block.name].module
                q, k, _ = module.heads(x)
                k = k[:, :1].expand_as(k) if kernel is one_for_all_heads else k
                q = 2 * q if kernel is twice_the_scale else q
                torch.testing.assert_close(block.rows, explicit(q, k)[:, :, :1], atol=1e-6, rtol=0)
                x = x + module(x)


def rows_of(model, pixels):
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(pixels)
    return [block.rows for block in capture.maps]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_forward_has_its_own_rows_whenever_they_are_read(mode) -> None:
    model = CASES["vit"].build()
    photos = images(3).split(1)
    expected = [rows_of(model, photo) for photo in photos]
    seen = []
    capture = AttentionCapture(model)
    for photo in photos:  # read outside
        with mode(), capture:
            model(photo)
        seen.append([block.rows for block in capture.maps])
    with mode(), capture:  # read inside
        for photo in photos:
            model(photo)
            seen.append([block.rows for block in capture.maps])
    for rows, truth in zip(seen, expected * 2, strict=True):
        assert all(map(torch.equal, rows, truth))
        assert not any(one.requires_grad or one.is_inference() for one in rows)


def test_forwards_that_are_read_later_are_what_they_were() -> None:
    model = CASES["vit"].build()
    photos = images(4).split(1)
    expected = [rows_of(model, photo) for photo in photos]
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(photos[0])
        assert capture.maps.block_names == capture.block_names
        for photo in photos[1:]:
            model(photo)
        for maps, truth in zip(capture.forwards, expected, strict=True):
            assert all(map(torch.equal, [block.rows for block in maps], truth))


def test_a_forward_after_one_that_was_left_half_way_is_whole() -> None:
    model = CASES["vit"].build()
    photos = images(2).split(1)
    truth = rows_of(model, photos[1])
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(photos[0])
        assert capture.maps.block_names == capture.block_names
        hook = model.blocks[0].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(photos[0])
        hook.remove()
        model(photos[1])
        assert all(map(torch.equal, [block.rows for block in capture.maps], truth))


def test_maps_of_another_size_or_mode_are_right() -> None:
    model = CASES["vit"].build()
    capture = AttentionCapture(model)
    for batch, mode in ((1, torch.no_grad), (2, torch.no_grad), (2, torch.inference_mode), (1, torch.enable_grad)):
        with mode(), capture:
            model(images(batch))
        found = [block.rows for block in capture.maps]
        for rows, truth in zip(found, rows_of(model, images(batch)), strict=True):
            torch.testing.assert_close(rows, truth, atol=1e-6, rtol=0)


def tensors_like_rows() -> list[torch.Tensor]:
    return [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape[1:] == (4, 1, 16)]


@pytest.mark.parametrize("freed", ["clear", "capture", "read"])
def test_what_rows_are_made_from_dies_at_once(freed: str) -> None:
    model = CASES["vit"].build()
    rows = []
    gc.collect()
    before = len(tensors_like_rows())
    gc.disable()  # at once, not at the next collection
    try:
        with torch.no_grad(), AttentionCapture(model) as capture:
            model(images(2))
            assert len(tensors_like_rows()) > before
        if freed == "clear":
            capture.clear()
        elif freed == "capture":
            del capture
        else:
            rows = [block.rows for block in capture.maps]
        assert len(tensors_like_rows()) == before + len(rows)
    finally:
        gc.enable()


class Wrapped(torch.Tensor):
    """A tensor that says it is contiguous and holds one that is not."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*tree_map_only(Wrapped, lambda wrapped: wrapped.inner, args), **(kwargs or {}))


@pytest.mark.parametrize("which", [0, 1])
def test_operands_that_only_say_how_they_lie_are_read_as_they_are(which: int) -> None:
    def wrapping(q, k, v):
        operands = [q, k, v]
        operands[which] = Wrapped(operands[which])
        return call(*operands)

    model, x = tower(wrapping), tokens()
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(x)
    with torch.no_grad():
        q, k, _ = model.blocks[0].heads(x)
    torch.testing.assert_close(capture.maps[0].rows, explicit(q, k)[:, :, :1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", ["cls", "all"])
def test_a_scale_that_changes_after_its_call_was_what_it_was(rows: str) -> None:
    scale = torch.tensor(8**-0.5)

    def scaled(q, k, v):
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        scale.mul_(3)
        return out

    model, x = tower(scaled), tokens()
    with torch.no_grad(), AttentionCapture(model, rows=rows, layout=LAYOUT) as capture:
        model(x)
    with torch.no_grad():
        q, k, _ = model.blocks[0].heads(x)
    kept = capture.maps[0].rows
    torch.testing.assert_close(kept, explicit(q, k)[:, :, : kept.shape[2]], atol=1e-6, rtol=0)
