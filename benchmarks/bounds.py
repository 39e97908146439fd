"""Every figure that has a bound, measured in one run and held against it: figure, goal, measured, the peer beside it.

    python benchmarks/bounds.py --json bounds.json                # about an hour, more where the machine is busy
    python benchmarks/bounds.py --only batch overlay --peer peer

Each script runs in a process of its own, one after the other, and checks its own results; what it measures and how stands there. Where a
figure differs from process to process by more than from round to round, as ratios of short forwards do by where their memory happens to lie,
and its goal is near, the script runs in several processes: what counts is the median of what all of them found, with the lowest and the highest
beside it. Where the margin is wide, one process and few rounds are enough. Exit status 1 if a figure is short of its goal, or a script failed.
Goals are ceilings, not the best that was ever measured.
Peers that are packages of their own come in with `--peer FOLDER`
(`pip install --no-deps --target FOLDER grad-cam torchcam opencv-python-headless`).
"""

import argparse
import json
import math
import operator
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
ALL = "attnhook, all blocks"
MEBIBYTE = 2**20
_GOALS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Bound:
    """One figure.

    Attributes:
        figure: What it is.
        goal: `<=` or `>=`.
        bound: The goal's number.
        read: The figure in what a script wrote.
        peers: Those of peers, likewise, by name.
    """

    figure: str
    goal: str
    bound: float
    read: Callable[[Any], float]
    peers: Callable[[Any], dict[str, float]] = lambda _: {}


@dataclass(frozen=True)
class Measurement:
    """One script and what is read in what it wrote.

    Attributes:
        script: Its name.
        arguments: Of its command line.
        bounds: The figures.
        processes: How many processes it runs in.
    """

    script: str
    arguments: list[str]
    bounds: list[Bound]
    processes: int = 1


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    figure: str
    goal: str
    measured: float
    held: bool
    peer: str
    runs: list[float]  # what each process found


def result(found: Any, case: str, candidate: str, field: str = "ratio") -> float:
    """The median of one candidate of a case, in the files of `overhead.py`, `rollout.py` and `monitor.py`."""
    one = next(r for r in found["results"] if (r["case"], r["candidate"]) == (case, candidate))
    return median(one[field])


def median(value: Any) -> float:
    return float(value["median"] if isinstance(value, dict) else value)


def ratio(figure: str, case: str, candidate: str, bound: float, *peers: str) -> Bound:
    return Bound(
        figure,
        "<=",
        bound,
        lambda found: result(found, case, candidate),
        lambda found: {peer: result(found, case, peer) for peer in peers},
    )


def extra(figure: str, case: str, candidate: str, mebibytes: float) -> Bound:
    return Bound(figure, "<=", mebibytes, lambda found: result(found, case, candidate, "extra_bytes") / MEBIBYTE)


def peak_a_token(found: Any, tokens: int) -> float:
    lines = {line["candidate"]: line["extra_bytes"] for line in found["results"] if line["tokens"] == tokens}
    return float(lines["backward"] + lines["attnhook, gradient_rollout"]) / tokens / 1024


def gradient_time(tokens: int) -> Bound:
    """A gradient method's time over the forward and backward that it needs anyway."""

    def read(found: Any) -> float:
        name = "attnhook, gradient_rollout"
        line = next(one for one in found["results"] if (one["tokens"], one["candidate"]) == (tokens, name))
        return float(line["ratio"]["median"])

    return Bound(f"gradient rollout over forward and backward, {tokens:,} tokens", "<=", 1.25, read)


def photos(name: str, field: str) -> Callable[[Any], float]:
    return lambda found: median(found[name][field])


def overlay_peer(name: str) -> Callable[[Any], float]:
    return lambda found: found[name]["times attnhook"]["median"]


PEERS = "rows alone", "timm AttentionExtract"
LONG, TINY, TORCHVISION = "vit_small-1024px-b1", "vit_tiny-b1", "torchvision_vit_b_16-b1"
COMPILED, TRACEABLE = "vit_tiny-b1-compiled", "TraceableCapture, compiled"
READOUT = "observe, readout rows, bare with its forward"
IDLE = "nothing due, bare with the call"
ANSWER, EAGER = "attnhook, rows of every token", "eager, output_attentions"
ROWS = "--candidates", "bare again", ALL, *PEERS, "--cases"
BATCH = "--candidates", "bare again", ALL, "--no-memory", "--repeats", "4", "--warmup", "1", "--cases"
LONG_ROWS = "--cases", LONG, "--candidates", ALL
ROLLOUT = "--candidates", "attnhook, rollout", "attnhook, entropy", "--cases"


def batch(figure: str, case: str) -> Measurement:
    """Rows of a large batch, in processes that run no other: after another model's the heap is another."""
    return Measurement("overhead", [*BATCH, case], [ratio(figure, case, ALL, 1.02)], processes=3)


