"""Memory of copied queries and keys: when it serves the next forward, when it must not, when it is given back."""

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from attnhook import AttentionCapture
from attnhook.capture.copies import CopyMemory
from attnhook.capture.operands import Operands
from tests.models import TIMM, images

CASES = {case.name: case for case in TIMM}


@pytest.fixture
def model() -> nn.Module:
    return CASES["vit"].build()


def matrices_of(model: nn.Module, photo: Tensor) -> list[Tensor]:
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(photo)
    return [block.rows for block in capture.maps]


def places(capture: AttentionCapture) -> list[int]:
    return [block.matrix._source.query.data_ptr() for block in capture.maps]


def same(maps, truth: list[Tensor]) -> bool:
    return all(map(torch.equal, [block.rows for block in maps], truth))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_memory_serves_the_next_forward_once_nobody_holds_its_maps(model, mode) -> None:
    photos = images(3).split(1)
    expected = [matrices_of(model, photo) for photo in photos]
    capture, seen = AttentionCapture(model, rows="all"), []
    for photo, truth in zip(photos, expected, strict=True):
        with mode(), capture:
            model(photo)
        assert same(capture.maps, truth)
        seen.append(places(capture))
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) == len(seen[0])


def kept(maps) -> Operands:
    """What is kept of the first block."""
    operands = maps[0].matrix._source
    assert isinstance(operands, Operands)
    return operands


FACTOR = torch.ones(1, requires_grad=True)
HOLDERS = {  # what is held, and how the queries are read from it
    "maps": (lambda maps: maps, lambda maps: kept(maps).query),
    "a block": (lambda maps: maps[0], lambda block: block.matrix._source.query),
    "a matrix": (lambda maps: maps[0].matrix, lambda matrix: matrix._source.query),
    "an image": (lambda maps: maps[0].matrix.image(0), lambda matrix: matrix._source.query),
    "a view": (lambda maps: kept(maps).query[:, 1:3], lambda view: view),
    "a view's base": (lambda maps: kept(maps).query._base, lambda base: base),
    "an array": (lambda maps: kept(maps).query.numpy(), torch.from_numpy),
    "a storage": (lambda maps: kept(maps).key.untyped_storage(), lambda held: torch.empty(0).set_(held)),
    "a graph": (lambda maps: FACTOR * kept(maps).query, lambda held: held.grad_fn._saved_other),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_memory_is_not_used_again_while_somebody_holds_what_lies_in_it(model, kind: str) -> None:
    hold, read = HOLDERS[kind]
    photo = images(1)
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(photo)
    held = hold(capture.maps)
    place, before = kept(capture.maps).query.data_ptr(), read(held).clone()
    with torch.no_grad(), capture:
        model(-photo)
    assert same(capture.maps, matrices_of(model, -photo))
    assert kept(capture.maps).query.data_ptr() != place
    assert torch.equal(read(held), before)
    assert before.abs().sum() > 0


def test_every_forward_of_one_context_has_memory_of_its_own(model) -> None:
    photos = images(3).split(1)
    expected = [matrices_of(model, photo) for photo in photos]
    capture = AttentionCapture(model, rows="all")
    for _ in range(2):
        with torch.no_grad(), capture:
            for photo in photos:
                model(photo)
        for maps, truth in zip(capture.forwards, expected, strict=True):
            assert same(maps, truth)


def test_maps_of_another_size_kind_or_mode_have_memory_of_their_own(model) -> None:
    capture = AttentionCapture(model, rows="all")
    modes = torch.no_grad, torch.inference_mode, torch.enable_grad, torch.inference_mode, torch.no_grad
    for batch, mode in zip((1, 2, 2, 1, 1), modes, strict=True):
        with mode(), capture:
            model(images(batch))
        assert same(capture.maps, matrices_of(model, images(batch)))
    model.double()
    with torch.no_grad(), capture:
        model(images(1).double())
    assert kept(capture.maps).query.dtype is torch.float64


@pytest.mark.parametrize("freed", ["clear", "capture"])
def test_memory_is_given_back_by_clear_and_with_the_capture(model, freed: str) -> None:
    gc.disable()  # at once, not when a collection comes by
    try:
        with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
            model(images(1))
        memories = [weakref.ref(capture._copies._piece)]
        with capture:  # a new context alone keeps it
            pass
        assert all(memory() is not None for memory in memories)
        if freed == "clear":
            capture.clear()
        else:
            del capture
        assert all(memory() is None for memory in memories)
    finally:
        gc.enable()


def test_memory_is_not_touched_where_others_watch(model) -> None:
    photo = images(1)
    truth = matrices_of(model, photo)
    capture = AttentionCapture(model, rows="all")

    def run(pixels: Tensor) -> Tensor:
        with capture:
            out: Tensor = model(pixels)
        return out.sum()

    with torch.no_grad():
        run(photo)
        before = capture._copies._piece
        assert before is not None
        content = before.clone()
        make_fx(run)(-photo)
        assert capture._copies._piece is None
        assert torch.equal(before, content)
        run(photo)
        assert same(capture.maps, truth)


def test_memory_of_another_device_than_the_cpu_is_not_kept() -> None:
    memory = CopyMemory()
    query, key, _ = torch.randn(1, 7, 3, 2, 4, device="meta").permute(2, 0, 3, 1, 4).unbind(0)
    for copied in memory.stacked(query, key):
        assert copied.is_meta
        assert copied.shape == query.shape
    assert memory._piece is None


def pieces(maps) -> set[int]:
    return {block.matrix._source.query.untyped_storage().data_ptr() for block in maps}


def test_one_piece_holds_the_copies_of_all_blocks_until_maps_are_held_across_contexts(model) -> None:
    photo, truth = images(1), matrices_of(model, images(1))
    capture = AttentionCapture(model, rows="all")
    for _ in range(2):
        with torch.no_grad(), capture:
            model(photo)
        assert len(pieces(capture.maps)) == 1 < len(capture.maps)
    held = capture.maps[0].matrix
    for _ in range(2):
        with torch.no_grad(), capture:
            model(photo)
        assert len(pieces(capture.maps)) == len(capture.maps)  # so that a block that is held keeps no other
        assert same(capture.maps, truth)
    assert torch.equal(held.dense(), truth[0])


def test_a_forward_that_ended_early_leaves_the_memory_to_the_next(model) -> None:
    photo, truth = images(1), matrices_of(model, images(1))
    capture = AttentionCapture(model, rows="all")

    def fail(*_) -> None:
        raise RuntimeError("stop")

    hook = model.blocks[1].register_forward_hook(fail)
    with torch.no_grad(), pytest.raises(RuntimeError, match="stop"), capture:
        model(photo)
    hook.remove()
    memory = capture._copies._piece.data_ptr()
    with torch.no_grad(), capture:
        model(photo)
    assert places(capture)[0] == memory
    assert pieces(capture.maps) == {memory}
    assert same(capture.maps, truth)


def test_copies_of_other_sizes_fit_into_what_is_left_or_get_memory_of_their_own() -> None:
    memory, seen = CopyMemory(4), []
    for tokens, batch in ((8, 2), (5, 1), (3, 7), (8, 2), (9, 2), (1, 1)):
        query, key, _ = torch.randn(batch, tokens, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        seen.append((query.clone(), key.clone(), *memory.stacked(query, key)))
    for query, key, one, other in seen:
        assert torch.equal(one, query)
        assert torch.equal(other, key)
        assert one.is_contiguous()
