"""Which calls belong together, whose rows they hold, and what happens where that cannot be told."""

import contextlib
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from attnhook import (
    AttentionCapture,
    AttentionSite,
    ModelAnatomy,
    TokenLayout,
    raw_attention,
    register_adapter,
    rollout,
)
from attnhook.capture import encoder_layers, recording
from attnhook.capture.anatomy import SequenceInfo
from attnhook.capture.calls import FastLogits
from attnhook.capture.forward_records import ForwardRecord
from attnhook.capture.operands import Operands
from attnhook.capture.plan import make_plan
from attnhook.capture.sites import Arrangement, Kernel, Queries, SiteTokens
from attnhook.capture.softmax_matrix import SoftmaxMatrix
from attnhook.errors import BlockNotCapturedError, RowsNotKeptError, TokenLayoutError, UnsupportedModelError
from tests.models import TIMM, images

CASES = {case.name: case for case in TIMM}
LAYOUT = TokenLayout((4, 4))


class Attention(nn.Module):
    """Plain attention over 17 tokens; `kernel` does what the test is about."""

    def __init__(self, kernel=F.scaled_dot_product_attention):
        super().__init__()
        self.qkv, self.kernel = nn.Linear(32, 96), kernel

    def heads(self, x):
        return self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        return self.kernel(*self.heads(x)).transpose(1, 2).flatten(2)


def watched(kind: Kernel):
    return lambda model: ModelAnatomy(
        sites=tuple(AttentionSite(n, m, kind) for n, m in model.named_modules() if isinstance(m, Attention))
    )


