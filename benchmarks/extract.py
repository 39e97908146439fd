"""What an extraction costs beside the bare loop over the same photos, and what a second process gains.

    python benchmarks/extract.py                          # 2,048 photos, three rounds: half an hour
    python benchmarks/extract.py --photos 256 --rounds 1

ViT-S/16 of timm at 224 px with random weights, one thread; photos are JPEG files of about 500 x 375 px, cut out of scikit-image's photographs.
Bare is `torch.inference_mode`, the same loader, batches and worker processes, no capture, nothing written. `extract` keeps the class token's
rows of all blocks in float16 with their statistics; its time is from the call to its return: listing, hashing the weights, writing and
closing the index are in it. Wall time, each round in a new random order. The second part runs one and two processes under torchrun, without
reading ahead, and compares all files.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timing import interleave, summarise

from attnhook import AttentionCapture, ExtractedMaps, VisionModel, extract
from attnhook.extraction.batches import PhotoBatches, load_batches
from attnhook.extraction.listings import Listing, write_listing
from attnhook.extraction.sources import open_source

NAMES = ("astronaut", "chelsea", "coffee", "rocket")
SHARD = 256


def model() -> VisionModel:
    """The same weights in every process."""
    torch.manual_seed(0)
    made = timm.create_model("vit_small_patch16_224").eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("qkv.weight"):
                weight[: 2 * weight.shape[1]] *= 8  # far from uniform, so that a wrong row shows
    return VisionModel(made, name="timm:vit_small_patch16_224")


def make_photos(folder: Path, count: int) -> None:
    """Crops of photographs, as JPEG files."""
    import skimage

    whole = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in NAMES]
    rng = np.random.default_rng(0)
    for number in range(count):
        photo = whole[number % len(whole)]
        side = rng.uniform(0.5, 1.0)
        width, height = int(photo.width * side), int(photo.height * side)
        left, top = (int(rng.integers(0, spare + 1)) for spare in (photo.width - width, photo.height - height))
        crop = photo.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC)
        crop.save(folder / f"{number:06d}.jpg", quality=90)


def bare(vision: VisionModel, photos: Path, scratch: Path, *, batch_size: int, workers: int) -> None:
    """The loop without attnhook's capture, over the same batches."""
    source = open_source(photos)
    write_listing(source, scratch / "listing.arrow", shard_size=SHARD)
    listing = Listing(scratch / "listing.arrow")
    batches, shards = PhotoBatches(source, listing, vision.preprocessing), listing.shards()
    seen = 0
    with torch.inference_mode():
        for batch in load_batches(batches, shards, batch_size=batch_size, num_workers=workers, pinned=False):
            for places, inputs in batch.groups:
                vision.model(inputs.pixels)
                seen += len(places)
    if seen != len(list(photos.iterdir())):
        raise RuntimeError("a bare loop that missed photos")


def extracted(vision: VisionModel, photos: Path, out: Path, *, batch_size: int, workers: int) -> ExtractedMaps:
    return extract(
        vision, photos, out, blocks=None, batch_size=batch_size, num_workers=workers, shard_size=SHARD, progress=False
    )


