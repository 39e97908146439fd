"""What it costs to lay a map over a photo of 1024 x 768: attnhook beside grad-cam, torchcam and matplotlib.

    python benchmarks/overlay.py                                                # without the peers
    python -m pip install --no-deps --target peer grad-cam torchcam opencv-python-headless
    python benchmarks/overlay.py --peer peer

Arrays in, a picture in memory out; encoding a PNG is apart, but for matplotlib's figure, which has no other way. Each candidate starts
from what it takes: attnhook and torchcam from the patch map, grad-cam from a map and a photo that are floating point at the photo's size
already. CPU time of one thread, rounds interleaved, each time over attnhook's of the same round. Results are checked: the photo's size, and
the hottest place in the hottest colours.
"""

import argparse
import importlib.util
import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overhead_cases import CheckError
from PIL import Image
from timing import interleave, ratios, summarise

from attnhook import ImageGeometry, heatmap, overlay, overlay_batch

WIDTH, HEIGHT, GRID = 1024, 768, (14, 14)
HOT = (5, 9)
"""The patch with the highest value."""
BASE = "attnhook, overlay of a heat map"


class Case:
    """One photo, one map.

    Args:
        peer: Folder that grad-cam, torchcam and OpenCV were installed to, or None: they are left out.
    """

    def __init__(self, peer: Path | None) -> None:
        generator = np.random.default_rng(0)
        coarse = generator.integers(60, 200, (24, 32, 3), dtype=np.uint8)
        self.photo = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        self.patches = torch.from_numpy(generator.random(GRID, dtype=np.float32)) * 0.5
        self.patches[HOT] = 1.0
        self.geometry = ImageGeometry.identity((HEIGHT, WIDTH))
        self.pixels = heatmap(self.patches, self.geometry, patch_area=(HEIGHT, WIDTH))
        self.float_photo = np.asarray(self.photo, dtype=np.float32) / 255
        self.float_map = self.pixels.numpy()
        self.peer = peer

    def candidates(self) -> dict[str, Callable[[], Any]]:
        """By name; each gives a picture, an array or the bytes of a PNG."""
        chosen: dict[str, Callable[[], Any]] = {
            BASE: lambda: overlay(self.photo, self.pixels),
            "attnhook, from the patches": lambda: overlay(
                self.photo, heatmap(self.patches, self.geometry, patch_area=(HEIGHT, WIDTH))
            ),
            "attnhook, one of a batch of 8": lambda: overlay_batch([self.photo] * 8, [self.pixels] * 8)[0],
            "matplotlib, colormap and blend": self.colormapped,
            "matplotlib, imshow and savefig": self.figure,
        }
        if self.peer is not None:
            show, mask = gradcam(self.peer), torchcam(self.peer)
            small = Image.fromarray(self.patches.numpy(), mode="F")
            chosen |= {
                "grad-cam, show_cam_on_image": lambda: show(self.float_photo, self.float_map, use_rgb=True),
                "torchcam, overlay_mask": lambda: mask(self.photo, small, alpha=0.5),
            }
        return chosen

    def colormapped(self) -> np.ndarray:
        """What scripts do with matplotlib's colours."""
        from matplotlib import colormaps

        colours = colormaps["viridis"](self.float_map)[..., :3]
        return np.uint8((0.5 * colours + 0.5 * self.float_photo) * 255)

    def figure(self) -> bytes:
        """What tutorials do: two imshow and a file."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
        FigureCanvasAgg(drawn)
        axes = drawn.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(self.photo)
        axes.imshow(self.float_map, alpha=0.5)
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png")
        return buffer.getvalue()

    def check(self, name: str, result: Any) -> None:
        """Raise `CheckError` if a picture is not of the photo's size, or no more changed where the map is high than where it is low."""
        picture = Image.open(io.BytesIO(result)).convert("RGB") if isinstance(result, bytes) else result
        array = np.asarray(picture).astype(int)
        if array.shape != (HEIGHT, WIDTH, 3):
            raise CheckError(f"{name}: expected a picture {(HEIGHT, WIDTH, 3)}, got {array.shape}")
        changed = array - np.asarray(self.photo).astype(int)
        y, x = (int((at + 0.5) * size / count) for at, size, count in zip(HOT, (HEIGHT, WIDTH), GRID, strict=True))
        hot = changed[y - 5 : y + 5, x - 5 : x + 5, 0].mean()  # viridis and jet both end with much red
        if not hot > changed[..., 0].mean() + 20:
            raise CheckError(f"{name}: expected the hottest place to stand out in red, got {hot:.0f} there")


def gradcam(peer: Path) -> Callable[..., Any]:
    """`show_cam_on_image`, from its own file: the package imports much that this needs nothing of."""
    sys.path.append(str(peer))
    found = importlib.util.spec_from_file_location("gradcam_image", peer / "pytorch_grad_cam" / "utils" / "image.py")
    if found is None or found.loader is None:
        raise FileNotFoundError(f"no grad-cam in {peer}")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.show_cam_on_image


def torchcam(peer: Path) -> Callable[..., Any]:
    """`overlay_mask`."""
    sys.path.append(str(peer))
    from torchcam.utils import overlay_mask

    return overlay_mask


def measure(case: Case, repeats: int) -> Mapping[str, tuple[float, Any]]:
    """Milliseconds and ratios to attnhook's by name."""
    candidates = case.candidates()
    for name, run in candidates.items():
        case.check(name, run())
    seconds = interleave(candidates, repeats, warmup=2)
    for name in seconds:
        if "batch of 8" in name:
            seconds[name] = [value / 8 for value in seconds[name]]
    over = ratios(seconds, dict.fromkeys(candidates, BASE))
    return {name: (summarise(values).median * 1000, summarise(over[name])) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--repeats", type=int, default=15)
    made.add_argument("--peer", type=Path, help="folder that grad-cam, torchcam and OpenCV were installed to")
    made.add_argument("--json", type=Path, help="also write everything here")
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    found = {}
    print("| candidate | CPU ms | times attnhook | quartiles |\n|---|---:|---:|---:|")
    try:
        for name, (milliseconds, over) in measure(Case(options.peer), options.repeats).items():
            print(f"| {name} | {milliseconds:.1f} | x{over.median:.2f} | {over.low:.2f}-{over.high:.2f} |")
            found[name] = {"ms": milliseconds, "times attnhook": asdict(over)}
    except CheckError as error:
        print(f"wrong result: {error}", file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
