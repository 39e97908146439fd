"""Renders every figure, method and style on the demo's photos into one folder with an index page, to be looked at.

    python docs/gallery.py OUT [--photos chelsea,rocket]
    python docs/gallery.py docs/pictures --docs     # the pictures of README and docs instead: `make pictures`

Everything but the `hard-` cases comes from the real backbone of `load("demo")`.
"""

import argparse
import contextlib
import html
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from attnhook import (
    METHODS,
    AttentionCapture,
    AttentionMaps,
    BlockAttention,
    ImageGeometry,
    Readout,
    TokenLayout,
    VisionModel,
    attend,
    load,
    overlay_video,
)
from attnhook.attribution.raw_maps import raw_attention
from attnhook.demo import PHOTOS, read_photos
from attnhook.imaging import read_image
from attnhook.options import Rows, Scale, ScaleOption, Style
from attnhook.pages.documents import save_viewer
from attnhook.results.display import captioned
from attnhook.results.pictures import (
    blocks_figure,
    blocks_heads_figure,
    heads_figure,
    methods_figure,
    photo_figure,
    query_figure,
    statistics_figure,
)
from attnhook.results.results import AttentionResult, ResultSettings, save_image
from attnhook.results.scenes import viewer_html

DOCS = Path(__file__).parent
WIDTH = 900
COLORMAPS = ("viridis", "inferno", "cividis", "turbo")


class Gallery:
    """A folder of pictures, each with a caption."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.entries: list[tuple[str, str, str]] = []
        out.mkdir(parents=True, exist_ok=True)

    def picture(self, name: str, text: str, picture: Image.Image) -> Path:
        """Write a picture."""
        path = save_image(picture, self.out / f"{name}.png")
        return self._listed(path, text)

    def figure(self, name: str, text: str, figure: Any, *, vector: bool = False) -> Path:
        """Write a figure, with `vector` also as SVG and PDF."""
        path = self.out / f"{name}.png"
        figure.savefig(path)
        if vector:
            figure.savefig(path.with_suffix(".svg"))
            figure.savefig(path.with_suffix(".pdf"))
        return self._listed(path, text)

    def _listed(self, path: Path, text: str) -> Path:
        self.entries.append((path.name, text, f"{path.stat().st_size / 1e3:.0f} KB"))
        print(f"  {path.name}: {text}", flush=True)
        return path

    def file(self, path: Path, text: str) -> None:
        """List a file that already exists."""
        self._listed(path, text)

    def write_index(self, title: str) -> Path:
        """Write the page that shows everything."""
        rows = "\n".join(
            f'<figure><a href="{html.escape(name)}">'
            + (
                f'<img loading="lazy" src="{html.escape(name)}" alt="">'
                if name.endswith((".png", ".gif"))
                else html.escape(name)
            )
            + f"</a><figcaption>{html.escape(text)} ({size})</figcaption></figure>"
            for name, text, size in self.entries
        )
        style = (
            "body{font:15px system-ui,sans-serif;margin:20px;display:grid;gap:20px;"
            "grid-template-columns:repeat(auto-fill,minmax(min(420px,100%),1fr))}h1{grid-column:1/-1;font-size:20px;margin:0}"
            "figure{margin:0}img{max-width:100%;border:1px solid #8884}figcaption{color:#666}"
        )
        page = (
            '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(title)}</title><style>{style}</style><h1>{html.escape(title)}</h1>{rows}</html>"
        )
        path = self.out / "index.html"
        path.write_text(page, encoding="utf-8")
        return path


def _scaled(style: Style, scale: ScaleOption) -> dict[str, Any]:
    return {} if style is Style.MASK else {"scale": scale}  # a mask has no colours


def draw_styles(gallery: Gallery, name: str, result: AttentionResult) -> None:
    scale = Scale.ROBUST
    for style in Style:
        picture = result.overlay(style=style, **_scaled(style, scale))
        gallery.picture(f"{name}-style-{style}", f"{name}, style {style}", picture)
    film = result.overlay(weighted=False, alpha=0.5, scale="minmax", fade=0)
    gallery.picture(f"{name}-film", f"{name}, the same opacity everywhere", film)
    for colormap in COLORMAPS:
        picture = result.overlay(colormap=colormap, scale=scale)
        gallery.picture(f"{name}-colors-{colormap}", f"{name}, {colormap}", picture)


def draw_figures(gallery: Gallery, name: str, result: AttentionResult) -> None:
    grid = result.attention.shape
    patches = [(grid[0] // 4, grid[1] // 3), (grid[0] // 2, grid[1] // 2), (3 * grid[0] // 4, 2 * grid[1] // 3)]
    figures: dict[str, tuple[str, Callable[[], Any]]] = {
        "overlay": ("overlay with colour bar", lambda: result.figure(scale=Scale.ROBUST)),
        "photo-map-overlay": (
            "photo, map, overlay",
            lambda: photo_figure(result, scale=Scale.ROBUST),
        ),
        "heads": ("heads of the last block", lambda: heads_figure(result)),
        "heads-first": ("heads of the first block", lambda: heads_figure(result, block=0)),
        "blocks": ("the class token over depth", lambda: blocks_figure(result)),
        "blocks-heads": ("blocks by heads", lambda: blocks_heads_figure(result)),
        "methods": ("all methods", lambda: methods_figure(result)),
        "query": ("one patch", lambda: query_figure(result, patches[1])),
        "queries": ("three patches", lambda: query_figure(result, patches, scale="uniform")),
        "statistics": ("statistics over depth", lambda: statistics_figure(result)),
        "heads-robust": ("heads on a robust scale", lambda: heads_figure(result, scale=Scale.ROBUST)),
    }
    for kind, (text, make) in figures.items():
        gallery.figure(f"{name}-{kind}", f"{name}: {text}", make(), vector=kind in ("photo-map-overlay", "statistics"))


def draw_methods(gallery: Gallery, name: str, result: AttentionResult) -> None:
    """Every method in every style. Scale: robust, for a rollout's sinks."""
    for method, function in METHODS.items():
        shown = replace(
            result,
            patch_map=captioned(function(result.maps)[0].to("cpu"), result.settings.model),
            settings=replace(result.settings, method=method),
        )
        for style in Style:
            picture = shown.overlay(style=style, **_scaled(style, Scale.ROBUST))
            gallery.picture(f"{name}-{method}-{style}", f"{name}, {method}, style {style}, scale robust", picture)
        gallery.figure(f"{name}-{method}-figure", f"{name}, {method}", shown.figure(scale=Scale.ROBUST))


