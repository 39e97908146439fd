"""What class-specific maps cost: time and peak memory of gradient rollout at growing numbers of tokens, and whether memory grows linearly.

    python benchmarks/gradients.py                               # 1,025, 2,305 and 4,097 tokens: about ten minutes on one core
    python benchmarks/gradients.py --tokens 1025 --repeats 5 --no-memory --json gradients.json

Time is process CPU time; the candidates of a size run interleaved in one process, and each time is divided by that of its base in the same
round:

- `bare`: the forward, in inference mode.
- `backward`: the forward and the backward of one score to the pixels, which every class-specific map needs.
- `attnhook, gradient_rollout` (and, at 1,025 tokens, `legrad` and `gradient_attention`, which do less): the same inside a capture with
  `gradients=True`, then the map.
- `dense autograd`: the same with attention spelt out, all matrices and their gradients kept, and the rule as the paper's code has it. 1,025
  tokens only: its memory grows with the square of the tokens.

Peak memory: a fresh process per candidate runs it twice and reports the peak of the second run, less that of its base. Every map is checked
before anything is timed, against dense autograd at 1,025 tokens and against the rule in float64 loops over the captured operands at every size;
a wrong one ends the benchmark with exit status 1. Does not measure: GPUs, batches, other models than ViT-S/16.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from overhead import MEBIBYTE, configuration
from peaks import peak_of_second_run, spawn
from timing import Summary, extra_memory, interleave, ratios, summarise
from torch import Tensor

from attnhook import AttentionCapture, AttentionMaps, gradient_attention, gradient_rollout, legrad

SIZES = {1025: 512, 2305: 768, 4097: 1024}
REPEATS = {1025: 5, 2305: 3, 4097: 3}
CLASS = 281
METHODS = {"gradient_rollout": gradient_rollout, "legrad": legrad, "gradient_attention": gradient_attention}
DENSE = "dense autograd"
BASES = {"backward": "bare", DENSE: "backward"} | {f"attnhook, {name}": "backward" for name in METHODS}
TOLERANCE = 1e-4  # of the largest value: float32 activations of two kernels differ by less


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        tokens: Number of tokens.
        candidate: Name of the candidate.
        milliseconds: CPU time of one run.
        ratio: To the base of the same round; None for a bare forward.
        bare_ratio: To the bare forward of the same round.
        error: Largest error of the map over its largest value; None where there is no map.
        extra_bytes: Peak memory beyond the base's; None if not measured.
    """

    tokens: int
    candidate: str
    milliseconds: Summary
    ratio: Summary | None
    bare_ratio: Summary | None
    error: float | None
    extra_bytes: float | None = None