def check(vision: VisionModel, photos: Path, maps: ExtractedMaps) -> None:
    """Every photo is there, and a few of them are what a capture of each alone gives."""
    if len(maps) != len(list(photos.iterdir())) or maps.errors:
        raise RuntimeError(f"an extraction with missing photos: {maps}")
    for number in range(0, len(maps), max(1, len(maps) // 5)):
        pixels, _ = vision.preprocess(photos / maps.keys[number])
        with torch.no_grad(), AttentionCapture(vision.model) as capture:
            vision.model(pixels)
        for one, other in zip(maps.maps(number), capture.maps, strict=True):
            error = (one.rows - other.rows).abs()
            if not (error <= other.rows / 2048 + 1e-5).all():
                raise RuntimeError(f"a wrong row: {maps.keys[number]} {one.name} is off by {float(error.max()):.2g}")


def run_times(photos: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Bare and `extract` in turns; what was written is checked."""
    vision = model()
    with TemporaryDirectory() as scratch:
        runs = iter(range(10_000))
        arguments = {"batch_size": options.batch_size, "workers": options.workers}
        candidates = {
            "bare": lambda: bare(vision, photos, Path(scratch), **arguments),
            "extract": lambda: extracted(vision, photos, Path(scratch) / str(next(runs)), **arguments),
        }
        seconds = interleave(candidates, options.rounds, warmup=0, clock=time.perf_counter)
        maps = extracted(vision, photos, Path(scratch) / "0", **arguments)
        check(vision, photos, maps)
        size = sum(path.stat().st_size for path in (Path(scratch) / "0").rglob("*") if path.is_file())
        index = (Path(scratch) / "0" / "index.parquet").stat().st_size
    for name, values in seconds.items():
        found = summarise(values)
        rate = options.photos / found.median
        print(f"  {name:<8} {found.median:7.1f} s ({found.low:.1f}-{found.high:.1f})  {rate:6.1f} photos a second")
    shares = [a / b for a, b in zip(seconds["bare"], seconds["extract"], strict=True)]
    spread = f"{min(shares):.3f}-{max(shares):.3f}"
    print(f"throughput of extract over bare: x{statistics.median(shares):.3f} ({spread}; goal: at least 0.95)")
    print(f"bytes a photo: {size / options.photos:,.0f}, of which index {index / options.photos:,.0f}", flush=True)
    return {"seconds": seconds, "throughput": shares, "bytes": size / options.photos}


def run_processes(photos: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One process against two, in turns: seconds of `extract` in the slowest, and the files."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    digests = set()
    for _ in range(options.rounds):
        for processes, values in seconds.items():
            with TemporaryDirectory() as out:
                values.append(spawn(processes, photos, Path(out) / "maps", options.batch_size))
                digests.add(content(Path(out) / "maps"))
    if len(digests) != 1:
        raise RuntimeError("two processes wrote other files than one")
    gains = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    for processes, values in seconds.items():
        print(f"  {processes} process{'es' if processes > 1 else '  '} {statistics.median(values):7.1f} s")
    print(
        f"two processes over one: x{statistics.median(gains):.2f} ({min(gains):.2f}-{max(gains):.2f}; goal: at least 1.8), same files"
    )
    return {"processes": seconds, "gains": gains}


def spawn(processes: int, photos: Path, out: Path, batch_size: int) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", __file__]
    probe = [*command, "--probe", photos, out, "--batch-size", str(batch_size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    return max(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("seconds"))


def content(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name[0] != ".":
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def probe(photos: Path, out: Path, batch_size: int) -> None:
    vision = model()
    with torch.inference_mode():
        vision.model(torch.zeros(1, 3, 224, 224))  # what only the first forward does
    begin = time.perf_counter()
    extracted(vision, photos, out, batch_size=batch_size, workers=0)
    print(f"seconds {time.perf_counter() - begin:.3f}", flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--photos", type=int, default=2048)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--workers", type=int, default=1, help="processes that read photos, beside the model's")
    made.add_argument("--scale-photos", type=int, default=512, help="photos of the second part; 0 leaves it out")
    made.add_argument("--json", type=Path, help="also write everything here")
    made.add_argument("--probe", nargs=2, type=Path, help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    if options.probe:
        probe(*options.probe, options.batch_size)
        return 0
    print(
        f"{options.photos} photos, batches of {options.batch_size}, {options.workers} workers, torch {torch.__version__}"
    )
    with TemporaryDirectory() as photos:
        make_photos(Path(photos), options.photos)
        found = run_times(Path(photos), options)
    if options.scale_photos:
        with TemporaryDirectory() as photos:
            make_photos(Path(photos), options.scale_photos)
            found |= run_processes(Path(photos), options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
