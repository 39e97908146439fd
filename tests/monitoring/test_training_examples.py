"""The scripts of docs/examples, run as a user runs them; their TensorBoard files are read back."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnhook.errors import MissingPackageError
from attnhook.zoo.demo_weights import backbone_weights

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
STEPS, EVERY = 5, 1
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
LOOP_STEPS = list(range(0, STEPS, EVERY))
OPTIMIZER_STEPS = list(range(0, STEPS + 1, EVERY))  # 0 is before training
KINDS = ("entropy", "relative_entropy", "distance", "sink_mass", "head_diversity")


def run_examples(*examples: tuple[str, ...], launcher: tuple[str, ...] = ("-m",)) -> str:
    """Scripts with the folder that they write to and other options, one after another in one process."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("sklearn")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    scripts = [(str(EXAMPLES / script), "--out", str(out), *options) for script, out, *options in examples]
    command = [sys.executable, *launcher, "tests.monitoring.scripts_run", json.dumps(scripts)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "the attention probe failed" not in run.stderr
    assert "could not write" not in run.stderr
    return run.stdout


def read_back(
    folder: Path, *, steps: list[int], blocks: int, heads: int, size: tuple[int, int], live: bool = False
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list(folder.glob("events.out.tfevents.*"))) == 1  # one process writes
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    names = {
        tag.removesuffix("/head_diversity").removeprefix("attention/")
        for tag in tags
        if tag[0] == "a" and "diversity" in tag
    }
    assert len(names) == blocks
    for name in names:
        of_heads = {
            f"attention/{name}/head{k}/{kind}" for k in range(heads) for kind in ("entropy", "sink_mass", "change")
        }
        assert tags >= {f"attention/{name}/{kind}" for kind in KINDS} | of_heads
        found = events.Scalars(f"attention/{name}/head{heads - 1}/entropy")
        assert [event.step for event in found] == steps
        assert all(0 < event.value < 6 for event in found)
        changes = events.Scalars(f"attention/{name}/change")
        assert [event.step for event in changes] == steps[1:]
        assert any(event.value > 0 for event in changes)
        if live:
            assert [event.step for event in events.Scalars(f"live/attention/{name}/entropy")] == steps
    for alarm in ("entropy_collapse", "dead_heads", "attention_sink", "not_finite"):
        counts = [event.value for event in events.Scalars(f"attention/alarms/{alarm}")]
        expected = (
            1 if blocks == 12 and alarm == "attention_sink" else 0
        )  # in the first block of DINOv2, on black canvases
        assert counts == [expected] * len(steps)
    assert set(events.Tags()["images"]) == {*(f"attention/overlay/{k}" for k in range(4)), "attention/heads/0"}
    changed = False
    for tag in events.Tags()["images"]:
        assert [event.step for event in events.Images(tag)] == steps
        pictures = [np.asarray(decoded(event)) for event in events.Images(tag)]
        changed |= bool((pictures[0] != pictures[-1]).any())
        height, width, _ = pictures[0].shape
        assert "overlay" not in tag or (width == size[1] and height > size[0])  # with a colour bar
        assert len(np.unique(pictures[-1].reshape(-1, 3), axis=0)) > 50
    assert changed  # by training


def decoded(event) -> Image.Image:
    return Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")


@pytest.mark.slow
def test_one_process(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("accelerate")
    trainers = ("train_lightning.py", "train_transformers.py")
    scripts = ("train_plain.py", *trainers)
    said = run_examples(*((script, tmp_path / script, f"--steps={STEPS}") for script in scripts))
    assert said.count("step 0: loss") == 1
    assert said.count("loss 0.") == len(LOOP_STEPS)
    read_back(tmp_path / "train_plain.py", steps=LOOP_STEPS, blocks=4, heads=4, size=(192, 192), live=True)
    for script in trainers:
        read_back(tmp_path / script, steps=OPTIMIZER_STEPS, blocks=4, heads=4, size=(192, 192))


@pytest.mark.slow
def test_the_demo_backbone_in_a_plain_loop(tmp_path: Path) -> None:
    try:
        backbone_weights()
    except MissingPackageError as error:
        pytest.skip(str(error))
    run_examples(("train_plain.py", tmp_path, "--model=demo", "--steps=2"))
    read_back(tmp_path, steps=[0, 1], blocks=12, heads=6, size=(224, 224), live=True)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    scripts = ("train_ddp.py", "train_fsdp2.py")
    said = run_examples(*((script, tmp_path / script, f"--steps={STEPS}") for script in scripts), launcher=TORCHRUN)
    assert said.count("loss") == 2 * len(LOOP_STEPS)
    for script in scripts:
        read_back(tmp_path / script, steps=LOOP_STEPS, blocks=4, heads=4, size=(192, 192))


def test_every_example_says_how_to_run_it_and_is_run() -> None:
    scripts = sorted(EXAMPLES.glob("train_*.py"))
    source = Path(__file__).read_text()
    assert len(scripts) == 5
    for script in scripts:
        assert f"docs/examples/{script.name} --out" in script.read_text().split('"""')[1]
        assert f'"{script.name}"' in source
        assert "from tests" not in script.read_text()


def test_digit_pairs_are_what_they_say() -> None:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("digits_of_the_examples", EXAMPLES / "digits.py")
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    pairs, others = digits.DigitPairs(50), digits.DigitPairs(50, seed=1)
    for pixels, targets in pairs:
        assert pixels.shape == (3, 32, 32)
        assert targets.sum() == 2
        quarters = (pixels[0] + 0.5).reshape(2, 16, 2, 16).sum(dim=(1, 3))
        assert int((quarters > 1).sum()) == 2
    assert torch.equal(pairs[7][0], digits.DigitPairs(8)[7][0])
    assert not any(torch.equal(one[0], other[0]) for one in pairs for other in others)
