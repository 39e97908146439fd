"""A lock on a folder in another process: record locks are between processes."""

import os
import signal
import time
from contextlib import contextmanager


@contextmanager
def held(lock, tmp_path):
    """While a forked process holds `lock(tmp_path / "out")`; it is killed at the end."""
    child = os.fork()
    if child == 0:
        with lock(tmp_path / "out"):
            (tmp_path / "ready").touch()
            time.sleep(60)
        os._exit(0)
    try:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
