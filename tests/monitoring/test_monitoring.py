"""The monitor changes no bit of a training run, whatever it is interleaved with; each guard is broken once to see that this would show."""

import contextlib
import functools

import pytest
import torch
from torch import nn

from attnhook import AttentionMonitor
from attnhook.errors import NothingCapturedError, ProbeError, UnsupportedModelError
from attnhook.running import training_state as guards
from tests.monitoring.monitored import (
    KINDS,
    SIZE,
    Hybrid,
    MemoryWriter,
    hook_count,
    probe_pixels,
    same,
    small_vit,
    train,
)

pytestmark = [  # what the compiler says of its own
    pytest.mark.filterwarnings("ignore:.*TF32.*"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def watch_every_step(model: nn.Module) -> AttentionMonitor:
    return AttentionMonitor(model, probe_pixels(), strict=True, writers=())


@functools.cache
def bare_run(name: str):
    return train(KINDS[name], None)


@pytest.mark.parametrize("name", KINDS)
def test_a_watched_run_is_the_same_to_the_last_bit(name: str) -> None:
    writer = MemoryWriter()
    watched = train(
        KINDS[name], lambda model: AttentionMonitor(model, probe_pixels(1), writers=[writer], strict=True, sheets=0)
    )
    expected = bare_run(name)
    for what in expected:
        assert same(expected[what], watched[what]), what
    assert sorted(writer.numbers) == list(range(20))
    live = [tag for tag in writer.numbers[7] if tag.startswith("live/")]
    assert bool(live) == KINDS[name].observable
    assert set(watched["hooks"]) == {0}


@contextlib.contextmanager
def seeded_and_not_put_back(model):
    torch.manual_seed(0)
    yield


def only_flags_are_put_back(module):
    training = module.training
    return lambda: setattr(module, "training", training)


BROKEN = {
    "flags": ("eager", {"_restored_later": lambda module: lambda: None}),
    "random numbers": ("hybrid", {"_own_random_numbers": seeded_and_not_put_back}),
    "buffers and attributes": ("hybrid", {"_restored_later": only_flags_are_put_back}),
}


@pytest.mark.parametrize("guard", BROKEN)
def test_each_guard_is_needed(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, patches = BROKEN[guard]
    for attribute, broken in patches.items():
        monkeypatch.setattr(guards, attribute, broken)
    assert not same(bare_run(name), train(KINDS[name], watch_every_step))


def test_without_autocast_off_the_cache_of_cast_weights_is_poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, pixels = nn.Linear(4, 4), torch.ones(1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            linear(pixels)
        linear(pixels).sum().backward()
    if linear.weight.grad is not None:
        pytest.skip("this torch keeps casts without a graph out of autocast's cache by itself")
    monkeypatch.setattr(guards, "_device_types", lambda model: [])
    assert not same(bare_run("autocast"), train(KINDS["autocast"], watch_every_step))


def test_the_probe_runs_without_autocast_and_without_a_graph() -> None:
    model, seen = small_vit(), []
    model.register_forward_hook(
        lambda *_: seen.append(
            (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        )
    )
    with torch.autocast("cpu", torch.bfloat16):
        AttentionMonitor(model, probe_pixels(), sheets=0, writers=()).step(0)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(False, False, False)]


def test_batch_norm_learns_nothing_from_the_probe() -> None:
    model = Hybrid().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    AttentionMonitor(model, probe_pixels(), strict=True, writers=()).step(0)
    assert same(before, dict(model.state_dict()))
    assert model.calls == 0
    assert model.stem[1].training
    assert not model.stem[3].training


@pytest.fixture
def process_group():
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


def test_what_a_sharded_module_holds_is_put_back(process_group) -> None:
    """FSDP2 gives a module a class of torch.distributed; buffers and attributes are still its own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, model = init_device_mesh("cpu", (1,)), Hybrid().train()
    for block in model.vit.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    AttentionMonitor(model, probe_pixels(), strict=True, sheets=0, writers=()).step(0)
    assert (model.calls, float(model.seen)) == (0, 0.0)
    model(probe_pixels()).sum().backward()
    assert model.calls == 1


def test_everything_is_put_back_after_a_failing_probe() -> None:
    model = Hybrid().train()
    monitor = AttentionMonitor(model, probe_pixels(), writers=[MemoryWriter()])
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()
    model.vit.blocks[1].register_forward_hook(fail)
    with pytest.raises(ProbeError) as said:  # the first one is always raised
        monitor.step(0)
    assert isinstance(said.value.__cause__, ArithmeticError)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(state, torch.get_rng_state())
    assert hook_count(model) == 1
    assert torch.is_grad_enabled()


def fail(*_):
    raise ArithmeticError("on purpose")


def test_a_later_failing_probe_is_reported_once_and_training_goes_on() -> None:
    model = small_vit()
    monitor, strict = (AttentionMonitor(model, probe_pixels(), strict=strict, writers=()) for strict in (False, True))
    monitor.step(0)
    strict.step(0)
    handle = model.blocks[1].register_forward_hook(fail)
    with pytest.warns(UserWarning, match="attention probe failed at step 1: .* got ArithmeticError: on purpose"):
        monitor.step(1)
    monitor.step(2)
    with pytest.raises(ProbeError):
        strict.step(1)
    handle.remove()
    assert monitor.step(3)


def test_gradients_are_left_alone() -> None:
    model = small_vit()
    model(probe_pixels()).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    AttentionMonitor(model, probe_pixels(), writers=()).step(0)
    assert same(before, {name: p.grad for name, p in model.named_parameters()})


def test_no_hook_and_no_work_between_logged_steps() -> None:
    model = small_vit()
    monitor = AttentionMonitor(model, probe_pixels(), every_n_steps=10, writers=())
    ran = []
    model.register_forward_hook(lambda *_: ran.append(1))
    assert [step for step in range(25) if monitor.step(step)] == [0, 10, 20]
    assert len(ran) == 3
    for step in range(21, 30):
        with monitor.observe(step):
            assert hook_count(model) == 1
    with monitor.observe(30):
        assert hook_count(model) > 1
        model(probe_pixels())
    assert hook_count(model) == 1


def test_observed_numbers_are_those_of_the_live_batch() -> None:
    from attnhook import AttentionCapture, attention_statistics

    torch.manual_seed(0)
    model, writer = small_vit().eval(), MemoryWriter()
    monitor = AttentionMonitor(model, probe_pixels(1), writers=[writer])
    pixels = torch.randn(3, 3, SIZE, SIZE)
    with AttentionCapture(model, rows="all") as capture:
        expected = model(pixels)
    with monitor.observe(5):
        assert torch.equal(model(pixels), expected)
    for block in attention_statistics(capture.maps):
        tag = f"live/attention/{block.name}"
        assert writer.numbers[5][f"{tag}/entropy"] == pytest.approx(float(block.entropy.mean()), abs=1e-5)
        assert writer.numbers[5][f"{tag}/head2/entropy"] == pytest.approx(float(block.entropy[:, 2].mean()), abs=1e-5)
        distance = float(block.distance_patches[:, 1].mean())
        assert writer.numbers[5][f"{tag}/head1/distance"] == pytest.approx(distance, abs=1e-5)
    assert writer.numbers[5]["live/attention/alarms/entropy_collapse"] == 0
    with monitor.observe(6, rows="readout"):
        model(pixels)
    row = capture.maps[-1].rows[:, :, 0].double()
    entropy = float(-(row * row.log()).sum(-1).mean())
    assert writer.numbers[6]["live/attention/blocks.1.attn/entropy"] == pytest.approx(entropy, abs=1e-5)
    assert not [tag for tag in writer.numbers[6] if "alarms" in tag or "distance" in tag]


def test_observing_keeps_no_operand_alive() -> None:
    import weakref

    model = small_vit().eval()
    monitor, kept = AttentionMonitor(model, probe_pixels(1), writers=[MemoryWriter()]), []
    model.blocks[0].attn.qkv.register_forward_hook(
        lambda m, i, output: kept.append(weakref.ref(output.untyped_storage()))
    )
    with monitor.observe(0), torch.no_grad():
        model(probe_pixels())
        assert kept[0]() is None


@pytest.mark.parametrize("name", ["compiled", "compiled in place", "compiled blocks"])
def test_observing_a_compiled_model_is_refused(name: str) -> None:
    model = KINDS[name].wrap(small_vit())
    monitor = AttentionMonitor(model, probe_pixels(), writers=())
    with (
        pytest.raises(UnsupportedModelError, match=r"that is compiled.*Call monitor\.step\(step\)") as said,
        monitor.observe(0),
    ):
        pass
    assert "strict" not in str(said.value)
    assert monitor.step(0)  # which the message advises
    with pytest.raises(UnsupportedModelError), monitor.observe(1):  # no observation is left open
        pass


def test_observing_nothing_is_an_error() -> None:
    monitor = AttentionMonitor(small_vit(), probe_pixels(), writers=())
    with pytest.raises(NothingCapturedError), monitor.observe(0):
        pass
    with pytest.raises(ZeroDivisionError), monitor.observe(1):
        _ = 1 / 0


def test_what_a_forward_caches_serves_training_afterwards() -> None:
    """A probe in inference mode would leave tensors that no backward takes."""
    from tests.models import TIMM

    model = next(case.build() for case in TIMM if case.name == "eva_rope").train()
    AttentionMonitor(model, torch.rand(1, 3, 24, 40), writers=()).step(0)
    model(torch.rand(2, 3, 24, 40)).sum().backward()
