"""What rollouts and entropies of all blocks cost: CPU time and peak memory, beside dense matrices and fast-vit-rollout.

    python benchmarks/rollout.py                                             # everything but the peer
    python -m pip install --no-deps --target peer fast-vit-rollout opencv-python-headless
    python benchmarks/rollout.py --peer peer --json rollout.json        # the peer, too
    python benchmarks/rollout.py --cases "4,097 tokens" --candidates "attnhook, rollout" --no-memory
    python benchmarks/rollout.py --kernels                                   # ways to multiply a row with one block's matrix

Measured as in `overhead.py`: candidates interleaved, each time over the bare forward's of the same round, `bare again` is the noise floor,
peaks from fresh processes; every result is checked against float64 first. The measured region of attnhook is entering the context, the
forward, leaving it, and the rollout or the entropy of every block and head. "row error" is the rollout's over its largest entry, or the
entropy's in nats.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from overhead import Result, bases_of, chosen, configuration, measure, table_head, table_row
from overhead_cases import CheckError
from peaks import peak_of_second_run, spawn
from rollout_cases import CASES, RolloutCase
from rollout_kernels import measure_kernels
from timing import Summary, extra_memory

KERNEL_SIZES = {197: 60, 1025: 15, 4097: 5}
"""Tokens and rounds of `--kernels`."""


def run_probe(case: str, candidate: str, peer: Path | None) -> int:
    """In a fresh process: the peak of one candidate, in bytes."""
    return peak_of_second_run(RolloutCase(CASES[case], peer).candidates()[candidate].run)


def spawn_probe(case: str, candidate: str, options: argparse.Namespace) -> int:
    """Run `run_probe` in a fresh process."""
    peer = ("--peer", options.peer) if options.peer else ()
    return spawn(__file__, "--probe", case, candidate, "--threads", options.threads, *peer)


def run_case(name: str, options: argparse.Namespace) -> list[Result]:
    """Check, time and weigh one case."""
    case = RolloutCase(CASES[name], options.peer)
    candidates = chosen(case.candidates(), options.candidates)
    results = measure(name, candidates, options.repeats or case.spec.repeats, warmup=options.warmup)
    if options.no_memory:
        return results
    del case
    weighed = [candidate for candidate in candidates if candidate != "bare again"]
    extra = extra_memory(weighed, bases_of(candidates), lambda one: spawn_probe(name, one, options), options.processes)
    return [replace(result, extra_bytes=extra.get(result.candidate)) for result in results]


def kernel_rows(tokens: int, found: dict[str, Summary]) -> list[str]:
    """Lines of the table of kernels."""
    return [
        f"| {tokens:,} tokens | {name} | {one.median:.3f} | {one.low:.3f}-{one.high:.3f} |"
        for name, one in found.items()
    ]


def run_kernels(options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Time all ways to multiply a row with one block's matrix, print them, and give them by tokens and name."""
    print("| one block | way | times its fused attention | quartiles |\n|---|---|---:|---:|")
    everything = {}
    for tokens, repeats in KERNEL_SIZES.items():
        found = measure_kernels(tokens, options.repeats or repeats)
        print(*kernel_rows(tokens, found), sep="\n", flush=True)
        everything[str(tokens)] = {name: asdict(one) for name, one in found.items()}
    return everything


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    names = list(RolloutCase(next(iter(CASES.values())), Path()).candidates())
    made.add_argument(
        "--candidates", nargs="+", choices=names, metavar="NAME", help="only these, with the bare forward"
    )
    made.add_argument("--repeats", type=int, help="rounds that count (default: each case's own)")
    made.add_argument("--warmup", type=int, default=1, help="rounds before those (default: 1)")
    made.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    made.add_argument("--processes", type=int, default=3, help="fresh processes a memory peak (default: 3)")
    made.add_argument("--no-memory", action="store_true", help="time only")
    made.add_argument(
        "--kernels", action="store_true", help="ways to multiply a row with one block's matrix, instead of whole models"
    )
    made.add_argument(
        "--peer", type=Path, help="folder that fast-vit-rollout and opencv-python-headless were installed to"
    )
    made.add_argument("--json", type=Path, help="also write everything here")
    made.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        if options.probe:
            print(run_probe(*options.probe, options.peer))
            return 0
        content: dict[str, object] = {"configuration": configuration(options.threads) | {"warmup": options.warmup}}
        print(*(f"{key}: {value}" for key, value in content["configuration"].items()), "", sep="\n", flush=True)
        try:
            if options.kernels:
                content["kernels"] = run_kernels(options)
            else:
                print(table_head(), flush=True)
                content["results"] = results = []
                for name in options.cases:
                    found = run_case(name, options)
                    print(*map(table_row, found), sep="\n", flush=True)
                    results += [asdict(result) for result in found]
        except CheckError as error:
            print(f"wrong result: {error}", file=sys.stderr)
            return 1
        if options.json:
            options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
