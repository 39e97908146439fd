"""Many captures in one process: memory, hooks and living tensors have to stay where they are.

    python -m tests.soak                       # 10,000 captures, a few minutes on one core
    python -m tests.soak --captures 500 --json soak.json

Captures go round three tiny ViTs (timm, transformers, torchvision: three ways of seeing the operands) and the ways to use one: the
readout's row, the mean's, all rows with rollout and statistics, gradients with a backward, a forward that fails half-way. A third of them
follow each other in one thread, a third run in four threads, a third in four asyncio tasks whose captures overlap; all share the models.
Ten times on the way, after a garbage collection, the resident set, the hooks on all modules, the open function modes and the living tensors
are counted. Hooks, modes and tensors must not change at all; memory must grow by less than the bound per 1,000 captures: the slope of a line
through the counts after the first, which ends the warm-up. Exit status 1 if something grows.
Does not measure: GPUs, compiled models, time.
"""

import argparse
import asyncio
import gc
import json
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attnhook import (
    AttentionCapture,
    attention_statistics,
    gradient_rollout,
    heatmap,
    overlay,
    raw_attention,
    rollout,
)
from attnhook.imaging.geometry import ImageGeometry

BOUND_KIB = 64.0
"""Most that the resident set may grow per 1,000 captures."""

SIDE = 24
WORKERS = 4


@dataclass(frozen=True)
class Count:
    """What there was after some captures.

    Attributes:
        captures: How many.
        resident_kib: The resident set.
        hooks: Hooks on all modules of all models.
        modes: Open function modes.
        tensors: Living tensors that Python knows of.
    """

    captures: int
    resident_kib: int
    hooks: int
    modes: int
    tensors: int


class HalfWayError(Exception):
    """A forward that fails on purpose."""


def models() -> dict[str, nn.Module]:
    """Tiny ViTs, one for each way of seeing operands."""
    from timm.models.vision_transformer import VisionTransformer
    from torchvision.models import VisionTransformer as TorchvisionViT
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=SIDE,
        patch_size=8,
        num_labels=6,
    )
    return {
        "timm": VisionTransformer(SIDE, 8, embed_dim=32, depth=2, num_heads=4, num_classes=6).eval(),
        "transformers": ViTForImageClassification(config).eval(),
        "torchvision": TorchvisionViT(SIDE, 8, 2, 4, 32, 48, num_classes=6).eval(),
    }


def scores_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """What the model's classifier says."""
    output = model(pixels)
    scores: Tensor = output if isinstance(output, Tensor) else output.logits
    return scores


def read_out(model: nn.Module, pixels: Tensor) -> None:
    """The readout's row, up to a picture."""
    with torch.inference_mode(), AttentionCapture(model) as capture:
        scores_of(model, pixels)
    photo = ImageGeometry.identity((SIDE, SIDE))
    overlay(torch.zeros(3, SIDE, SIDE), heatmap(raw_attention(capture.maps).values[0], photo))


def averaged(model: nn.Module, pixels: Tensor) -> None:
    """The mean over patches, with a graph around."""
    with AttentionCapture(model, rows="mean") as capture:
        scores_of(model, pixels)
    capture.maps.stack()


def whole(model: nn.Module, pixels: Tensor) -> None:
    """All rows, followed and measured."""
    with torch.no_grad(), AttentionCapture(model, rows="all") as capture:
        scores_of(model, pixels)
    rollout(capture.maps)
    attention_statistics(capture.maps)


def backward(model: nn.Module, pixels: Tensor) -> None:
    """Gradients of a score."""
    images = pixels.clone().requires_grad_()
    with AttentionCapture(model, gradients=True) as capture:
        score = scores_of(model, images)[0, 1]
        torch.autograd.grad(score, images)
    gradient_rollout(capture.maps)


def half_way(model: nn.Module, pixels: Tensor) -> None:
    """A forward that fails in its last block."""
    last = [module for module in model.modules() if isinstance(module, nn.LayerNorm)][-2]

    here = threading.get_ident()

    def fail(*_: object) -> None:
        if threading.get_ident() == here:
            raise HalfWayError

    handle = last.register_forward_hook(fail)
    try:
        with AttentionCapture(model):
            scores_of(model, pixels)
    except HalfWayError:
        return
    finally:
        handle.remove()
    raise RuntimeError(
        "the forward did not fail: expected HalfWayError from its last block. Check which module carries the hook."
    )