def draw_hard_cases(gallery: Gallery) -> None:
    """Extreme numbers of panels, shapes of photos and lengths of names; the maps are random."""
    long_name = "timm:vit_huge_patch14_clip_224.laion2b_ft_in12k_in1k_with_a_suffix_that_somebody_added_by_hand"
    for width, height, heads in (
        (640, 480, 1),
        (640, 480, 3),
        (480, 640, 12),
        (640, 480, 16),
        (1800, 200, 6),
        (200, 1800, 3),
    ):
        result = made_up(width, height, heads, 2, long_name)
        what = f"{heads} heads over {width} x {height}"
        case = f"hard-{heads}-heads-{width}x{height}"
        gallery.figure(f"{case}-heads", f"{what}: heads", heads_figure(result))
        gallery.figure(f"{case}-triptych", f"{what}: photo, map, overlay", photo_figure(result, scale=Scale.ROBUST))
        gallery.figure(f"{case}-overlay", f"{what}: overlay", result.figure(scale=Scale.UNIFORM))
        gallery.figure(f"{case}-blocks-heads", f"{what}: blocks by heads", blocks_heads_figure(result))
    deep = made_up(640, 480, 16, 24, long_name)
    gallery.figure("hard-24-blocks", "24 blocks", blocks_figure(deep))
    gallery.figure("hard-24-blocks-16-heads", "24 blocks by 16 heads", blocks_heads_figure(deep))
    gallery.figure("hard-24-statistics", "statistics of 24 blocks", statistics_figure(deep))
    grey = Image.open(gallery.out / "hard-24-blocks.png").convert("L")
    gallery.picture("hard-24-blocks-grey", "24 blocks, printed without colours", grey)


def made_up(width: int, height: int, heads: int, blocks: int, model: str) -> AttentionResult:
    """Random softmax rows, as if a model had them."""
    generator = torch.Generator().manual_seed(heads)
    grid = (max(2, round(height / 40)), max(2, round(width / 40)))
    found = [
        BlockAttention(
            f"model.encoder.layers.{number}.self_attn",
            "softmax",
            torch.softmax(3 * torch.randn(1, heads, 1, grid[0] * grid[1] + 1, generator=generator), dim=-1),
            TokenLayout(grid),
            number=(number + 1, blocks),
        )
        for number in range(blocks)
    ]
    maps = AttentionMaps(found, rows=Rows.CLS, readout=Readout(Rows.CLS, "made up"), input_size=(height, width))
    y, x = np.mgrid[:height, :width]
    photo = Image.fromarray(np.stack([y * 255 / height, x * 255 / width, (x + y) % 256], axis=-1).astype(np.uint8))
    settings = ResultSettings(model, block=found[-1].name, rows="cls")
    patch_map = captioned(raw_attention(maps)[0], model)
    return AttentionResult(photo, patch_map, ImageGeometry.identity((height, width)), maps, settings)


