"""What watching attention costs a training run: CPU time of whole training steps (forward, backward, optimizer), with and without.

    python benchmarks/monitor.py                    # about ten minutes on one core
    python benchmarks/monitor.py --cases vit_small-b8 --repeats 41 --json monitor.json

Candidates of a case run interleaved in one process, each round in a random order; each time is divided by the bare step's of the same round, and
`bare again` is the bare step once more: the noise floor. `nothing due` calls `monitor.step` on steps that are not logged; `observe` wraps every
forward and writes its numbers; `logged` runs the probe (two images, numbers, overlays, a sheet of heads) after every step. The two small bounds
are held against what is added, timed on its own, as whole steps are too noisy to show it: the call of `step`; and the forward under `observe`
over the bare forward of the same round, as backward and optimizer run as they did. Numbers go to a writer that drops them, so that no disk is
measured.
Before anything is timed it is checked that hooks are gone between steps and that what was observed is right.
Does not measure: GPUs, compiled models, disks.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from overhead import configuration
from timing import Summary, interleave, ratios, summarise
from torch import nn

from attnhook import AttentionCapture, AttentionMonitor, attention_statistics

CASES: dict[str, tuple[str, int, int]] = {
    # name: model, batch, rounds
    "vit_small-b8": ("vit_small_patch16_224", 8, 21),
    "test_vit-b2": ("test_vit", 2, 400),
}
READOUT = "observe, readout rows"
FORWARD = "observe, readout rows, bare with its forward"
"""The bare step with its forward replaced by the observed one of the same round."""
CALL = "nothing due, bare with the call"
"""The bare step and, timed on its own where it stands, the one call that `nothing due` adds: finer than the noise of whole steps."""
BOUNDS = {
    ("vit_small-b8", CALL): 1.003,
    ("vit_small-b8", "observe, all rows"): 1.15,
    ("vit_small-b8", FORWARD): 1.02,
    ("test_vit-b2", CALL): 1.003,
}
_NEVER = 10**9


class DroppingWriter:
    """Counts what it is given, and keeps the last numbers."""

    def __init__(self) -> None:
        self.values: Mapping[str, float] = {}
        self.pictures = 0

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep."""
        self.values = values

    def image(self, tag: str, picture: Any, step: int) -> None:
        """Count."""
        self.pictures += 1

    def text(self, tag: str, text: str, step: int) -> None:
        """Drop."""

    def close(self) -> None:
        """Nothing is open."""


