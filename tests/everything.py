"""Run by `test_environments` as a script, where things are missing: a bit of everything that the library does, and one line of output."""

import asyncio
import concurrent.futures
import hashlib
import multiprocessing
import socket
import sys
import warnings
from pathlib import Path

THIRD_PARTY = r"(?!attnhook|__main__)"


def must(fact: bool, what: object) -> None:
    """`assert`, also under `python -O`."""
    if not fact:
        raise RuntimeError(f"not as expected: {what}")


def photo(number: int):
    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, 200 * 240 * 3).reshape(200, 240, 3).astype("uint8")
    return Image.fromarray(np.roll(ramp, 40 * number, axis=1))


def tiny_vit():
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=5).eval()


def everything(folder: Path, model=None) -> str:
    """Capture, draw, save, monitor and extract; what comes out as one hash, which is the same wherever it runs."""
    import torch

    import attnhook

    where = attnhook.ImageGeometry.identity((200, 240)).resize((160, 160))
    model, photos = model or tiny_vit(), folder / "photos"
    photos.mkdir(parents=True)
    for number in range(2):
        photo(number).save(photos / f"{number}.png")
    with torch.inference_mode(), attnhook.AttentionCapture(model) as capture:
        model(torch.zeros(1, 3, 160, 160))
    results = attnhook.attend(model, sorted(photos.iterdir()))
    saved = results[0].save(folder / "saved.png")
    drawn = attnhook.overlay(photo(0), attnhook.raw_attention(capture.maps)[0].heatmap(where))
    drawn.save(folder / "drawn.png")
    results[0].to_html(folder / "page.html")
    results[0].figure().savefig(folder / "figure.png")
    monitor = attnhook.AttentionMonitor(
        model, [photo(0)], writers=attnhook.DirectoryWriter(folder / "log"), strict=True
    )
    for step in range(2):
        monitor.step(step)
    attnhook.DirectoryWriter(folder / "log").to_html(folder / "log.html")
    attnhook.extract(model, photos, folder / "maps", num_workers=0, progress=False)
    maps = attnhook.open_maps(folder / "maps")
    lines = (folder / "log" / "scalars.jsonl").read_text(encoding="utf-8").splitlines()
    found = [len(maps), len(lines), len(list((folder / "log").rglob("*.jpg"))), saved.exists()]
    must(found == [2, 2, 4, True], found)
    for name in ("page.html", "figure.png", "log.html", "saved.png", "drawn.png"):
        must((folder / name).stat().st_size > 10_000, name)
    numbers = [capture.maps[-1].rows, *(result.attention for result in results)]
    rows = torch.cat([value.float().flatten() for value in numbers])
    must(bool(rows.isfinite().all()), "finite rows")
    return hashlib.sha256(rows.numpy().tobytes() + str([repr(one) for one in results]).encode()).hexdigest()[:12]


def once(folder: Path) -> list[str]:
    return [everything(folder)]


def nobody(folder: Path) -> list[str]:
    """As in a container that runs under a user without a name."""
    import pwd

    def unknown(number: int):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    pwd.getpwuid = unknown
    return [everything(folder)]


def offline(folder: Path) -> list[str]:
    def refuse(*_, **__):
        raise OSError("no network")

    socket.socket = socket.create_connection = socket.getaddrinfo = refuse
    return [everything(folder)]


def spawn(folder: Path) -> list[str]:
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(everything, [folder / "child"]))


def threads(folder: Path) -> list[str]:
    models = [tiny_vit(), tiny_vit()]  # made here: threads share torch's random numbers
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(everything, [folder / "0", folder / "1"], models))


def tasks(folder: Path) -> list[str]:
    """One capture per task, on one model."""
    import torch

    import attnhook

    model = tiny_vit()

    async def captured(number: int) -> str:
        torch.manual_seed(number)
        pixels = torch.randn(1 + number, 3, 160, 160)
        with attnhook.AttentionCapture(model) as alone:
            model(pixels)
        await asyncio.sleep(0)
        with attnhook.AttentionCapture(model) as capture:
            await asyncio.sleep(0)
            model(pixels)
            await asyncio.sleep(0)
        must(len(capture.forwards) == 1, "one forward each")
        must(torch.equal(capture.maps[-1].rows, alone.maps[-1].rows), "the task's own rows")
        return "" if number else everything(folder)

    async def together() -> list[str]:
        first, _ = await asyncio.gather(*(captured(number) for number in range(2)))
        return [first]

    with torch.no_grad():
        return asyncio.run(together())


def main(folder: str, *modes: str) -> None:
    for category in (DeprecationWarning, FutureWarning, UserWarning):  # of libraries; ours are errors under -W error
        warnings.filterwarnings("ignore", category=category, module=THIRD_PARTY)
    for mode in modes:
        (found,) = set(globals()[mode](Path(folder, mode)))
        print(f"everything works: {found}")


if __name__ == "__main__":
    main(*sys.argv[1:])