Way = Callable[[nn.Module, Tensor], None]
WAYS: tuple[Way, ...] = (read_out, averaged, whole, backward, half_way)
Round = tuple[nn.Module, Way]


def one_after_the_other(rounds: Sequence[Round], pixels: Tensor) -> None:
    """In this thread."""
    for model, way in rounds:
        way(model, pixels)


def in_threads(rounds: Sequence[Round], pixels: Tensor) -> None:
    """In as many threads as there are workers, all at once."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(lambda one: one[1](one[0], pixels), rounds):
            pass


def in_tasks(rounds: Sequence[Round], pixels: Tensor) -> None:
    """In tasks that take turns between entering a capture, the forward and leaving it; each has a batch size of its own."""

    async def capture(model: nn.Module, batch: int) -> None:
        with AttentionCapture(model) as capture:
            await asyncio.sleep(0)
            scores_of(model, pixels[:1].expand(batch, -1, -1, -1))
            await asyncio.sleep(0)
        found = {tuple(block.rows.shape[:2]) for block in capture.maps}
        if found != {(batch, 4)}:
            raise RuntimeError(f"a capture of another task: expected rows of {batch} images and 4 heads, got {found}.")

    async def work(worker: int) -> None:
        for model, _ in rounds[worker::WORKERS]:
            await capture(model, worker + 1)

    async def everything() -> None:
        await asyncio.gather(*map(work, range(WORKERS)))

    with ThreadPoolExecutor(1) as own:  # the caller's thread may have an event loop
        own.submit(asyncio.run, everything()).result()


STYLES = (one_after_the_other, in_threads, in_tasks)


def count(captures: int, watched: dict[str, nn.Module]) -> Count:
    """Count what could grow.

    Args:
        captures: How many there were.
        watched: The models.

    Returns:
        The count.
    """
    gc.collect()
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_forward_hooks_always_called",
    )
    hooks = sum(len(getattr(m, kind)) for model in watched.values() for m in model.modules() for kind in kinds)
    tensors = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    return Count(captures, resident_kib(), hooks, torch._C._len_torch_function_stack(), tensors)


def resident_kib() -> int:
    """The resident set of this process."""
    import psutil

    resident: int = psutil.Process().memory_info().rss
    return resident // 1024


def soak(captures: int, counts: int = 10) -> list[Count]:
    """Capture many times, and count on the way.

    Args:
        captures: How often.
        counts: How many times it is counted, at equal distances.

    Returns:
        The counts.
    """
    torch.manual_seed(0)
    watched, pixels = models(), torch.randn(2, 3, SIDE, SIDE)
    rounds = [(model, way) for way in WAYS for model in watched.values()]
    found, step, done = [], max(captures // counts, 1), 0
    for _ in range(counts):
        for number, run in enumerate(STYLES):
            share = range(done + step * number // len(STYLES), done + step * (number + 1) // len(STYLES))
            run([rounds[one % len(rounds)] for one in share], pixels)
        done += step
        found.append(count(done, watched))
    return found


def slope(found: list[Count]) -> float:
    """How much memory grows, in KiB per 1,000 captures: least squares over the counts after the first."""
    warm = found[1:]
    x = torch.tensor([float(one.captures) for one in warm], dtype=torch.float64)
    y = torch.tensor([float(one.resident_kib) for one in warm], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return 1000 * float((x * y).sum() / (x * x).sum())


def growing(found: list[Count]) -> list[str]:
    """What is not as it was: empty if all is well."""
    wrong = []
    for name in ("hooks", "modes", "tensors"):
        numbers = [getattr(one, name) for one in found]
        if len(set(numbers)) > 1:
            wrong.append(f"{name}: expected {numbers[0]} all along, got {numbers}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--captures", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        *(f"{name}: {value}" for name, value in {"torch": torch.__version__, "threads": 1}.items() if name != "clock"),
        sep="\n",
    )
    found = soak(options.captures)
    print(f"{'captures':>9} {'resident KiB':>13} {'hooks':>6} {'modes':>6} {'tensors':>8}")
    for one in found:
        print(f"{one.captures:9,} {one.resident_kib:13,} {one.hooks:6} {one.modes:6} {one.tensors:8}")
    grown, wrong = slope(found), growing(found)
    print(f"resident set: {grown:+.1f} KiB per 1,000 captures (bound {BOUND_KIB:.0f})", *wrong, sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"slope_kib": grown, "counts": [asdict(one) for one in found]}, indent=1))
    return int(bool(wrong) or grown > BOUND_KIB)


if __name__ == "__main__":
    sys.exit(main())