class Training:
    """A model that trains on one batch, and the ways to watch it."""

    def __init__(self, name: str, batch: int) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model(name, num_classes=10).train()
        size = self.model.patch_embed.img_size
        self.pixels, self.labels = torch.randn(batch, 3, *size), torch.arange(batch) % 10
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.probe = torch.rand(2, 3, *size)
        self.writer = DroppingWriter()
        self.steps = 0
        self.idle_seconds: list[float] = []  # of each call on a step on which nothing is due
        self.forward_seconds: dict[str, list[float]] = {}  # of each forward of a candidate, with what is around it

    def monitor(self, every: int | None = None) -> AttentionMonitor:
        """A monitor of the model, by default one that logs every step."""
        return AttentionMonitor(self.model, self.probe, every_n_steps=every, writers=[self.writer])

    def step(self, candidate: str = "", around: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        """One step, its forward inside a context."""
        begin = time.process_time()
        with around():
            output = self.model(self.pixels)
        self.forward_seconds.setdefault(candidate, []).append(time.process_time() - begin)
        nn.functional.cross_entropy(output, self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def candidates(self) -> dict[str, Callable[[], object]]:
        """What is timed, by name."""
        idle, live, cheap, logged = self.monitor(_NEVER), self.monitor(), self.monitor(), self.monitor()

        def nothing_due() -> None:
            self.step()
            begin = time.process_time()
            idle.step(self.steps)
            self.idle_seconds.append(time.process_time() - begin)

        def log() -> None:
            self.step()
            logged.step(self.steps)

        return {
            "bare": lambda: self.step("bare"),
            "bare again": self.step,
            "nothing due": nothing_due,
            "observe, all rows": lambda: self.step("", lambda: live.observe(self.steps, rows="all")),
            READOUT: lambda: self.step(READOUT, lambda: cheap.observe(self.steps, rows="readout")),
            "logged": log,
        }


def check(training: Training, candidates: Mapping[str, Callable[[], object]]) -> None:
    """What is timed is right: raises SystemExit where it is not."""
    before = hooks(training.model)
    with torch.no_grad(), AttentionCapture(training.model, rows="all") as capture:
        training.model(training.pixels)
    expected = attention_statistics(capture.maps, diversity=False)
    candidates["observe, all rows"]()
    for block in expected:
        got = training.writer.values[f"live/attention/{block.name}/entropy"]
        if abs(got - float(block.entropy.mean())) > 1e-5:
            raise SystemExit(f"{block.name}: expected entropy {float(block.entropy.mean())}, got {got}.")
    for run in candidates.values():
        run()
    if hooks(training.model) != before or not training.writer.pictures:
        raise SystemExit("hooks were left on the model, or nothing was logged.")


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def measure(name: str, repeats: int | None, warmup: int) -> dict[str, tuple[Summary, Summary]]:
    """Milliseconds and ratio of every candidate of a case."""
    model, batch, rounds = CASES[name]
    training = Training(model, batch)
    candidates = training.candidates()
    check(training, candidates)
    gc.collect()
    gc.freeze()
    seconds = interleave(candidates, repeats or rounds, warmup=warmup)
    gc.unfreeze()
    steps, count = seconds["bare"], len(seconds["bare"])
    calls = training.idle_seconds[-count:]
    bare, observed = (training.forward_seconds[name][-count:] for name in ("bare", READOUT))
    seconds[CALL] = [step + call for step, call in zip(steps, calls, strict=True)]
    seconds[FORWARD] = [step + after - before for step, before, after in zip(steps, bare, observed, strict=True)]
    of_base = ratios(seconds, dict.fromkeys(seconds, "bare"))
    return {c: (summarise([1e3 * s for s in seconds[c]]), summarise(of_base[c])) for c in seconds}


def idle_microseconds(calls: int = 100_000) -> float:
    """CPU time of one call of `step` on a step that is not logged."""
    monitor = Training("test_vit", 1).monitor(_NEVER)
    begin = time.process_time()
    for step in range(1, calls + 1):
        monitor.step(step)
    return 1e6 * (time.process_time() - begin) / calls


def table_row(case: str, candidate: str, milliseconds: Summary, ratio: Summary) -> str:
    bound = BOUNDS.get((case, candidate))
    verdict = "" if bound is None else f"<= {bound:g}: {'yes' if ratio.median <= bound else 'NO'}"
    cells = [case, candidate, f"{milliseconds.median:.2f}", f"{ratio.median:.4f}", f"{ratio.low:.4f}-{ratio.high:.4f}"]
    return f"| {' | '.join([*cells, str(ratio.repeats), verdict])} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--repeats", type=int, help="rounds that count (default: each case's own)")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before those (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--json", type=Path, help="also write everything here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = configuration(options.threads)
    print(*(f"{key}: {value}" for key, value in settings.items()), sep="\n")
    print(f"a call of step that logs nothing: {idle_microseconds():.2f} microseconds\n")
    columns = "case", "candidate", "CPU ms", "ratio", "quartiles", "rounds", "bound"
    print(f"| {' | '.join(columns)} |\n|---|---|{'---:|' * 4}---|", flush=True)
    found: list[dict[str, Any]] = []
    for case in options.cases:
        for candidate, (milliseconds, ratio) in measure(case, options.repeats, options.warmup).items():
            print(table_row(case, candidate, milliseconds, ratio), flush=True)
            found.append({"case": case, "candidate": candidate, "ms": asdict(milliseconds), "ratio": asdict(ratio)})
    if options.json:
        options.json.write_text(json.dumps({"configuration": settings, "results": found}, indent=1))
    late = [r for r in found if r["ratio"]["median"] > BOUNDS.get((r["case"], r["candidate"]), float("inf"))]
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
