"""What whole photos cost: `attend` from a file to a map, the measured geometry and the figure of a photo of 12 megapixels.

    python benchmarks/whole_photos.py
    python benchmarks/whole_photos.py --repeats 3 --json photos.json

`attend` is compared with decoding, preprocessing and the bare forward: a JPEG of 1024 x 768 and a ViT-S/16 of timm with random weights, 224 px.
The measured geometry is compared with the four calls of the preprocessing that it needs (a resize and crop behind a function that hides its
steps), and looked up once more. The figure is photo, map and overlay; matplotlib's draws the same three with `imshow`; both end as a PNG. CPU
time of one thread, rounds interleaved, each time over the base's of the same round. Results are checked first: the map against a capture's, the
geometry against the exact one, pictures by their size.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from overhead_cases import CheckError
from PIL import Image
from timing import interleave, ratios, summarise
from torchvision import transforms

from attnhook import AttentionCapture, ImageGeometry, PatchMap, attend, overlay, raw_attention

FILE = (1024, 768)
LARGE = (4000, 3000)  # 12 megapixels, width and height
ATTEND, MEASURED, AGAIN, FIGURE = "attend", "geometry, measured", "geometry, looked up again", "figure of 12 megapixels"
OVERLAY = "overlay of 12 megapixels"
BASES = {
    "bare again": "decoding, preprocessing and the bare forward",
    ATTEND: "decoding, preprocessing and the bare forward",
    MEASURED: "four calls of the preprocessing",
    FIGURE: "matplotlib, three imshow",
}


def photo_of(size: tuple[int, int]) -> Image.Image:
    """Smooth noise, from which JPEG has something to keep."""
    coarse = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


class Case:
    """A model, a photo in a file and a large one in memory.

    Args:
        folder: For the file.
        large: Width and height of the other.
        architecture: A timm model's name.
    """

    def __init__(
        self, folder: Path, large: tuple[int, int] = LARGE, architecture: str = "vit_small_patch16_224"
    ) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model(architecture).eval()
        side = self.model.patch_embed.img_size[0]
        self.steps = transforms.Compose(
            [
                transforms.Resize(side),
                transforms.CenterCrop(side),
                transforms.ToTensor(),
                transforms.Normalize(0.5, 0.5),
            ]
        )
        self.file = folder / "photo.jpg"
        photo_of(FILE).save(self.file, quality=90)
        self.large = photo_of(large)
        self.synthetic = [Image.new("RGB", large, value) for value in ("black", "white", "gray", "gray")]
        self.map: PatchMap = attend(self.model, self.file, preprocess=self.steps)[0].patch_map
        self.known = self.hidden()
        ImageGeometry.of(self.known, self.large)

    def hidden(self) -> Callable[[Image.Image], torch.Tensor]:
        """The same steps as a function that nobody has seen before: only its results tell what it does."""

        def preprocess(photo: Image.Image) -> torch.Tensor:
            pixels: torch.Tensor = self.steps(photo)
            return pixels

        return preprocess

    def bare(self) -> torch.Tensor:
        """From a file to logits."""
        with torch.inference_mode(), Image.open(self.file) as photo:
            logits: torch.Tensor = self.model(self.steps(photo.convert("RGB")).unsqueeze(0))
        return logits

    def candidates(self) -> dict[str, Callable[[], Any]]:
        """By name."""
        return {
            "decoding, preprocessing and the bare forward": self.bare,
            "bare again": self.bare,
            ATTEND: lambda: attend(self.model, self.file, preprocess=self.steps)[0].patch_map,
            "four calls of the preprocessing": lambda: [self.steps(photo) for photo in self.synthetic],
            MEASURED: lambda: ImageGeometry.measured(self.hidden(), self.large.size[::-1]),
            AGAIN: lambda: ImageGeometry.of(self.known, self.large.size[::-1]),
            OVERLAY: lambda: overlay(self.large, self.map, self.steps),
            FIGURE: lambda: png(self.map.figure(self.large, self.steps)),
            "matplotlib, three imshow": self.plain_figure,
        }

    def plain_figure(self) -> bytes:
        """What notebooks do: three panels, the map enlarged by the plot."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(9, 3))
        FigureCanvasAgg(drawn)
        enlarged = np.asarray(Image.fromarray(self.map.numpy()).resize(self.large.size, Image.Resampling.BILINEAR))
        for axes, layers in zip(drawn.subplots(1, 3), ((1, 0), (0, 1), (1, 0.5)), strict=True):
            axes.set_axis_off()
            if layers[0]:
                axes.imshow(self.large)
            if layers[1]:
                axes.imshow(enlarged, alpha=layers[1])
        return png(drawn)

    def check(self) -> None:
        """Raise `CheckError` where a result is wrong."""
        with torch.inference_mode(), AttentionCapture(self.model) as capture, Image.open(self.file) as photo:
            self.model(self.steps(photo).unsqueeze(0))
        if not torch.equal(self.map.values, raw_attention(capture.maps)[0].values):
            raise CheckError("attend gives another map than a capture")
        exact, measured = (ImageGeometry.of(way, self.large) for way in (self.steps, self.hidden()))
        corners = ((0.0, 0.0), (exact.input_size[0], exact.input_size[1]))
        apart = max(
            abs(one - other)
            for corner in corners
            for one, other in zip(exact.to_image(*corner), measured.to_image(*corner), strict=True)
        )
        if apart > 2:
            raise CheckError(f"the measured geometry is {apart:.1f} photo pixels from the exact one")
        if overlay(self.large, self.map, self.steps).size != self.large.size:
            raise CheckError("an overlay of another size than the photo's")


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def measure(case: Case, repeats: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of every candidate and, where it has a base, the ratio and the milliseconds beyond it."""
    case.check()
    seconds = interleave(case.candidates(), repeats, warmup=1)
    over = ratios(seconds, BASES)
    found = {name: {"ms": summarise(values).median * 1000} for name, values in seconds.items()}
    for name, base in BASES.items():
        beyond = [own - its for own, its in zip(seconds[name], seconds[base], strict=True)]
        found[name] |= {"ratio": asdict(summarise(over[name])), "beyond": summarise(beyond).median * 1000}
    return found


def main(arguments: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--repeats", type=int, default=9)
    made.add_argument("--json", type=Path, help="also write everything here")
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        try:
            found = measure(Case(Path(folder)), options.repeats)
        except CheckError as error:
            print(f"wrong result: {error}", file=sys.stderr)
            return 1
    print("| candidate | CPU ms | over its base | quartiles | ms beyond |\n|---|---:|---:|---:|---:|")
    for name, one in found.items():
        ratio = one.get("ratio")
        cells = (
            [f"x{ratio['median']:.3f}", f"{ratio['low']:.3f}-{ratio['high']:.3f}", f"{one['beyond']:.1f}"]
            if ratio
            else [""] * 3
        )
        print(f"| {name} | {one['ms']:.1f} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
