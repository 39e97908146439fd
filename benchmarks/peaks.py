"""Peaks of memory: each measured in a fresh process, in the second run of what is measured."""

import gc
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def peak_of_second_run(run: Callable[[], object]) -> int:
    """Run something, reset the peak, run it again.

    Args:
        run: What is measured.

    Returns:
        Peak of the resident set in bytes.
    """
    run()
    gc.collect()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    run()
    return peak_bytes()


def peak_bytes() -> int:
    """Peak of this process's resident set; `ru_maxrss` on Linux would start at the parent's, which survives exec."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def spawn(script: str, *arguments: object) -> int:
    """Run a script that prints a peak, in a fresh process.

    Args:
        script: Its path.
        arguments: Of its command line.

    Returns:
        The peak in bytes.
    """
    # One arena: freed memory is then found again, and peaks repeat from process to process.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603
    return int(done.stdout.split()[-1])