MEASUREMENTS: dict[str, Measurement] = {
    "image": Measurement(
        "overhead",
        [*ROWS, TINY, "--no-memory", "--repeats", "150"],
        [ratio("rows of all blocks, ViT-Ti b1", TINY, ALL, 1.06, *PEERS)],
        processes=3,
    ),
    "compiled": Measurement(
        "overhead",
        ["--cases", COMPILED, "--no-memory", "--repeats", "100"],
        [ratio("rows of all blocks, compiled ViT-Ti b1, over the compiled model", COMPILED, TRACEABLE, 1.03)],
        processes=3,
    ),
    "rollout": Measurement(
        "rollout",
        ["--candidates", "attnhook, rollout", "--cases", "1,025 tokens", "--no-memory", "--repeats", "7"],
        [ratio("rollout, 1,025 tokens", "1,025 tokens", "attnhook, rollout", 1.25)],
    ),
    "long rollout": Measurement(
        "rollout",
        [*ROLLOUT, "4,097 tokens", "--repeats", "3", "--no-memory"],
        [
            ratio("rollout, 4,097 tokens", "4,097 tokens", "attnhook, rollout", 1.45),
            ratio("entropy of all blocks, 4,097 tokens", "4,097 tokens", "attnhook, entropy", 1.6),
        ],
    ),
    "rollout memory": Measurement(
        "rollout",
        ["--candidates", "attnhook, rollout", "--cases", "4,097 tokens", "--repeats", "1", "--processes", "3"],
        [extra("rollout's memory, 4,097 tokens, MiB", "4,097 tokens", "attnhook, rollout", 200)],
    ),
    "torchvision": Measurement(
        "overhead",
        [*ROWS, TORCHVISION, "--no-memory", "--repeats", "25"],
        [ratio("rows of all blocks, torchvision ViT-B b1", TORCHVISION, ALL, 1.06)],
        processes=3,
    ),
    "batch": batch("rows of all blocks, ViT-B b8", "vit_base-b8"),
    "torchvision batch": batch("rows of all blocks, torchvision ViT-B b8", "torchvision_vit_b_16-b8"),
    "1,025 tokens": Measurement(
        "overhead",
        [*ROWS, "vit_small-512px-b1", "--no-memory", "--repeats", "7", "--warmup", "1"],
        [ratio("rows of all blocks, 1,025 tokens", "vit_small-512px-b1", ALL, 1.02, *PEERS)],
        processes=3,
    ),
    "long": Measurement(
        "overhead",
        [*LONG_ROWS, "--no-memory", "--repeats", "3", "--warmup", "1"],
        [ratio("rows of all blocks, 4,097 tokens", LONG, ALL, 1.02)],
        processes=3,
    ),
    "memory": Measurement(
        "overhead",
        [*LONG_ROWS, "--repeats", "1", "--warmup", "0"],
        [extra("memory beyond bare, 4,097 tokens, MiB", LONG, ALL, 32)],
        processes=3,
    ),
    "gradients": Measurement(
        "gradients",
        ["--candidates", "attnhook, gradient_rollout", "--tokens", "1025", "4097"],
        [
            Bound(
                "gradient rollout, KiB a token at 4,097 over 1,025 tokens",
                "<=",
                1.1,
                lambda found: peak_a_token(found, 4097) / peak_a_token(found, 1025),
            ),
            gradient_time(1025),
            gradient_time(4097),
        ],
    ),
    "monitor": Measurement(
        "monitor",
        ["--cases", "vit_small-b8", "--repeats", "4", "--warmup", "1"],
        [
            ratio("a step on which nothing is due, ViT-S b8", "vit_small-b8", IDLE, 1.003, "nothing due"),
            ratio("observe, statistics of all rows, ViT-S b8", "vit_small-b8", "observe, all rows", 1.15),
            ratio("observe, readout rows, ViT-S b8", "vit_small-b8", READOUT, 1.02, "observe, readout rows"),
        ],
        processes=3,
    ),
    "answers": Measurement(
        "answering",
        ["--repeats", "4", "--processes", "1"],
        [
            ratio("rows of an answer of 64 tokens, 600 image tokens, over generate", "answer", ANSWER, 1.1, EAGER),
            extra("memory beyond generate, MiB", "answer", ANSWER, 64),
        ],
        processes=3,
    ),
    "comparison": Measurement(
        "comparison",
        ["--no-memory", "--photos", "100"],
        [Bound("ten models x 100 photos over bare forwards", "<=", 1.1, lambda found: found["ratio"])],
    ),
    "overlay": Measurement(
        "overlay",
        [],
        [
            Bound("overlay of 1024 x 768, ms", "<=", 8, lambda found: found["attnhook, overlay of a heat map"]["ms"]),
            Bound("matplotlib's colours over overlay", ">=", 1, overlay_peer("matplotlib, colormap and blend")),
        ],
    ),
    "photos": Measurement(
        "whole_photos",
        [],
        [
            Bound("attend over decoding and bare forward, ViT-S b1", "<=", 1.15, photos("attend", "ratio")),
            Bound("measured geometry beyond its four calls, ms", "<=", 350, photos("geometry, measured", "beyond")),
            Bound("measured geometry, looked up again, ms", "<=", 1, photos("geometry, looked up again", "ms")),
            Bound("figure of 12 megapixels over matplotlib's", "<=", 1, photos("figure of 12 megapixels", "ratio")),
        ],
    ),
    "extract": Measurement(
        "extract",
        ["--rounds", "1", "--photos", "1024"],
        [
            Bound(
                "extract's throughput over the bare loop's", ">=", 0.95, lambda f: statistics.median(f["throughput"])
            ),
            Bound("two processes over one", ">=", 1.8, lambda found: statistics.median(found["gains"])),
        ],
    ),
}
WITH_PEER = {
    "overlay": [
        Bound("grad-cam over overlay", ">=", 1, overlay_peer("grad-cam, show_cam_on_image")),
        Bound("torchcam over overlay", ">=", 1, overlay_peer("torchcam, overlay_mask")),
    ],
}


