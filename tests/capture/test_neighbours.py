"""Nobody else notices a capture: other models and their compilers, other people's patches and hooks, what the caller holds."""

import gc
import subprocess
import sys
import threading
import weakref
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel

from attnhook import AttentionCapture, AttentionMonitor, DirectoryWriter, TokenLayout
from attnhook.capture.torch_internals import compiler_stance
from tests.models import TIMM, TRANSFORMERS, images, sharpen

CASES = {case.name: case for case in TIMM + TRANSFORMERS}
SDPA = torch._C._nn.scaled_dot_product_attention


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return sharpen(VisionTransformer(24, 8, 2, 4, 32, 48, num_classes=5))


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def timm_vit() -> nn.Module:
    return CASES["vit"].build()


CAPTURED = {
    "timm": (timm_vit, lambda: images(1)),
    "timm, unfused": (lambda: CASES["vit"].build("eager"), lambda: images(1)),
    "transformers": (CASES["ViTModel"].build, lambda: images(1)),
    "torchvision": (torchvision_vit, lambda: images(1, size=(24, 24))),
    "encoder": (encoder, lambda: torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))),
}
LAYOUTS = {"encoder": TokenLayout((2, 2))}


def capture_of(kind: str, **options) -> tuple[nn.Module, torch.Tensor, AttentionCapture]:
    build, inputs = CAPTURED[kind]
    model = build()
    return model, inputs(), AttentionCapture(model, layout=LAYOUTS.get(kind), **options)


