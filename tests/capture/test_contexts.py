"""Whose forward it is: tasks, threads, generators, forwards inside forwards."""

import asyncio
import contextlib
import contextvars
import gc
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attnhook import AttentionCapture, TokenLayout
from attnhook.errors import BlockNotCapturedError, NothingCapturedError
from tests.capture.test_neighbours import CAPTURED, LAYOUTS, capture_of
from tests.models import TIMM

CASES = {case.name: case for case in TIMM}
SDPA = torch._C._nn.scaled_dot_product_attention
KINDS = ["timm", "timm, unfused", "transformers", "torchvision", "encoder"]


def other(pixels: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(pixels.shape, generator=torch.Generator().manual_seed(100 + seed))


def same(rows: torch.Tensor, truth: torch.Tensor) -> bool:
    """Within float32's rounding, which differs by where memory lies; other photos' rows differ by 1e-2 and more."""
    return rows.shape == truth.shape and torch.allclose(rows, truth, atol=1e-6, rtol=0)


def rows_of(model: nn.Module, pixels: torch.Tensor, layout=None, **options) -> torch.Tensor:
    with torch.no_grad(), AttentionCapture(model, layout=layout, **options) as capture:
        model(pixels)
    return capture.maps.stack()


def run_tasks(coroutine: Coroutine) -> Any:
    """In a thread of its own: a browser that other tests have opened runs an event loop in this one. Without gradients: tasks that end in
    another order would leave each other's grad mode."""

    def run() -> Any:
        with torch.no_grad():
            return asyncio.run(coroutine)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


# --- tasks ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_tasks_that_share_a_model_each_see_their_own_photo(kind: str) -> None:
    model, pixels, _ = capture_of(kind)
    photos = [pixels, other(pixels, 5)]
    expected = [rows_of(model, photo, LAYOUTS.get(kind)) for photo in photos]

    async def serve(number: int, wait: float):
        with AttentionCapture(model, layout=LAYOUTS.get(kind)) as capture:
            await asyncio.sleep(0)
            model(photos[number])
            await asyncio.sleep(wait)
            return capture.maps.stack(), len(capture.forwards)

    async def both():
        return await asyncio.gather(serve(0, 0.05), serve(1, 0.01))

    found = run_tasks(both())
    for (rows, forwards), truth in zip(found, expected, strict=True):
        assert same(rows, truth)
        assert forwards == 1


def test_threads_that_copy_the_context_count_as_the_tasks_own() -> None:
    model, pixels, capture = capture_of("timm")
    photos = [other(pixels, seed) for seed in range(6)]
    expected = [rows_of(model, photo) for photo in photos]

    async def serve():
        with capture:
            await asyncio.gather(*(asyncio.to_thread(run, photo) for photo in photos))

    def run(photo) -> None:
        with torch.no_grad():
            model(photo)

    run_tasks(serve())
    found = [maps.stack() for maps in capture.forwards]
    assert len(found) == 6
    for truth in expected:
        assert sum(same(rows, truth) for rows in found) == 1


@pytest.mark.parametrize("call", ["forward_features", "blocks"])
def test_parts_of_a_model_that_run_at_once_in_threads_of_a_task_are_not_mixed(call: str) -> None:
    model, pixels, _ = capture_of("timm")
    photos = [other(pixels, seed) for seed in range(4)]
    expected = [rows_of(model, photo) for photo in photos]
    barrier = threading.Barrier(4)

    def wait(*_) -> None:
        barrier.wait(60)

    model.blocks[1].register_forward_pre_hook(wait)

    def run(photo) -> None:
        with torch.no_grad():
            model.forward_features(photo)

    with AttentionCapture(model) as capture:
        contexts = [contextvars.copy_context() for _ in photos]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda context, photo: context.run(run, photo), contexts, photos))
    found = [maps.stack() for maps in capture.forwards]
    assert len(found) == 4
    for truth in expected:
        assert sum(same(rows, truth) for rows in found) == 1


@pytest.mark.parametrize("how", ["thread", "executor", "task"])
def test_a_forward_elsewhere_is_named_never_an_empty_result(how: str) -> None:
    model, pixels, capture = capture_of("timm")

    async def elsewhere():
        async def run():
            model(pixels)

        task = asyncio.create_task(run())  # before the context is entered
        with capture:
            await task

    if how == "task":
        run_tasks(elsewhere())
    else:
        with capture:
            if how == "thread":
                thread = threading.Thread(target=model, args=(pixels,))
                thread.start()
                thread.join()
            else:
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(model, pixels).result()
    with pytest.raises(NothingCapturedError, match="on another thread, or in another task"):
        _ = capture.maps


# --- generators run in the context of whoever consumes them ---------------------------------------------------------------------------------


