"""The four runs that CONTRIBUTING.md walks through, on tiny models; prints the files of attnhook that each enters, in that order.

python -m tests.walks
"""

import inspect
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import timm
import torch
from PIL import Image
from transformers import CLIPImageProcessor

import attnhook
from tests.answers.families import llava

PACKAGE = Path(attnhook.__file__).parent


def entered(run: Callable[[], Any]) -> list[str]:
    """The files whose functions a run calls, in the order of the first call; what happens while modules are imported does not count."""
    files: dict[str, None] = {}
    importing = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal importing
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        if code.co_name == "<module>":
            importing += 1 if event == "call" else -1
        elif event == "call" and not importing and code.co_flags & inspect.CO_OPTIMIZED:  # no body of a class
            files.setdefault(Path(code.co_filename).relative_to(PACKAGE).as_posix())

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return list(files)


def photo(folder: Path) -> None:
    model = timm.create_model("test_vit").eval()
    attnhook.attend(model, picture(folder))[0].overlay()


def training_step(folder: Path) -> None:
    writer = attnhook.DirectoryWriter(folder / "log")
    monitor = attnhook.AttentionMonitor(timm.create_model("test_vit"), picture(folder), writers=writer)
    monitor.step(1)


def comparison(folder: Path) -> None:
    models = {name: timm.create_model(name).eval() for name in ("test_vit", "test_vit2")}
    attnhook.compare(models, picture(folder), cache=None, progress=False).save(folder / "report")


class Processor:
    """As much of a processor as words and places need."""

    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    @staticmethod
    def decode(ids: Any, **_: Any) -> str:
        return " ".join(f"word{number}" for number in ids)


def answer(folder: Path) -> None:
    model, inputs = llava()
    with attnhook.AnswerCapture(model, Processor) as capture:
        model.generate(**inputs, max_new_tokens=2)
    capture.answer.to_html(folder / "answer.html", picture(folder))


def picture(folder: Path) -> Path:
    path = folder / "photo.png"
    Image.radial_gradient("L").convert("RGB").resize((120, 90)).save(path)
    return path


WALKS = {"One photo": photo, "One training step": training_step, "One comparison": comparison, "One answer": answer}


def main() -> None:
    torch.manual_seed(0)
    walked = {}
    for name, run in WALKS.items():
        with tempfile.TemporaryDirectory() as folder:
            walked[name] = entered(lambda run=run, folder=Path(folder): run(folder))
    print(json.dumps(walked, indent=1))


if __name__ == "__main__":
    main()