class Tower(nn.Module):
    def __init__(self, *kernels):
        super().__init__()
        self.blocks = nn.ModuleList([Attention(kernel) for kernel in kernels])

    def forward(self, x):
        return self.encode(x)

    def encode(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


def tower(*kernels, kind: Kernel = Kernel.SDPA) -> Tower:
    register_adapter(Tower, watched(kind))
    torch.manual_seed(0)
    return Tower(*(kernels or (call, call)))


def call(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def tokens(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 17, 32, generator=torch.Generator().manual_seed(batch))


def explicit(q, k):
    return torch.softmax(q.double() @ k.double().mT * 8**-0.5, dim=-1).float()


@pytest.mark.parametrize("order", [(0, 1, 0), (0, 1, 0, 1)])
def test_tied_blocks_stand_in_the_order_in_which_they_ran(order: tuple[int, ...]) -> None:
    model = tower()
    model.blocks = nn.ModuleList([model.blocks[i] for i in order])
    x, expected = tokens(), []
    with torch.no_grad(), AttentionCapture(model, rows="all", layout=LAYOUT) as capture:
        model(x)
        for block in model.blocks:
            q, k, _ = block.heads(x)
            expected.append(explicit(q, k))
            with capture.paused():
                x = x + block(x)
    names = [f"blocks.{i}" for i in order]
    assert [name.partition(":")[0] for name in capture.maps.block_names] == names
    numbers = [names[:place].count(name) for place, name in enumerate(names)]
    assert [*capture.maps.block_names] == [f"{n}:{i}" if i else n for n, i in zip(names, numbers, strict=True)]
    torch.testing.assert_close(capture.maps.stack(), torch.stack(expected), atol=1e-6, rtol=0)
    followed = torch.eye(17)[:1].expand(2, 1, 17).double()
    for matrix in reversed(expected):
        followed = 0.5 * followed + 0.5 * followed @ matrix.double().mean(1)
    torch.testing.assert_close(
        rollout(capture.maps).values, followed[:, 0, 1:].reshape(2, 4, 4).float(), atol=1e-6, rtol=0
    )


def test_forwards_past_the_root_are_not_the_last_one_that_was_read() -> None:
    model, maps = tower(), []
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        for batch in (1, 2, 1):
            model.encode(tokens(batch))
            maps.append(raw_attention(capture.maps).values)
    assert [len(one) for one in maps] == [1, 2, 1]
    assert torch.equal(maps[0], maps[2])
    assert len(capture.forwards) == 3


@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("kind", [Kernel.SDPA, Kernel.ANY])
def test_queries_computed_in_chunks_are_not_taken_for_the_class_token(kind: Kernel, rows: str) -> None:
    def in_chunks(q, k, v):
        return torch.cat([call(q[:, :, i : i + 6], k, v) for i in range(0, 17, 6)], dim=2)

    model = tower(in_chunks, kind=kind)
    with torch.no_grad(), AttentionCapture(model, rows=rows, layout=LAYOUT) as capture:
        model(tokens())
    with pytest.raises(TokenLayoutError, match="queries"):
        raw_attention(capture.maps)


@pytest.mark.parametrize("rows", ["cls", "all"])
@pytest.mark.parametrize("kind", [Kernel.SDPA, Kernel.ANY])
@pytest.mark.parametrize(
    "part", ["queries of one image", "keys of one image", "queries of one head", "keys of one head"]
)
def test_operands_that_the_kernel_broadcasts(part: str, kind: Kernel, rows: str) -> None:
    seen = []

    def broadcasting(q, k, v):
        if part == "queries of one image":
            q = q[:1]
        elif part == "keys of one image":
            k, v = k[:1], v[:1]
        elif part == "queries of one head":
            q = q[:, :1]
        else:
            k, v = k[:, :1], v[:, :1]
        seen.append((q, k))
        return call(q, k, v)

    model, x = tower(broadcasting, kind=kind), tokens()
    with torch.no_grad():
        bare = model(x)
        with AttentionCapture(model, rows=rows, layout=LAYOUT) as capture:
            assert torch.equal(model(x), bare)
    expected = explicit(*seen[-1]).expand(2, 4, 17, 17)
    kept = capture.maps[0].rows
    torch.testing.assert_close(kept, expected[:, :, : kept.shape[2]], atol=1e-6, rtol=0)


class Nested(Attention):
    """Attention around attention; both are sites."""

    def __init__(self, inner=None):
        super().__init__(call)
        self.inner = inner or Attention(call)

    def forward(self, x):
        if isinstance(self.inner, nn.MultiheadAttention):
            return super().forward(x + self.inner(x, x, x, need_weights=False)[0])
        return super().forward(x + self.inner(x))


def test_calls_of_a_block_that_is_left_out_are_not_those_of_the_block_around_it() -> None:
    model = tower(call)
    model.blocks[0] = Nested()
    with torch.inference_mode(), AttentionCapture(model, rows="all", layout=LAYOUT) as both:
        model(tokens())
    assert both.maps.block_names == ("blocks.0.inner", "blocks.0")
    for rows in ("cls", "all"):
        with torch.inference_mode(), AttentionCapture(model, blocks=["blocks.0"], rows=rows, layout=LAYOUT) as outer:
            model(tokens())
        assert outer.maps.block_names == ("blocks.0",)
        torch.testing.assert_close(outer.maps[0].rows[:, :, :1], both.maps["blocks.0"].rows[:, :, :1])


@pytest.mark.parametrize("kind", [Kernel.SDPA, Kernel.ANY, Kernel.MULTIHEAD])
@pytest.mark.parametrize("blocks", [None, ["blocks.0"]])
def test_calls_of_a_block_are_not_those_of_the_block_around_it(kind: Kernel, blocks) -> None:
    outer = Nested(nn.MultiheadAttention(32, 4, batch_first=True) if kind is Kernel.MULTIHEAD else None)
    kinds = {"blocks.0.inner": kind, "blocks.0": Kernel.SDPA}
    register_adapter(
        Tower,
        lambda model: ModelAnatomy(tuple(AttentionSite(n, model.get_submodule(n), k) for n, k in kinds.items())),
    )
    model = Tower(call)
    model.blocks[0] = outer
    for rows in ("cls", "all"):
        with torch.no_grad(), AttentionCapture(model, blocks=blocks, rows=rows, layout=LAYOUT) as capture:
            model(tokens())
        assert capture.maps.block_names == (tuple(kinds) if blocks is None else ("blocks.0",))


@pytest.mark.parametrize("foreign", [False, True])
def test_multihead_attention_inside_a_watched_module_keeps_its_fast_path(foreign: bool) -> None:
    """A function mode would switch it off; modes of others stay on, where they were."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x):
            with Foreign() if foreign else contextlib.nullcontext() as mode:
                inner = self.inner(x, x, x, need_weights=False)[0]
                after = inner.sum()
            assert not foreign or any(one is after for one in mode.seen)
            return torch.softmax((x @ x.mT)[:, None], dim=-1)[:, 0] @ inner

    class Foreign(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen.append(func(*args, **(kwargs or {})))
            return self.seen[-1]

    sites = {"": Kernel.ANY, "inner": Kernel.MULTIHEAD}
    register_adapter(
        Around,
        lambda model: ModelAnatomy(tuple(AttentionSite(n, model.get_submodule(n), k) for n, k in sites.items())),
    )
    torch.manual_seed(0)
    model, x = Around().eval(), tokens()
    with torch.no_grad():
        bare = model(x)
        with AttentionCapture(model, rows="all", layout=LAYOUT) as capture:
            assert torch.equal(model(x), bare)
    assert capture.maps.block_names == ("inner", "")
    torch.testing.assert_close(capture.maps[""].rows[:, 0], torch.softmax(x @ x.mT, dim=-1), atol=1e-6, rtol=0)


def fails(*_, **__) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "rows, kind, broken",
    [
        ("all", Kernel.SDPA, (Operands, "detached")),
        ("all", Kernel.ANY, (Operands, "detached")),
        ("cls", Kernel.SDPA, (FastLogits, "add")),
        ("cls", Kernel.SDPA, (recording, "sdpa_operands")),
        ("cls", Kernel.ANY, (AttentionSite, "arranged_operands")),
    ],
)
def test_what_goes_wrong_in_recording_does_not_end_the_forward(
    monkeypatch: pytest.MonkeyPatch, rows: str, kind: Kernel, broken
) -> None:
    model, x = tower(kind=kind), tokens()
    monkeypatch.setattr(*broken, fails)
    around = torch.no_grad if broken[0] in (Operands, FastLogits) else torch.enable_grad
    with around():
        bare = model(x)
        with AttentionCapture(model, rows=rows, layout=LAYOUT) as capture:
            assert torch.equal(model(x), bare)
    with pytest.raises(UnsupportedModelError, match=r"'blocks.0' could not be recorded: ZeroDivisionError"):
        _ = capture.maps


@pytest.mark.parametrize("norm_first", [True, False])
def test_what_goes_wrong_in_recording_an_encoder_layer_does_not_end_its_forward(
    monkeypatch: pytest.MonkeyPatch, norm_first: bool
) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first).eval()
    model, x = nn.Sequential(layer), tokens()
    monkeypatch.setattr(encoder_layers, "_self_attention", fails)
    with torch.no_grad():
        bare = model(x)
        with AttentionCapture(model, rows="all", layout=LAYOUT) as capture:
            assert torch.equal(model(x), bare)
    with pytest.raises(UnsupportedModelError, match=r"'0.self_attn' could not be recorded: ZeroDivisionError"):
        _ = capture.maps


def test_a_softmax_over_no_whole_number_of_images_is_not_that_of_the_module() -> None:
    def merged(q, k, v):
        torch.softmax(q.flatten(0, 1)[:3], dim=-1)  # of three of eight images' heads
        return (torch.softmax((q @ k.mT * 8**-0.5).flatten(0, 1), dim=-1) @ v.flatten(0, 1)).view_as(v)

    arrangement = {"arrangement": Arrangement.MERGED, "heads": 4}
    register_adapter(
        Tower, lambda model: ModelAnatomy(sites=(AttentionSite("blocks.0", model.blocks[0], **arrangement),))
    )
    model, x = Tower(merged), tokens()
    with torch.no_grad(), AttentionCapture(model, rows="all", layout=LAYOUT) as capture:
        model(x)
    assert len(capture.maps) == 1
    torch.testing.assert_close(capture.maps[0].rows, explicit(*model.blocks[0].heads(x)[:2]))


def test_a_patch_of_others_made_inside_a_context_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, before = tower(), tokens(), F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", before)  # whatever happens here is undone
    calls = []
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT):
        inner = F.scaled_dot_product_attention

        def theirs(*args, **kwargs):
            calls.append(1)
            return inner(*args, **kwargs)

        F.scaled_dot_product_attention = theirs
    assert F.scaled_dot_product_attention is theirs
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(x)
    assert F.scaled_dot_product_attention is theirs
    assert len(calls) == len(capture.maps) == 2


def test_operands_that_the_model_overwrites_are_missed() -> None:
    mask = torch.zeros(17, 17)

    def reusing(q, k, v):
        output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mask.fill_(-1.0)
        return output

    with torch.no_grad(), AttentionCapture(tower(reusing), rows="all", layout=LAYOUT) as capture:
        capture.plan.model(tokens())
    with pytest.raises(RowsNotKeptError, match="overwritten"):
        capture.maps[0].weights()


def test_least_numbers_in_a_mask_are_read_alike_by_all_products() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 5, 4).unbind(0)
    mask = torch.zeros(1, 1, 5, 5)
    mask[..., 3, :] = torch.finfo(torch.float32).min
    mask[..., 1, 2:] = torch.finfo(torch.float32).min
    mask[..., 2, 2:] = -torch.inf
    matrix = SoftmaxMatrix(Operands(q, k, None, mask))
    expected = torch.softmax(q.double() @ k.double().mT * 0.5 + mask.double(), dim=-1).float()
    torch.testing.assert_close(matrix.dense()[:, :, :3], expected[:, :, :3], atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix.left_multiply(torch.eye(5)[None, None]), matrix.dense(), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix.entropy(), torch.special.entr(matrix.dense()).sum(-1).double(), atol=1e-6, rtol=0)


def test_an_empty_batch_has_empty_maps() -> None:
    model = CASES["vit"].build()
    with torch.no_grad(), AttentionCapture(model) as rows_alone:
        model(images()[:0])
    assert [block.shape[0] for block in rows_alone.maps] == [0] * len(rows_alone.block_names)
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        model(images()[:0])
    assert (
        len(raw_attention(capture.maps).values)
        == len(rollout(capture.maps).values)
        == len(rollout(capture.maps, heads="max").values)
        == 0
    )


def test_modes_and_dtypes_may_change_between_the_calls_of_a_forward() -> None:
    seen = []

    def under(mode, dtype=torch.float32):
        def kernel(q, k, v):
            with mode():
                q, k, v = (operand.clone().to(dtype) for operand in (q, k, v))
                seen.append((q, k))
                return call(q, k, v).float()

        return kernel

    modes = torch.no_grad, torch.enable_grad, torch.no_grad, torch.inference_mode, torch.no_grad
    model = tower(*map(under, modes), under(torch.no_grad, torch.float64), under(torch.no_grad, torch.bfloat16))
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(tokens())
    for block, (q, k) in zip(capture.maps, seen, strict=True):
        torch.testing.assert_close(block.rows, explicit(q, k)[:, :, :1], atol=1e-6, rtol=0)


class Borrowed(nn.Module):
    """A module that runs another one's forward as its own."""

    def __init__(self, lender: nn.Module) -> None:
        super().__init__()
        self.forward = lender.forward


def test_a_forward_that_another_module_borrowed_is_missed_loudly() -> None:
    model, x = tower(), tokens()
    blocks = model.blocks
    model.encode = lambda x: x + Borrowed(blocks[1])(x + blocks[0](x))
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(x)
    with pytest.raises(BlockNotCapturedError, match=r"'blocks.1' .* did not run"):
        _ = capture.maps


def test_a_plain_call_of_float32_operands_is_computed_in_float32_under_autocast() -> None:
    seen = []

    def in_float32(q, k, v):
        seen.append((q.float(), k.float()))
        return call(*seen[-1], v.float())

    with (
        torch.no_grad(),
        AttentionCapture(tower(in_float32), layout=LAYOUT) as capture,
        torch.autocast("cpu", torch.bfloat16),
    ):
        capture.plan.model(tokens())
    torch.testing.assert_close(capture.maps[0].rows, explicit(*seen[0])[:, :, :1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [Kernel.SDPA, Kernel.ANY])
def test_the_class_tokens_row_is_where_class_attention_has_it(kind: Kernel) -> None:
    """Class attention of two special tokens, the class token second among the queries and first among the keys."""

    def two_queries(q, k, v):
        q = q[:, :, [1, 0]]
        return call(q, k, v) if kind is Kernel.SDPA else torch.softmax(q @ k.mT * 8**-0.5, dim=-1) @ v

    register_adapter(
        Tower, lambda model: ModelAnatomy(sites=(AttentionSite("blocks.0", model.blocks[0], kind, **facts),))
    )
    facts = {"queries": Queries.CLASS, "readout_rows": slice(1, 2)}
    model, x = Tower(two_queries), tokens()
    with torch.no_grad(), AttentionCapture(model, rows="cls", layout=LAYOUT) as capture:
        model.blocks[0](x)
    torch.testing.assert_close(capture.maps[0].rows, explicit(*model.blocks[0].heads(x)[:2])[:, :, :1])


def spelt_out(q, k, v):
    return torch.softmax(q @ k.mT * 8**-0.5, dim=-1) @ v


class Around(Attention):
    """Attends after a module inside it has."""

    def __init__(self):
        super().__init__(spelt_out)
        self.inner = Attention(spelt_out)

    def forward(self, x):
        return super().forward(x + self.inner(x))


def test_a_module_that_attends_after_one_inside_it_is_told_of_its_own_call() -> None:
    model, x = tower(spelt_out, kind=Kernel.ANY), tokens()
    model.blocks[0] = Around()
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(x)
    with torch.no_grad():
        inner = model.blocks[0].inner
        seen = {"blocks.0": model.blocks[0].heads(x + inner(x)), "blocks.0.inner": inner.heads(x)}
    assert sorted(capture.maps.block_names) == sorted(seen)
    for name, (q, k, _) in seen.items():
        torch.testing.assert_close(capture.maps[name].rows, explicit(q, k)[:, :, :1], atol=1e-6, rtol=0)


def test_a_class_token_that_sees_no_key_has_a_row_of_zeros_also_in_an_explicit_softmax() -> None:
    def hidden(q, k, v):
        scores = (q @ k.mT).index_fill(2, torch.arange(17), -torch.inf)
        return torch.softmax(scores, dim=-1) @ v

    model = tower(hidden, kind=Kernel.ANY)
    with torch.no_grad(), AttentionCapture(model, layout=LAYOUT) as capture:
        model(tokens())
    assert (capture.maps[0].rows == 0).all()


@pytest.mark.parametrize(
    "embedding, module, grid, frames, area",
    [
        ((2, 8, 4, 5), nn.Conv2d(3, 8, 16, (16, 8)), (4, 5), 1, (64, 40)),
        ((2, 8, 3, 4, 5), nn.Conv3d(3, 8, (2, 16, 8), (2, 16, 8)), (4, 5), 3, (64, 40)),
        ((2, 8, 4, 5), nn.Identity(), (4, 5), 1, (65, 41)),
        ((2, 20, 8), nn.Identity(), None, 1, None),
    ],
)
def test_the_grid_is_read_off_what_the_patch_embedding_gives(embedding, module, grid, frames, area) -> None:
    record = ForwardRecord(input_size=(65, 41))
    record.set_grid((torch.zeros(2, 3, 65, 41),), torch.zeros(embedding), module)
    assert (record.grid, record.frames, record.area) == (grid, frames, area)


@pytest.mark.parametrize("pixels, features, area", [(224, 7, 224), (240, 8, 256), (225, 15, 240), (240, 14, None)])
def test_behind_a_cnn_that_pads_to_halve_the_grid_reaches_beyond_the_image(pixels, features, area) -> None:
    record = ForwardRecord(input_size=(pixels, pixels))
    record.set_grid(
        (torch.zeros(1, 64, features, features),), torch.zeros(1, 8, features, features), nn.Conv2d(64, 8, 1)
    )
    assert record.area == (None if area is None else (area, area))


def test_a_grid_that_an_adapter_gives_as_a_list_is_one() -> None:
    record = ForwardRecord()
    record.set_tokens(SequenceInfo(grid=[4, 4], area=[64, 64]))
    layout = record.layout(make_plan(tower(), None, "all", None))
    assert (layout, record.area, record.input_size) == (LAYOUT, (64, 64), (64, 64))


@pytest.mark.parametrize("freed", [AttentionCapture.clear, lambda capture: capture.maps])
def test_inputs_that_tell_what_tokens_are_are_kept_as_shapes_and_no_longer_than_needed(freed) -> None:
    class Takes(Attention):
        def forward(self, x, *more, **named):
            return super().forward(x)

    def tokens_of(seen):
        told.append(seen.inputs)
        return SiteTokens(LAYOUT)

    facts = {"tokens_of": tokens_of, "seen_module": (module := Takes(call))}
    register_adapter(Takes, lambda model: ModelAnatomy((AttentionSite("", module, Kernel.SDPA, **facts),)))
    x, ids, told = tokens(), torch.arange(3), []
    shape = x.shape
    with torch.no_grad(), AttentionCapture(module, rows="all") as capture:
        module(x, (x, [x, 1]), ids, named={"states": x, "ids": ids})
        assert told == [(shape, (shape, [shape, 1]), ids, {"states": shape, "ids": ids})]
        gone = weakref.ref(ids)
        told.clear()
        del ids
        freed(capture)
        assert gone() is None
