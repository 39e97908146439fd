"""The cost of a comparison beyond the bare forwards of its models, and its peak memory.

    python benchmarks/comparison.py                                   # ten models, 100 photos
    python benchmarks/comparison.py --models 3 --photos 10

Models are timm's ViT-S/16 and ViT-B/16 with random weights; photos are 640 x 480 structured noise in memory. One run measures CPU time on one
thread: building the models, preparing (photos, pixels, hashes of the weights), the bare forwards (inference mode, batch of one), `compare` with
its defaults (statistics of 32 photos, agreement of all pairs with baselines and intervals) without a cache, and `save`. Each model's bare
forwards run right before `compare` measures it, in the same process. Peak memory is measured in new processes, with one model and with all.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from peaks import peak_bytes, spawn
from PIL import Image

from attnhook import VisionModel, compare
from attnhook.comparison.model_runs import Subject
from attnhook.comparison.photographs import read_photos

NAMES = ("vit_small_patch16_224", "vit_base_patch16_224")


class Clock:
    """CPU seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, run: Callable[[], Any]) -> Any:
        """Run something and add its time under a name."""
        begin = time.process_time()
        result = run()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin
        return result


def model(number: int) -> VisionModel:
    """The same architectures with different weights."""
    torch.manual_seed(number)
    made = timm.create_model(NAMES[number % len(NAMES)]).eval()
    return VisionModel(made, name=f"model {number}")


def photos(count: int) -> list[Image.Image]:
    made = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        made.append(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC))
    return made


def bare(vision: VisionModel, pixels: list[torch.Tensor]) -> None:
    with torch.inference_mode():
        for one in pixels:
            vision.model(one)


def run_times(models: int, pictures: list[Image.Image]) -> dict[str, float]:
    """CPU seconds of the bare forwards, of building models, of preparing photos and hashes, of `compare` and of `save`."""
    clock = Clock()
    known, _ = clock.time("prepare", lambda: read_photos(pictures))

    def opened(number: int) -> VisionModel:
        """Load a model for `compare`; time the work that is not its own, which is subtracted below."""
        begin = time.process_time()
        vision = clock.time("build", partial(model, number))
        clock.time("prepare", lambda: Subject(f"model {number}", "spec").describe(vision))
        pixels = clock.time("prepare", lambda: [vision.preprocess(photo.read())[0] for photo in known])
        clock.time("bare", partial(bare, vision, pixels))
        clock.seconds["opened"] = clock.seconds.get("opened", 0.0) + time.process_time() - begin
        return vision

    named = {f"model {number}": partial(opened, number) for number in range(models)}
    found = clock.time("compare", lambda: compare(named, pictures, cache=None, progress=False))
    if found.failures:
        raise RuntimeError(f"a comparison that measured nothing: {found.failures[0]}")
    pairs = models * (models - 1) // 2
    if len(found.measurements) != models * len(pictures) or len(found.agreement()) != pairs:
        raise RuntimeError("a comparison with missing parts")
    with TemporaryDirectory() as folder:
        clock.time("save", lambda: found.save(folder, pictures=False))
    # Building the models is part of "opened"; what `compare` does again is what "prepare" took.
    clock.seconds["compare"] -= clock.seconds.pop("opened")
    return clock.seconds


def run_probe(models: int, count: int) -> int:
    """Peak resident bytes of a process that compares."""
    named = {f"model {number}": partial(model, number) for number in range(models)}
    compare(named, photos(count), cache=None, progress=False)
    return peak_bytes()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--models", type=int, default=10)
    made.add_argument("--photos", type=int, default=100)
    made.add_argument("--no-memory", action="store_true", help="time only")
    made.add_argument("--json", type=Path, help="also write everything here")
    made.add_argument("--probe", nargs=2, type=int, help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    if options.probe:
        print(run_probe(*options.probe))
        return 0
    seconds = run_times(options.models, photos(options.photos))
    print(f"{options.models} models x {options.photos} photos, CPU seconds, one thread, torch {torch.__version__}")
    for name, value in seconds.items():
        print(f"  {name:<8} {value:8.1f}")
    own = seconds["compare"] - seconds["prepare"]
    print(
        f"compare without loading, over the bare forwards: x{own / seconds['bare']:.3f} (goal: at most 1.1)", flush=True
    )
    if options.json:
        options.json.write_text(json.dumps(seconds | {"ratio": own / seconds["bare"]}, indent=1) + "\n")
    if not options.no_memory:
        for count in (1, options.models):
            peak = spawn(__file__, "--probe", count, 3)
            print(f"peak with {count} models, 3 photos: {peak / 2**20:,.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
