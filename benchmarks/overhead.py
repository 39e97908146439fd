"""What it costs to capture class-token rows: CPU time and peak memory, beside the peers that give whole matrices.

    python benchmarks/overhead.py                                        # everything: about an hour on one core
    python benchmarks/overhead.py --cases vit_tiny-b1 vit_base-b8 --candidates "attnhook, all blocks" --no-memory --json overhead.json

Time is process CPU time. Candidates of a case run interleaved in one process, each round in a random order; each time is divided by the bare
forward's of the same round, and `bare again` is the bare forward once more: the noise floor. The measured region of attnhook is entering the
context, the forward, leaving it and reading every block's rows; `AttentionCapture(...)` is made once, its own cost stands beside. In the
compiled case the compiled model takes the place of the bare one, and `TraceableCapture` is timed from its call to the rows of its maps;
compiling comes before.
Peak memory: a fresh process per candidate runs it twice and reports the peak of the second run; the base's peak is subtracted.
Every result is checked before anything is timed; a wrong one ends the benchmark with exit status 1.
Does not measure: GPUs, training, rows="all".
"""

import argparse
import datetime
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from overhead_cases import CASES, Candidate, Case, CheckError
from peaks import peak_of_second_run, spawn
from timing import Summary, extra_memory, interleave, ratios, summarise

from attnhook import AttentionCapture

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        case: Name of the case.
        candidate: Name of the candidate.
        base: What its ratio and memory refer to; None for a bare forward.
        milliseconds: CPU time of one run.
        ratio: To the base of the same round.
        row_error: Largest error of a captured row; None where none is compared.
        extra_bytes: Peak memory beyond the base's; None if not measured.
        construction_ms: CPU time of constructing the capture; None for others.
    """

    case: str
    candidate: str
    base: str | None
    milliseconds: Summary
    ratio: Summary | None
    row_error: float | None
    extra_bytes: float | None = None
    construction_ms: float | None = None


def checked(candidates: Mapping[str, Candidate]) -> dict[str, float]:
    """Run every candidate once and check what it gives; raises `CheckError`, else returns the errors by name."""
    errors = {}
    for name, candidate in candidates.items():
        result = candidate.run()
        if candidate.check is not None:
            try:
                errors[name] = candidate.check(result)
            except CheckError as error:
                raise CheckError(f"{name}: {error}") from None
        del result  # the next candidate's matrices may need its memory
    return errors


def measure(
    case: str,
    candidates: Mapping[str, Candidate],
    repeats: int,
    *,
    warmup: int = 3,
    clock: Callable[[], float] = time.process_time,
) -> list[Result]:
    """Check, then time the candidates of a case.

    Args:
        case: Its name.
        candidates: Its candidates, every base among them.
        repeats: Rounds that count.
        warmup: Rounds that do not.
        clock: Seconds.

    Returns:
        One result for each candidate.

    Raises:
        CheckError: If a candidate's result is wrong; nothing is timed then.
    """
    errors = checked(candidates)
    gc.collect()
    gc.freeze()  # a collection during a run then does not walk the imported libraries
    seconds = interleave({name: c.run for name, c in candidates.items()}, repeats, warmup=warmup, clock=clock)
    gc.unfreeze()
    bases = bases_of(candidates)
    of_base = ratios(seconds, bases)
    return [
        Result(
            case,
            name,
            bases.get(name),
            summarise([1e3 * value for value in seconds[name]]),
            summarise(of_base[name]) if name in of_base else None,
            errors.get(name) if name.startswith(("attnhook", "TraceableCapture")) else None,
        )
        for name in candidates
    ]


def bases_of(candidates: Mapping[str, Candidate]) -> dict[str, str]:
    return {name: candidate.base for name, candidate in candidates.items() if candidate.base is not None}


def chosen(candidates: Mapping[str, Candidate], names: list[str] | None) -> dict[str, Candidate]:
    """The named candidates with their bases and the noise floor; all if none is named. Names that this case lacks are skipped."""
    if names is None:
        return dict(candidates)
    kept = {name for name in candidates if name in names or is_noise_floor(name)}
    bases = {candidates[name].base for name in kept}
    return {name: c for name, c in candidates.items() if name in kept or name in bases}


def is_noise_floor(name: str) -> bool:
    """Whether a candidate is its own base once more."""
    return name.endswith(" again")


def construction_ms(model: torch.nn.Module, blocks: int | None, repeats: int = 20) -> float:
    """Median CPU time of constructing a capture."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        AttentionCapture(model, blocks=blocks, rows="cls")
        times.append(1e3 * (time.process_time() - begin))
    return statistics.median(times)


