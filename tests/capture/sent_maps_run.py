"""Sends maps to another process, captures the next photo, and says whether the other still holds the first photo's; run by test_copied_maps.

python -m tests.capture.sent_maps_run fork spawn
"""

import sys
from typing import Any

import torch
from torch import multiprocessing

from attnhook import AttentionCapture
from tests.models import TIMM, images

SHARING = "file_descriptor", "file_system"
WAIT = 120  # seconds


def read(everything: list[Any]) -> list[Any]:
    """All rows, as arrays: a tensor in a queue would share its memory."""
    return [block.rows.numpy() for maps in everything for block in maps]


def consume(sent: Any, back: Any) -> None:
    """Under each strategy, read the maps once when they come, and once when the producer has captured another photo."""
    torch.set_num_threads(1)
    for _ in SHARING:
        everything = sent.get(timeout=WAIT)
        back.put(read(everything))
        sent.get(timeout=WAIT)
        back.put(read(everything))


def main(start: str) -> None:
    context = multiprocessing.get_context(start)
    sent, back = context.Queue(), context.Queue()
    process = context.Process(target=consume, args=(sent, back))
    process.start()
    for sharing in SHARING:
        multiprocessing.set_sharing_strategy(sharing)
        send(sent, back)
        print("unchanged", start, sharing)
    process.join(WAIT)
    assert process.exitcode == 0


def send(sent: Any, back: Any) -> None:
    build = TIMM[0].build
    models = build(), build("eager")
    captures = [AttentionCapture(model, rows=rows) for model in models for rows in ("all", "cls")]

    def capture_photo(photo: torch.Tensor) -> list[Any]:
        for capture in captures:
            with torch.no_grad(), capture:
                capture.plan.model(photo)
        return [capture.maps for capture in captures]

    photo = images(1)
    truth = [rows.copy() for rows in read(capture_photo(photo))]
    sent.put(capture_photo(photo))
    first = back.get(timeout=WAIT)
    other = read(capture_photo(-photo))
    sent.put("look again")
    second = back.get(timeout=WAIT)
    for wanted, one, two, next_photo in zip(truth, first, second, other, strict=True):
        assert (wanted == one).all()
        assert (wanted == two).all()
        assert (wanted != next_photo).any()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for way in sys.argv[1:]:
        main(way)