def with_gradients(model: VisionModel, photo: Any) -> AttentionResult:
    """A capture for every method. The backbone has no classes, so the score is half the squared norm of its class token."""
    result = attend(model, photo, rows="all")[0]
    pixels = model.preprocess(photo)[0].requires_grad_()
    with AttentionCapture(model.model, rows="all", gradients=True, values=True) as capture:
        score = model.model(pixels).last_hidden_state[:, 0].square().sum() / 2
    torch.autograd.grad(score, pixels)
    return replace(result, maps=capture.maps)


def draw_video(gallery: Gallery, result: AttentionResult) -> None:
    blocks = torch.stack([raw_attention(result.maps, block=block.name).values[0] for block in result.maps])
    frames = [result.image.resize((320, round(320 * result.image.height / result.image.width)))] * len(blocks)
    maps = [np.asarray(Image.fromarray(one.numpy()).resize(frames[0].size)) for one in result.upsample(blocks)]
    for suffix in ("gif", "png"):
        path = overlay_video(
            frames, maps, gallery.out / f"blocks-over-depth.{suffix}", fps=3, scale="uniform", uniform=result.uniform
        )
        gallery.file(path, f"the blocks as an animation ({suffix})")


def write_docs_pictures(folder: Path) -> None:
    """The pictures that README and docs show: the page's own code runs, and the file that it writes is made small."""
    for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        shown = set(re.findall(r"pictures/([\w-]+)\.jpg\)", text))
        made = {name for name in shown if f'"{name}.png"' in text and not (folder / f"{name}.jpg").exists()}
        if made:
            with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
                run_page(text)
                for name in made:
                    _write_small(read_image(f"{name}.png"), folder / f"{name}.jpg")
    _write_small(training_strip(), folder / "training.jpg")


def run_page(text: str) -> None:
    """Run the Python of a page; in the README, the second block says what the names in the first are."""
    first, second, *others = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    Image.fromarray(read_photos()["chelsea"]).save("cat.jpg")
    names: dict[str, Any] = {"__name__": "page", "loader": [(None, None)]}
    for code in [second, first, *others] if text.startswith("# attnhook") else [first, second, *others]:
        exec(compile(code, "page", "exec"), names)  # noqa: S102 (our own page)


def training_strip() -> Image.Image:
    """What `docs/examples/train_plain.py` logs of its first image, from left to right."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, DOCS / "examples" / "train_plain.py", "--steps", "600", "--out", out]
        subprocess.run(command, check=True)  # noqa: S603 (our own script)
        events = EventAccumulator(out, size_guidance={"images": 0})
        events.Reload()
        logged = events.Images("attention/overlay/0")[::3]
    figure, axes = plt.subplots(1, len(logged), figsize=(9, 11 / len(logged) + 0.3), layout="constrained")
    for ax, event in zip(axes, logged, strict=True):
        ax.imshow(Image.open(io.BytesIO(event.encoded_image_string)))
        ax.set(title=f"step {event.step}", xticks=[], yticks=[])
    drawn = io.BytesIO()
    figure.savefig(drawn)
    return Image.open(drawn)


def _write_small(picture: Image.Image, path: Path) -> None:
    picture = picture.convert("RGB")
    picture.thumbnail((WIDTH, WIDTH))
    picture.save(path, quality=82, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} KB", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", default=",".join(PHOTOS), help="names in skimage.data (default: %(default)s)")
    parser.add_argument("--docs", action="store_true", help="write the pictures of README and docs instead")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    if arguments.docs:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_docs_pictures(arguments.out.resolve())
        return 0
    known = read_photos()
    photos = {name: known[name] for name in arguments.photos.split(",")}
    model = load("demo")
    gallery = Gallery(arguments.out)
    results = {name: with_gradients(model, photo) for name, photo in photos.items()}
    for name, result in results.items():
        print(name, flush=True)
        draw_styles(gallery, name, result)
        draw_figures(gallery, name, result)
    draw_methods(gallery, *next(iter(results.items())))
    draw_hard_cases(gallery)
    draw_video(gallery, next(iter(results.values())))
    page = viewer_html([result.scene(name) for name, result in results.items()], model=model.name)
    gallery.file(save_viewer(page, gallery.out / "viewer.html"), "the viewer")
    print(
        f"{gallery.write_index(f'attnhook: {len(gallery.entries)} pictures of {model.name}')}, methods: {', '.join(METHODS)}"
    )
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
