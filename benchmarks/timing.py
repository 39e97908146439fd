"""Times several candidates in one process, interleaved, and boils the times down to ratios.

Pure Python: knows nothing of models, so that its tests run on a fake clock. Limits: a slow spell of the machine that is shorter than one
round hits some candidates of that round and not others; medians and the noise floor (the base against itself) say how much that matters.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of repeated measurements.

    Attributes:
        median: The median.
        low: The first quartile.
        high: The third quartile.
        repeats: How many values there were.
    """

    median: float
    low: float
    high: float
    repeats: int


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 0,
    seed: int = 0,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Run every candidate once a round, each round in a new random order, and time each run.

    Args:
        candidates: What to run, by name.
        repeats: Number of rounds that count.
        warmup: Number of rounds before those, run alike and not counted.
        seed: Of the orders.
        clock: Seconds; process CPU time by default, which other processes disturb less than wall time.

    Returns:
        Seconds by name, one for each counted round, in the order of the rounds.
    """
    shuffled = random.Random(seed)  # noqa: S311 (an order, not a secret)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warmup + repeats):
        order = list(candidates)
        shuffled.shuffle(order)
        for name in order:
            run = candidates[name]
            begin = clock()
            run()  # what it returns is dropped, and freed, before the clock is read again
            end = clock()
            if number >= warmup:
                seconds[name].append(end - begin)
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], bases: Mapping[str, str]) -> dict[str, list[float]]:
    """Divide each time by that of the candidate's base in the same round.

    Args:
        seconds: Times by name, one for each round.
        bases: The base's name by candidate; candidates without one are left out.

    Returns:
        Ratios by name, one for each round.
    """
    return {
        name: [own / base for own, base in zip(seconds[name], seconds[bases[name]], strict=True)]
        for name in seconds
        if name in bases
    }


def summarise(values: Sequence[float]) -> Summary:
    """Median and quartiles (inclusive: the values are all there is, not a sample's ends).

    Args:
        values: At least one.

    Returns:
        The summary.
    """
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, low, high, len(values))


def extra_memory(
    names: Sequence[str], bases: Mapping[str, str], probe: Callable[[str], int], processes: int = 3
) -> dict[str, float]:
    """How much higher the memory peak of a candidate's process is than that of its base's process.

    Args:
        names: Candidates.
        bases: The base's name by candidate; candidates without one are left out.
        probe: Runs one candidate in a fresh process and returns that process's peak in bytes.
        processes: Number of processes a candidate, of which the median counts.

    Returns:
        Bytes by name; around zero they are noise and can be negative.
    """
    measured = [name for name in names if name in bases]
    needed = dict.fromkeys([bases[name] for name in measured] + measured)
    peaks = {name: statistics.median(probe(name) for _ in range(processes)) for name in needed}
    return {name: peaks[name] - peaks[bases[name]] for name in measured}