def test_a_capture_inside_a_context_manager_of_the_users_sees_the_body() -> None:
    """So it cannot be told from a generator whose consumer runs the model on its own account."""
    model, pixels, _ = capture_of("timm")

    @contextlib.contextmanager
    def captured():
        with torch.no_grad(), AttentionCapture(model) as capture:
            yield capture

    with captured() as capture:
        model(pixels)
    assert same(capture.maps.stack(), rows_of(model, pixels))


def test_maps_that_a_generator_reads_before_it_yields_are_its_own() -> None:
    model, pixels, _ = capture_of("timm")
    photos = [other(pixels, seed) for seed in range(3)]

    def generate():
        for photo in photos:
            with torch.no_grad(), AttentionCapture(model) as capture:
                model(photo)
                yield capture.maps, capture

    for photo, (maps, capture) in zip(photos, generate(), strict=True):
        with torch.no_grad():
            model(pixels)  # the consumer's own
        assert same(maps.stack(), rows_of(model, photo))
        assert [same(one.stack(), maps.stack()) for one in capture.forwards[:2]] == [True, False]


def test_a_generator_that_is_never_finished_leaves_nothing() -> None:
    model, pixels, _ = capture_of("timm")

    def generate():
        with torch.no_grad(), AttentionCapture(model) as capture:
            model(pixels)
            yield capture

    generator = generate()
    next(generator)
    generator.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_a_context_left_elsewhere_holds_nothing_of_a_part_that_ran_in_it() -> None:
    model = CASES["vit"].build()
    capture = AttentionCapture(model, blocks=[0])
    entered = contextvars.copy_context()
    entered.run(capture.__enter__)
    entered.run(model.blocks[0], torch.randn(1, 16, 32))
    capture.__exit__(None, None, None)
    rows = weakref.ref(capture.maps)
    del capture
    gc.collect()
    assert rows() is None
    assert len(entered) > 0  # and it is still there


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_may_be_left_in_another_one_than_it_was_entered_in(kind: str) -> None:
    """As an asynchronous generator's clean-up, or a fixture that runs in a pool of threads."""
    model, pixels, capture = capture_of(kind)
    entered, left = contextvars.copy_context(), contextvars.copy_context()

    def enter_and_run(capture):
        capture.__enter__()
        with torch.no_grad():
            model(pixels)

    entered.run(enter_and_run, capture)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(left.run, capture.__exit__, None, None, None).result()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert F.scaled_dot_product_attention is SDPA
    assert same(capture.maps.stack(), rows_of(model, pixels, LAYOUTS.get(kind)))
    rows = weakref.ref(capture.maps[0].rows)
    capture.clear()
    del capture
    gc.collect()
    assert rows() is None  # although the context in which it was entered is still there
    entered.run(lambda: None)


@pytest.mark.parametrize("call", ["forward", "forward_features"])
def test_a_context_that_stays_open_does_not_grow(call: str) -> None:
    model, pixels, capture = capture_of("timm")

    def run() -> None:
        (model if call == "forward" else model.forward_features)(pixels)
        assert len(capture.maps) == 2
        capture.clear()

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    with torch.no_grad(), capture:
        for _ in range(3):
            run()
        before = objects()
        for _ in range(50):
            run()
        assert objects() < before + 50


# --- threads that share a model -------------------------------------------------------------------------------------------------------------