# --- memory -------------------------------------------------------------------------------------------------------------------------------


def run_probe(case: str, candidate: str) -> int:
    """In a fresh process: the peak of one candidate, in bytes."""
    return peak_of_second_run(Case(CASES[case]).candidates()[candidate].run)


def spawn_probe(case: str, candidate: str, threads: int) -> int:
    """Run `run_probe` in a fresh process."""
    return spawn(__file__, "--probe", case, candidate, "--threads", threads)


# --- report -------------------------------------------------------------------------------------------------------------------------------


def configuration(threads: int) -> dict[str, str | int]:
    """What the numbers depend on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 0,
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
        "clock": "process CPU time",
    }


def cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", information.read_text()) if information.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def table_head() -> str:
    columns = "case", "candidate", "CPU ms", "ratio", "quartiles", "repeats", "peak MiB", "row error", "construct ms"
    return f"| {' | '.join(columns)} |\n|---|---|{'---:|' * 7}"


def table_row(result: Result) -> str:
    ratio = result.ratio
    cells = [
        result.case,
        result.candidate if result.base in {None, "bare"} else f"{result.candidate} / {result.base}",
        f"{result.milliseconds.median:.1f}",
        f"x{ratio.median:.3f}" if ratio else "",
        f"{ratio.low:.3f}-{ratio.high:.3f}" if ratio else "",
        str(result.milliseconds.repeats),
        "" if result.extra_bytes is None else f"{result.extra_bytes / MEBIBYTE:+,.0f}",
        "" if result.row_error is None else f"{result.row_error:.0e}",
        "" if result.construction_ms is None else f"{result.construction_ms:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def run_case(name: str, options: argparse.Namespace) -> list[Result]:
    """Check, time and weigh one case."""
    case = Case(CASES[name])
    candidates = chosen(case.candidates(), options.candidates)
    results = measure(name, candidates, options.repeats or case.spec.repeats, warmup=options.warmup)
    extra: dict[str, float] = {}
    if not options.no_memory:
        weighed = [candidate for candidate in candidates if not is_noise_floor(candidate)]
        extra = extra_memory(weighed, bases_of(candidates), lambda c: spawn_probe(name, c, options.threads))
    blocks = {"attnhook, all blocks": None, "attnhook, last block": 1}
    return [
        replace(
            result,
            extra_bytes=extra.get(result.candidate),
            construction_ms=construction_ms(case.model, blocks[result.candidate])
            if result.candidate in blocks
            else None,
        )
        for result in results
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    names = list(dict.fromkeys(name for spec in CASES.values() for name in Case(spec).candidates()))
    parser.add_argument(
        "--candidates", nargs="+", choices=names, metavar="NAME", help="only these, with their bases (default: all)"
    )
    parser.add_argument("--repeats", type=int, help="rounds that count (default: each case's own, 11 to 200)")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before those (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        if options.probe:
            print(run_probe(*options.probe))
            return 0
        settings = configuration(options.threads) | {"warmup": options.warmup}
        print(*(f"{key}: {value}" for key, value in settings.items()), "", table_head(), sep="\n", flush=True)
        results: list[Result] = []
        for name in options.cases:
            try:
                found = run_case(name, options)
            except CheckError as error:
                print(f"{name}: wrong result: {error}", file=sys.stderr)
                return 1
            print(*map(table_row, found), sep="\n", flush=True)
            results += found
            if options.json:  # after each case, so that an interrupted run is not lost
                content = {"configuration": settings, "results": [asdict(result) for result in results]}
                options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