def first(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


# --- hooks say who, and the function is torch's own whenever nobody attends ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["timm", "timm, unfused", "transformers", "torchvision"])
def test_every_captured_module_has_a_hook_inside_the_context_and_none_outside(kind: str) -> None:
    model, pixels, capture = capture_of(kind)

    def hooked() -> list[bool]:
        found = []
        for name in capture.block_names:
            module = model.get_submodule(name)
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            found.append(any(type(hook).__module__.startswith("attnhook.") for hook in hooks))
            found.append(bool(module._forward_hooks_always_called))
        return found

    assert not any(hooked())
    with torch.no_grad(), capture:
        assert all(hooked())
        model(pixels)
    assert not any(hooked())


@pytest.mark.parametrize("kind", CAPTURED)
def test_the_function_is_torchs_own_whenever_no_captured_module_runs(kind: str) -> None:
    model, pixels, capture = capture_of(kind)
    inside = {id(m) for name in capture.block_names for m in model.get_submodule(name).modules()}
    elsewhere = [m for m in model.modules() if id(m) not in inside and kind != "encoder"]
    seen = []
    for module in elsewhere:
        module.register_forward_pre_hook(lambda *_: seen.append(F.scaled_dot_product_attention is SDPA))
    with torch.no_grad(), capture:
        assert F.scaled_dot_product_attention is SDPA
        model(pixels)
        assert F.scaled_dot_product_attention is SDPA
    assert len(seen) == len(elsewhere) or kind == "transformers"
    assert all(seen)
    functions = torch._transformer_encoder_layer_fwd, torch._native_multi_head_attention, F.multi_head_attention_forward
    assert [f.__module__ for f in functions[2:]] == ["torch.nn.functional"]
    assert all(isinstance(f, type(SDPA)) for f in functions[:2])


# --- other models and their compilers ------------------------------------------------------------------------------------------------------


def attends(tokens):
    return F.scaled_dot_product_attention(tokens, tokens, tokens).sum()


OTHERS = {
    "function": (lambda: attends, lambda: torch.rand(1, 2, 5, 8)),
    "timm": (timm_vit, lambda: images(1)),
    "transformers": (CASES["ViTModel"].build, lambda: images(1)),
    "torchvision": (torchvision_vit, lambda: images(1, size=(24, 24))),
    "encoder": (encoder, lambda: torch.rand(1, 5, 32)),
}


class Counts:
    """A backend that counts its graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize(
    "kind, other",
    [
        *((kind, "function") for kind in CAPTURED),  # the least that attends
        *((kind, kind.partition(",")[0]) for kind in CAPTURED),  # that calls what the capture watches
        ("encoder", "torchvision"),
        ("torchvision", "encoder"),
        ("timm", "transformers"),
    ],
)
def test_another_compiled_model_has_the_same_output_and_not_one_more_graph(kind: str, other: str, warm: bool) -> None:
    model, pixels, capture = capture_of(kind)
    eager, backend = OTHERS[other][0](), Counts()
    given, expected, graphs = compiled_alone(other)
    compiled = torch.compile(eager, backend=backend, fullgraph=other != "torchvision")
    with torch.no_grad():
        if warm:
            compiled(given)
        for _ in range(2):
            with capture:
                model(pixels)
                assert torch.equal(first(compiled(given)), expected)
                model(pixels)
            assert torch.equal(first(compiled(given)), expected)
        assert len(capture.forwards) == 2
    assert backend.graphs == graphs


@cache
def compiled_alone(other: str) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What another compiled model is given, what it makes of it without any capture, and its number of graphs."""
    build, inputs = OTHERS[other]
    given, alone = inputs(), Counts()
    with torch.no_grad():
        expected = first(torch.compile(build(), backend=alone)(given))
    torch._dynamo.reset()
    return given, expected, alone.graphs


@pytest.mark.slow
def test_another_model_under_inductor() -> None:
    model, pixels, capture = capture_of("timm")
    other = timm_vit()
    compiled = torch.compile(other)
    with torch.no_grad():
        with capture:
            model(pixels)
            inside = compiled(pixels)
        assert torch.equal(inside, compiled(pixels))
        torch.testing.assert_close(inside, other(pixels), atol=1e-5, rtol=0)
    assert len(capture.maps) == 2


def test_a_student_is_observed_while_its_teacher_is_compiled(tmp_path) -> None:
    student, backend = timm_vit(), Counts()
    teacher = torch.compile(timm_vit(), backend=backend, fullgraph=True)
    pixels = images(2)
    monitor = AttentionMonitor(student, pixels, every_n_steps=1, writers=[DirectoryWriter(tmp_path)])
    for step in range(2):
        with monitor.observe(step):
            with torch.no_grad():
                target = teacher(pixels)
            (student(pixels) - target).square().mean().backward()
    assert backend.graphs == 1


def test_a_compiled_model_is_served_on_another_thread() -> None:
    model, pixels, capture = capture_of("timm")
    backend = Counts()
    served, results = torch.compile(timm_vit(), backend=backend, fullgraph=True), []

    def serve() -> None:
        with torch.no_grad():
            results.append(served(pixels))

    serve()
    with torch.no_grad(), capture:
        model(pixels)
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
    assert torch.equal(*results)
    assert backend.graphs == 1


def test_a_compiled_model_that_is_called_from_a_captured_module_is_compiled_as_without() -> None:
    model, pixels, capture = capture_of("timm")
    backend, results = Counts(), []
    other = torch.compile(attends, backend=backend, fullgraph=True)
    tokens = torch.rand(1, 2, 5, 8)
    model.blocks[0].attn.qkv.register_forward_hook(lambda *_: results.append(other(tokens)))
    with torch.no_grad():
        model(pixels)
        for _ in range(20):
            with capture:
                model(pixels)
    assert backend.graphs <= 2  # guards know the function that is there meanwhile, which is the same each time
    assert len(set(map(float, results))) == 1


def test_other_models_are_exported_and_scripted_inside_a_context() -> None:
    model, pixels, capture = capture_of("timm")
    other = timm_vit()
    tokens = torch.rand(1, 2, 5, 8)

    class Scripted(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    with torch.no_grad(), capture:
        model(pixels)
        exported = torch.export.export(other, (pixels,)).module()
        scripted = torch.jit.script(Scripted())
        assert torch.equal(scripted(tokens), Scripted()(tokens))
    with torch.no_grad():
        torch.testing.assert_close(exported(pixels), other(pixels), atol=1e-6, rtol=0)
    assert "attnhook" not in str(exported.graph)


# --- process-wide state is counted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["nested", "overlapping"])
def test_compiled_models_leave_the_compiler_as_it_was_in_whatever_order_they_leave(order: str) -> None:
    before = compiler_stance()
    pixels = images(1)
    models = [torch.compile(timm_vit(), backend="eager") for _ in range(2)]
    captures = [AttentionCapture(model) for model in models]
    with torch.no_grad():
        for capture in captures:
            capture.__enter__()
        leaving = captures if order == "overlapping" else captures[::-1]
        leaving[0].__exit__(None, None, None)
        assert compiler_stance().stance == "force_eager"
        models[captures.index(leaving[1])](pixels)
        assert len(leaving[1].maps) == 2
        leaving[1].__exit__(None, None, None)
    assert compiler_stance() == before
    backend = Counts()
    torch.compile(lambda x: x.sin() + 1, backend=backend)(pixels)
    assert backend.graphs == 1


def test_threads_that_capture_compiled_models_leave_the_compiler_as_it_was() -> None:
    before, pixels, found = compiler_stance(), images(1), {}
    entered, left = [threading.Event() for _ in range(2)], threading.Event()

    def work(number: int) -> None:
        model = torch.compile(timm_vit(), backend="eager")
        if number:
            entered[0].wait(60)
        with torch.no_grad(), AttentionCapture(model) as capture:
            entered[number].set()
            (left if number else entered[1]).wait(60)
            model(pixels)
        found[number] = len(capture.maps)
        if not number:
            left.set()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: 2, 1: 2}
    assert compiler_stance() == before


def test_a_stance_that_somebody_else_sets_inside_a_context_stays() -> None:
    model = torch.compile(timm_vit(), backend="eager")
    try:
        with torch.no_grad(), AttentionCapture(model):
            torch.compiler.set_stance("eager_on_recompile")
        assert compiler_stance().stance == "eager_on_recompile"
    finally:
        torch.compiler.set_stance("default")


# --- other people's patches ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_patch(monkeypatch: pytest.MonkeyPatch):
    """Whatever happens to the function in a test is undone."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", SDPA)
    yield
    assert F.scaled_dot_product_attention is SDPA


def wrap(function, calls):
    def theirs(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return theirs


@pytest.mark.usefixtures("own_patch")
def test_patches_of_others_that_overlap_a_context_pile_up_nothing() -> None:
    model, pixels, capture = capture_of("timm")
    calls = []
    with torch.no_grad():
        for _ in range(100):
            capture.__enter__()
            before = F.scaled_dot_product_attention
            F.scaled_dot_product_attention = wrap(before, calls)
            model(pixels)
            assert len(capture.maps) == 2
            capture.__exit__(None, None, None)
            F.scaled_dot_product_attention = before
            assert F.scaled_dot_product_attention is SDPA
    assert len(calls) == 200


@pytest.mark.usefixtures("own_patch")
@pytest.mark.parametrize("restored", ["inside", "outside"])
def test_patches_of_others_that_overlap_a_captured_module_pile_up_nothing(restored: str) -> None:
    """Somebody patches the function while a module runs, and puts back what was there after it has ended, which is ours."""
    model, pixels, capture = capture_of("timm")
    bare = model(pixels)
    calls, theirs = [], []

    def patch(*_) -> None:
        theirs.append(F.scaled_dot_product_attention)
        F.scaled_dot_product_attention = wrap(theirs[-1], calls)

    def restore(*_) -> None:
        F.scaled_dot_product_attention = theirs.pop()

    for number in range(50):
        with torch.no_grad(), capture:
            handles = [model.blocks[0].attn.qkv.register_forward_hook(patch)]
            handles.append((model.blocks[0].attn if restored == "inside" else model).register_forward_hook(restore))
            assert torch.equal(model(pixels), bare)
            assert len(capture.maps) == 2
        for handle in handles:
            handle.remove()
        assert len(calls) == (number + 1) * (1 if restored == "inside" else 2)
    attends(torch.rand(1, 2, 5, 8))  # the first call after it sees that nobody captures any more


def test_what_is_imported_while_somebody_has_patched_torch_binds_torchs_own_function() -> None:
    """While a captured module runs, the patch is ours; while somebody else imports, it is theirs."""
    code = """
import os, sys, torch, timm, torch.nn.functional as F
from attnhook import AttentionCapture
import attnhook
torch.set_num_threads(1)
model, pixels = timm.create_model("test_vit").eval(), torch.rand(1, 3, 160, 160)
def ours():
    model.blocks[0].attn.qkv.register_forward_hook(lambda *_: attnhook.TraceableCapture and None)
    with torch.no_grad(), AttentionCapture(model) as capture:
        model(pixels)
def theirs():
    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda *args, **kwargs: own(*args, **kwargs)
    attnhook.TraceableCapture
    F.scaled_dot_product_attention = own
for patched in ours, theirs:
    if not os.fork():  # torch and timm are imported once, what is tested twice
        try:
            assert "attnhook.capture.traceable" not in sys.modules
            patched()
            assert "attnhook.capture.traceable" in sys.modules
            print(patched.__name__, len(attnhook.TraceableCapture(model, pixels)(pixels)[1]), flush=True)
        finally:
            os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.split() == ["ours", "6", "theirs", "6"], done.stderr


# --- other people's hooks -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("kind", ["timm", "timm, unfused", "transformers", "torchvision"])
def test_a_hook_of_the_users_that_attends_adds_no_record(kind: str, when: str) -> None:
    model, pixels, capture = capture_of(kind, rows="all")
    with torch.no_grad(), capture:
        model(pixels)
    expected = capture.maps
    tokens = torch.rand(1, 4, 7, 8)

    def attend(*_) -> None:
        F.scaled_dot_product_attention(tokens, tokens, tokens)
        torch.softmax(tokens, dim=-1)

    def register() -> None:
        for name in capture.block_names:
            model.get_submodule(name).register_forward_hook(attend)

    if when == "before":
        register()
        model.get_submodule(capture.block_names[0]).register_forward_pre_hook(attend)
    with torch.no_grad(), capture:
        if when == "inside":
            register()
        model(pixels)
    assert capture.maps.block_names == expected.block_names
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(capture.maps, expected, strict=True))


# --- what the caller holds ----------------------------------------------------------------------------------------------------------------


def clip() -> nn.Module:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    words = {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    vision = text | {"image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text | words, vision_config=vision, projection_dim=16)).eval()


@pytest.mark.parametrize("which", ["alone", "another model", "text tower"])
def test_what_the_caller_drops_is_freed(which: str) -> None:
    model = clip() if which == "text tower" else timm_vit()
    other = timm_vit()

    def work() -> bool:
        big = torch.zeros(2**20)
        gone = weakref.ref(big)
        with torch.no_grad(), AttentionCapture(model) as capture:
            if which == "text tower":
                model(input_ids=torch.tensor([[1, 5, 2]]), pixel_values=images(1, size=(32, 32)))
            else:
                model(images(1))
                if which == "another model":
                    other(images(1))
        assert len(capture.maps) == 2 - (which == "text tower")
        del big
        gc.collect()
        return gone() is None

    assert work()