class Case:
    """ViT-S/16 with random weights that make attention far from uniform, at one size."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        torch.manual_seed(0)
        side = SIZES[tokens]
        self.model = timm.create_model("vit_small_patch16_224", img_size=side).eval()
        for block in self.model.blocks:
            with torch.no_grad():
                block.attn.qkv.weight.mul_(3.0)
        self.pixels = torch.randn(1, 3, side, side)
        self.capture = AttentionCapture(self.model, gradients=True)

    def candidates(self) -> dict[str, Callable[[], object]]:
        """What is run, by name."""
        found: dict[str, Callable[[], object]] = {"bare": self.bare, "backward": self.backward}
        found |= {f"attnhook, {name}": lambda name=name: METHODS[name](self.maps()).values for name in METHODS}
        return found | ({DENSE: self.dense} if self.tokens == min(SIZES) else {})

    def usual(self) -> list[str]:
        """Candidates that are run unless others are chosen: at larger sizes gradient rollout alone, the dearest of ours."""
        return list(self.candidates()) if self.tokens == min(SIZES) else ["attnhook, gradient_rollout"]

    def bare(self) -> Tensor:
        """The forward alone."""
        with torch.inference_mode():
            return self.model(self.pixels)

    def backward(self) -> Tensor:
        """The forward, and the backward of one score to the pixels."""
        leaf = self.pixels.clone().requires_grad_()
        return torch.autograd.grad(self.model(leaf)[0, CLASS], leaf)[0]

    def maps(self) -> AttentionMaps:
        """The same inside a capture."""
        with self.capture:
            self.backward()
        return self.capture.maps

    def dense(self) -> Tensor:
        """The paper's code: every matrix and its gradient, then R <- R + E_h[(A * dA)+] R."""
        kept: list[Tensor] = []

        def explicit(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
            kept.append((query @ key.mT * query.shape[-1] ** -0.5).softmax(-1))
            return kept[-1] @ value

        fused, F.scaled_dot_product_attention = F.scaled_dot_product_attention, explicit
        try:
            leaf = self.pixels.clone().requires_grad_()
            score = self.model(leaf)[0, CLASS]
        finally:
            F.scaled_dot_product_attention = fused
        gradients = torch.autograd.grad(score, kept)
        together = torch.eye(self.tokens)
        for attention, gradient in zip(kept, gradients, strict=True):
            together = together + (attention.detach() * gradient).clamp_(min=0).mean(1)[0] @ together
        return together[None, 0, 1:].unflatten(1, (SIZES[self.tokens] // 16, -1))

    def looped(self, maps: AttentionMaps) -> Tensor:
        """The rule in float64, row by row in pieces, from the captured operands; none of the library's own products."""
        row = torch.zeros(self.tokens, dtype=torch.float64)
        row[0] = 1
        for block in reversed(list(maps)):
            call, values = block.matrix._source, block.values[0].double()
            found = torch.zeros_like(row)
            for head in range(block.shape[1]):
                query, key = call.query[0, head].double(), call.key[0, head].double()
                slopes = block.output_gradient[0, head].double()
                for first in range(0, self.tokens, 512):
                    piece = slice(first, first + 512)
                    attention = (query[piece] @ key.T * query.shape[1] ** -0.5).softmax(-1)
                    found += row[piece] @ (attention * (slopes[piece] @ values[head].T).clamp_(min=0))
            row = row + found / block.shape[1]
        return row[None, 1:].unflatten(1, (SIZES[self.tokens] // 16, -1)).float()

    def errors(self) -> dict[str, float]:
        """Largest error of each map over its largest value; raises `ValueError` if one is too large."""
        maps = self.maps()
        expected = self.looped(maps)
        found = {"attnhook, gradient_rollout": _error(gradient_rollout(maps).values, expected)}
        if self.tokens == min(SIZES):
            found[DENSE] = _error(self.dense(), expected)
        for name in ("legrad", "gradient_attention"):
            positive = METHODS[name](maps).values
            if not bool(positive.isfinite().all()) or float(positive.max()) <= 0:
                raise ValueError(f"{name} gives no map: expected positive numbers.")
        wrong = {name: error for name, error in found.items() if not error < TOLERANCE}
        if wrong:
            raise ValueError(f"expected errors below {TOLERANCE}, got {wrong}.")
        return found


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def measure(
    case: Case,
    repeats: int,
    chosen: list[str] | None = None,
    *,
    warmup: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> list[Line]:
    """Check, then time the candidates of a size: the usual or the chosen ones, with their bases. The check has warmed up what runs."""
    errors = case.errors()
    wanted = {"bare", "backward", *(chosen or case.usual())}
    candidates = {name: run for name, run in case.candidates().items() if name in wanted}
    gc.collect()
    seconds = interleave(candidates, repeats, warmup=warmup, clock=clock)
    to_base = ratios(seconds, BASES)
    to_bare = ratios(seconds, {name: "bare" for name in candidates if name != "bare"})
    return [
        Line(
            case.tokens,
            name,
            summarise([1e3 * value for value in seconds[name]]),
            summarise(to_base[name]) if name in to_base else None,
            summarise(to_bare[name]) if name in to_bare else None,
            errors.get(name),
        )
        for name in candidates
    ]


def run_probe(tokens: int, candidate: str) -> int:
    """In a fresh process: the peak of one candidate, in bytes."""
    return peak_of_second_run(Case(tokens).candidates()[candidate])


def spawn_probe(tokens: int, candidate: str, threads: int) -> int:
    """Run `run_probe` in a fresh process."""
    return spawn(__file__, "--probe", tokens, candidate, "--threads", threads)


def weighed(lines: list[Line], processes: int, probe: Callable[[str], int]) -> list[Line]:
    """The lines with peak memory beyond the base's."""
    extra = extra_memory([line.candidate for line in lines], BASES, probe, processes)
    return [Line(**(vars(line) | {"extra_bytes": extra.get(line.candidate)})) for line in lines]


def growth(lines: list[Line]) -> list[str]:
    """How memory grows: the peak beyond the bare forward's, a token, at each size."""
    words = []
    for tokens in dict.fromkeys(line.tokens for line in lines):
        extra = {line.candidate: line.extra_bytes for line in lines if line.tokens == tokens}
        backward, own = extra.get("backward"), extra.get("attnhook, gradient_rollout")
        if backward is not None and own is not None:
            words.append(
                f"{tokens:,} tokens: gradient_rollout peaks {(backward + own) / MEBIBYTE:,.0f} MiB above the bare forward, "
                f"{(backward + own) / tokens / 1024:,.0f} KiB a token; one dense matrix of all blocks and heads is "
                f"{4 * 12 * 6 * tokens**2 / MEBIBYTE:,.0f} MiB"
            )
    return words


HEAD = (
    "| tokens | candidate | CPU ms | to bare | to base | quartiles | repeats | peak MiB over base | map error |\n"
    "|---:|---|---:|---:|---:|---:|---:|---:|---:|"
)


def row(line: Line) -> str:
    ratio, bare = line.ratio, line.bare_ratio
    cells = [
        f"{line.tokens:,}",
        line.candidate,
        f"{line.milliseconds.median:,.0f}",
        f"x{bare.median:.2f}" if bare else "",
        f"x{ratio.median:.3f}" if ratio else "",
        f"{ratio.low:.3f}-{ratio.high:.3f}" if ratio else "",
        str(line.milliseconds.repeats),
        "" if line.extra_bytes is None else f"{line.extra_bytes / MEBIBYTE:+,.0f}",
        "" if line.error is None else f"{line.error:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", nargs="+", type=int, choices=list(SIZES), default=list(SIZES), metavar="TOKENS")
    parser.add_argument(
        "--candidates",
        nargs="+",
        choices=list(BASES),
        metavar="NAME",
        help="only these, with their bases (default: all at 1,025 tokens, gradient_rollout beyond)",
    )
    parser.add_argument("--repeats", type=int, help="rounds that count (default: 5, 3 and 3)")
    parser.add_argument("--processes", type=int, default=1, help="processes a peak is the median of (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.probe:
        print(run_probe(int(options.probe[0]), options.probe[1]))
        return 0
    settings = configuration(options.threads)
    print(*(f"{key}: {value}" for key, value in settings.items()), "", HEAD, sep="\n", flush=True)
    lines: list[Line] = []
    for tokens in options.tokens:
        case = Case(tokens)
        try:
            found = measure(case, options.repeats or REPEATS[tokens], options.candidates)
        except ValueError as error:
            print(f"{tokens} tokens: wrong result: {error}", file=sys.stderr)
            return 1
        if not options.no_memory:
            found = weighed(found, options.processes, lambda c, tokens=tokens: spawn_probe(tokens, c, options.threads))
        print(*map(row, found), sep="\n", flush=True)
        lines += found
        if options.json:  # after each size, so that an interrupted run is not lost
            content = {"configuration": settings, "results": [asdict(line) for line in lines]}
            options.json.write_text(json.dumps(content, indent=1) + "\n")
    print("", *growth(lines), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