def run_script(name: str, arguments: list[str], folder: Path) -> Any:
    """Run a benchmark, its table on stdout, and read what it wrote."""
    written = folder / f"{name}.json"
    written.unlink(missing_ok=True)  # an earlier process's
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments, "--json", str(written)]
    print(f"\n{name}: {' '.join(command[1:-2])}", flush=True)
    done = subprocess.run(command, check=False)  # noqa: S603
    if not written.exists():
        raise RuntimeError(f"{name} failed: exit status {done.returncode}")
    return json.loads(written.read_text())


def run(one: Measurement, folder: Path) -> list[Any]:
    """Run a measurement in its processes, one after the other.

    Args:
        one: The measurement.
        folder: For what the scripts write.

    Returns:
        What each process wrote.
    """
    return [run_script(one.script, one.arguments, folder) for _ in range(one.processes)]


def held_against(bound: Bound, found: list[Any]) -> Row:
    """One figure, the median of what the processes found, held against its goal."""
    runs = [bound.read(one) for one in found]
    measured = statistics.median(runs)
    peers = [bound.peers(one) for one in found]
    beside = ", ".join(f"{name} {statistics.median(one[name] for one in peers):.3f}" for name in peers[0])
    held = _GOALS[bound.goal](measured, bound.bound)
    return Row(bound.figure, f"{bound.goal} {bound.bound:g}", measured, held, beside, runs)


def import_seconds(rounds: int = 11) -> float:
    """What `import attnhook` takes beyond torch, in fresh processes: the median."""
    code = "import torch, time; begin = time.process_time(); import attnhook; print(time.process_time() - begin)"
    command = [sys.executable, "-c", code]
    runs = (subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(rounds))  # noqa: S603
    return statistics.median(float(done.stdout) for done in runs)


def figure(row: Row) -> str:
    """What was measured; of several processes the lowest and the highest, too, and how many they were."""
    many = len(row.runs)
    spread = f" ({min(row.runs):.3f} to {max(row.runs):.3f}, {many} processes)" if many > 1 else ""
    return f"{row.measured:.3f}{spread}"


def table(rows: list[Row]) -> str:
    lines = ["| figure | goal | measured | | peer |", "|---|---:|---:|---|---|"]
    lines += [f"| {r.figure} | {r.goal} | {figure(r)} | {'' if r.held else 'SHORT'} | {r.peer} |" for r in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=["import", *MEASUREMENTS], metavar="NAME")
    parser.add_argument("--peer", type=Path, help="folder that the peers' packages were installed to")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args(arguments)
    chosen = options.only or ["import", *MEASUREMENTS]
    rows: list[Row] = []
    begin = time.monotonic()
    if "import" in chosen:
        rows.append(held_against(Bound("import beyond torch, s", "<=", 0.1, lambda _: import_seconds()), [None]))
    with TemporaryDirectory() as folder:
        for name in (name for name in MEASUREMENTS if name in chosen):
            one = MEASUREMENTS[name]
            beside = options.peer is not None and name in WITH_PEER
            peer = ["--peer", str(options.peer)] if beside else []
            bounds = [*one.bounds, *(WITH_PEER[name] if beside else [])]
            start = time.monotonic()
            try:
                found = run(replace(one, arguments=[*one.arguments, *peer]), Path(folder))
            except RuntimeError as error:  # the others are still to be measured
                print(error)
                rows += [
                    Row(bound.figure, f"{bound.goal} {bound.bound:g}", math.nan, False, "", []) for bound in bounds
                ]
            else:
                rows += [held_against(bound, found) for bound in bounds]
            print(f"{name}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
            if options.json:  # after each script, so that an interrupted run is not lost
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(f"\n{table(rows)}\n\n{(time.monotonic() - begin) / 60:.0f} minutes")
    return 0 if all(row.held for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
