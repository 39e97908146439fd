"""Plain calls: the memory that they share, how their operands are read, and what becomes of the memory afterwards."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

from attnhook import AttentionCapture
from attnhook.capture.scores import PlainCall, ScoreMemory
from tests.capture.test_calls import LAYOUT, call, explicit, tokens, tower
from tests.models import TIMM, images

CASES = {case.name: case for case in TIMM}


@pytest.mark.parametrize(
    "rows", [slice(0, 1), slice(None), slice(2, 4), slice(-1, None), slice(1, 9, 3), slice(20, 22)]
)
def test_views_of_operands_are_the_wanted_queries_and_the_keys_transposed(rows: slice) -> None:
    query, key = torch.randn(2, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)[:2]
    others = torch.randn(2, 4, 17, 8), torch.randn(1, 1, 9, 8).expand(2, 4, 9, 8)
    for q, k in ((query, key), (query[:, :, 1:], key[:, :, ::2]), others):
        memory = ScoreMemory((), q, k, rows, 3)
        memory.find_views((q.stride(), q.storage_offset(), k.stride(), k.storage_offset()))
        for image, (wanted, columns) in enumerate(memory.views):
            assert torch.equal(q.as_strided(*wanted), q[image, :, rows])
            assert torch.equal(k.as_strided(*columns), k[image].mT)
        assert [call.scores.shape for call in memory.waiting] == [(6, 4, q[0, 0, rows].shape[0], k.shape[2])] * 3


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
        kept = [one for _, one in capture._records[-1].calls]
        assert all(isinstance(one, PlainCall) and one.scores is kept[0].scores for one in kept)
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
def test_memory_serves_the_next_forward_once_its_maps_are_read(mode) -> None:
    model = CASES["vit"].build()
    photos = images(3).split(1)
    expected = [rows_of(model, photo) for photo in photos]
    seen, memories = [], []
    capture = AttentionCapture(model)
    for photo in photos:  # read outside
        with mode(), capture:
            model(photo)
        seen.append([block.rows for block in capture.maps])
        memories.append(capture._spare)
    with mode(), capture:  # read inside
        for photo in photos:
            model(photo)
            seen.append([block.rows for block in capture.maps])
            memories.append(capture._spare)
    assert len(set(map(id, memories))) == 1
    for rows, truth in zip(seen, expected * 2, strict=True):
        assert all(map(torch.equal, rows, truth))
        assert not any(one.requires_grad or one.is_inference() for one in rows)


def test_memory_is_not_used_again_before_its_maps_are_read() -> None:
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


def test_a_forward_that_was_left_half_way_shares_its_memory_with_no_other() -> None:
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
        left, whole = ({id(call.scores) for _, call in record.calls} for record in capture._records[-2:])
        assert len(left) == len(whole) == 1
        assert left != whole
        assert all(map(torch.equal, [block.rows for block in capture.maps], truth))


def test_maps_of_another_size_or_mode_have_memory_of_their_own() -> None:
    model = CASES["vit"].build()
    capture = AttentionCapture(model)
    for batch, mode in ((1, torch.no_grad), (2, torch.no_grad), (2, torch.inference_mode), (1, torch.enable_grad)):
        with mode(), capture:
            model(images(batch))
        found = [block.rows for block in capture.maps]
        for rows, truth in zip(found, rows_of(model, images(batch)), strict=True):
            torch.testing.assert_close(rows, truth, atol=1e-6, rtol=0)


@pytest.mark.parametrize("freed", ["clear", "capture"])
def test_memory_is_given_back_by_clear_and_with_the_capture(freed: str) -> None:
    model = CASES["vit"].build()
    gc.disable()  # at once, not when a collection comes by
    try:
        with torch.no_grad(), AttentionCapture(model) as capture:
            for batch in (2, 2, 3):
                model(images(batch))
            kept = [weakref.ref(record.calls[0][1].scores) for record in capture._forwards]
            rows = [maps[0].rows for maps in capture.forwards]
            assert [memory() is not None for memory in kept] == [False, False, True]
        if freed == "clear":
            capture.clear()
        else:
            del capture
        assert all(memory() is None for memory in kept)
    finally:
        gc.enable()
    assert all(row.untyped_storage().nbytes() == row.nbytes for row in rows)


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


def test_memory_of_another_device_than_the_cpu_is_not_kept() -> None:
    model = CASES["vit"].build().to("meta")
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(images().to("meta"))
        assert isinstance(capture._records[-1].calls[0][1], PlainCall)
        assert capture.maps[0].rows.is_meta
    assert capture._spare is None