class OwnMultihead(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.layers = nn.ModuleList([nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(3)])

    def forward(self, pixels):
        tokens = self.embed(pixels).flatten(2).mT
        for layer in self.layers:
            tokens = tokens + layer(query=tokens, key=tokens, value=tokens, need_weights=False)[0]
        return tokens.mean(1)


def own_multihead() -> tuple[nn.Module, torch.Tensor, TokenLayout]:
    torch.manual_seed(0)
    return OwnMultihead().eval(), torch.randn(1, 3, 16, 16), TokenLayout((2, 2), cls=None)


@pytest.mark.parametrize("kind", [*KINDS, "own multihead"])
def test_threads_with_captures_of_their_own_share_one_model(kind: str) -> None:
    if kind == "own multihead":
        model, pixels, layout = own_multihead()
    else:
        (model, pixels, _), layout = capture_of(kind), LAYOUTS.get(kind)
    options = {"rows": [0, 2]} if kind == "own multihead" else {}
    photos = [other(pixels, seed) for seed in range(4)]
    expected = [rows_of(model, photo, layout, **options) for photo in photos]
    wrong: list[object] = []

    def serve(number: int) -> None:
        for _ in range(100):
            try:
                if not same(rows_of(model, photos[number], layout, **options), expected[number]):
                    wrong.append(number)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert F.scaled_dot_product_attention is SDPA


# --- forwards inside forwards -------------------------------------------------------------------------------------------------------------


PLACES = [(kind, where) for kind in KINDS[:4] for where in ("a block", "after the attention", "the end")]
PLACES += [(kind, "the attention") for kind in KINDS[:3]]  # torchvision's has no module inside that is called
PLACES += [("encoder", "the end")]  # a hook on a layer would switch its fast path off


@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("kind, where", PLACES)
def test_a_forward_inside_a_forward_is_a_forward_of_its_own(kind: str, where: str, rows: str) -> None:
    build, inputs = CAPTURED[kind]
    model, photo, layout = build(), inputs(), LAYOUTS.get(kind)
    inner = other(photo, 9)
    outer_rows, inner_rows = (rows_of(model, one, layout, rows=rows) for one in (photo, inner))
    capture = AttentionCapture(model, rows=rows, layout=layout)
    attention = model.get_submodule(capture.block_names[0])
    busy = []

    def run_another(*_) -> None:
        if not busy:
            busy.append(1)
            model(inner)
            busy.clear()

    if where == "a block":
        holder = model.get_submodule(capture.block_names[0].rpartition(".")[0])
        holder.register_forward_pre_hook(run_another)
    elif where == "the attention":
        next(m for m in attention.modules() if isinstance(m, nn.Linear)).register_forward_hook(run_another)
    elif where == "after the attention":
        attention.register_forward_hook(run_another)
    else:
        model.register_forward_hook(run_another)
    with torch.no_grad(), capture:
        model(photo)
        model(photo)
    found = [maps.stack() for maps in capture.forwards]
    assert len(found) == 4
    assert same(capture.maps.stack(), outer_rows)  # the last one to end
    assert [same(one, outer_rows) for one in found] == [False, True, False, True]
    assert [same(one, inner_rows) for one in found] == [True, False, True, False]


def test_a_part_of_the_model_that_runs_inside_its_forward_is_no_part_of_it_or_is_loud() -> None:
    model, photo, capture = capture_of("timm")
    busy = []

    def run_another(*_) -> None:
        if not busy:
            busy.append(1)
            model.forward_features(other(photo, 9))
            busy.clear()

    handle = model.blocks[0].register_forward_hook(run_another)
    with torch.no_grad(), capture:
        model(photo)
    with pytest.raises(BlockNotCapturedError, match=r"ran twice in one forward.*Call the model itself"):
        _ = capture.maps
    handle.remove()
    with torch.no_grad(), capture:
        model(photo)
    assert same(capture.maps.stack(), rows_of(model, photo))


class CallsItself(nn.Module):
    """Runs itself on other tokens before it attends."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor, inner: torch.Tensor | None = None) -> torch.Tensor:
        if inner is not None:
            self(inner)
        return self.attention(x, x, x)[0]


def test_a_forward_inside_a_forward_that_has_not_attended_yet_is_its_own() -> None:
    model, outer, inner = CallsItself().eval(), torch.randn(2, 5, 8), torch.randn(1, 5, 8)
    with torch.no_grad(), AttentionCapture(model, layout=TokenLayout((2, 2))) as capture:
        model(outer, inner)
    assert [[block.shape[0] for block in maps] for maps in capture.forwards] == [[1], [2]]


def test_a_forward_after_one_that_raised_half_way_is_whole() -> None:
    model, photo, capture = capture_of("timm")
    fails = model.blocks[1].attn.register_forward_pre_hook(lambda *_: 1 / 0)
    with torch.no_grad(), capture:
        for call in (model, model.forward_features):
            with pytest.raises(ZeroDivisionError):
                call(photo)
        fails.remove()
        for call in (model, model.forward_features):
            call(photo)
            assert same(capture.maps.stack(), rows_of(model, photo))
        with pytest.raises(BlockNotCapturedError, match=r"call clear\(\) where you catch it"):
            _ = capture.forwards
        capture.clear()
        model(photo)
        assert len(capture.forwards) == 1


def test_clear_and_pause_inside_a_forward_do_not_disturb_the_next() -> None:
    model, photo, capture = capture_of("timm")
    handle = model.blocks[0].register_forward_hook(lambda *_: capture.clear())
    with torch.no_grad(), capture:
        model(photo)
        with pytest.raises(BlockNotCapturedError):
            _ = capture.maps
        handle.remove()
        model(photo)
        assert same(capture.maps.stack(), rows_of(model, photo))


@pytest.mark.parametrize("kind, where", [(kind, "qkv") for kind in KINDS[:2]] + [("transformers", "q_proj")])
def test_a_pause_that_begins_inside_an_attention_and_lasts_leaves_nothing_watching(kind: str, where: str) -> None:
    model, photo, capture = capture_of(kind)
    attention = model.get_submodule(capture.block_names[0])
    with torch.no_grad(), capture, contextlib.ExitStack() as stack:
        begin = attention.get_submodule(where).register_forward_hook(lambda *_: stack.enter_context(capture.paused()))
        model(photo)
        begin.remove()
        assert F.scaled_dot_product_attention is SDPA
        assert torch._C._len_torch_function_stack() == 0
        stack.close()
        model(photo)
        assert same(capture.maps.stack(), rows_of(model, photo))
