"""The bar of long runs, in terminals of all kinds."""

import io
import os
import select
import struct
import sys

import pytest

from attnhook.running.progress import progress_bar


def _run():
    with progress_bar(3, shown=None) as bar:
        bar.set_description("a model")
        bar.update(3)


def _read_line(terminal):
    """What arrives on a terminal up to its line break: one read may return only the first of several writes."""
    shown = b""
    while not shown.endswith(b"\n"):
        assert select.select([terminal], [], [], 10)[0], f"nothing more within 10 s after {shown!r}"
        shown += os.read(terminal, 1 << 16)
    return shown.decode()


@pytest.mark.parametrize(("lines", "columns"), [(0, 0), (20, 60)])
def test_a_terminal_shows_the_bar_also_where_it_has_no_size(monkeypatch, lines, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("LINES", raising=False)
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
    with os.fdopen(writing, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        _run()
        shown = _read_line(reading)
    os.close(reading)
    last = shown.split("\r")[-2].rstrip()
    assert "a model: 100%" in last
    assert "3/3" in last
    assert len(last) < (columns or 80)


def test_a_log_stays_quiet(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    _run()
    assert log.getvalue() == ""
