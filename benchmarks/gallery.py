"""Renders every figure, method and style on the demo's photos into one folder with an index page. Look at all of it.

    python benchmarks/gallery.py OUT [--photos chelsea,rocket] [--readme DOCS]

Everything comes from the real backbone of `load("demo")`. `--readme` also writes the pictures that the README shows, small, as JPEGs.
"""

import argparse
import html
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnhook import METHODS, attend, load, overlay_video
from attnhook.attribution.raw_maps import raw_attention
from attnhook.demo import PHOTOS, clipped_range, read_photos
from attnhook.imaging import depth_figure, read_image
from attnhook.options import Style
from attnhook.workflows.pictures import (
    blocks_figure,
    blocks_heads_figure,
    heads_figure,
    methods_figure,
    photo_figure,
    query_figure,
)
from attnhook.workflows.results import AttentionResult, save_image
from attnhook.workflows.viewer.pages import save_viewer, viewer_html

README_WIDTH = 900
COLORMAPS = ("viridis", "magma", "cividis", "turbo")


class Gallery:
    """A folder of pictures and what is said about each."""

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
        """List a file that is there already."""
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


def draw_styles(gallery: Gallery, name: str, result: AttentionResult) -> None:
    scale = clipped_range(result.attention)
    for style in Style:
        gallery.picture(f"{name}-style-{style}", f"{name}, style {style}", result.overlay(style=style, scale=scale))
    gallery.picture(
        f"{name}-weighted", f"{name}, opacity by value", result.overlay(weighted=True, alpha=0.9, scale=scale)
    )
    for colormap in COLORMAPS:
        picture = result.overlay(colormap=colormap, scale=scale, alpha=0.6)
        gallery.picture(f"{name}-colors-{colormap}", f"{name}, {colormap}", picture)


def draw_figures(gallery: Gallery, name: str, result: AttentionResult) -> None:
    grid = result.attention.shape
    patches = [(grid[0] // 4, grid[1] // 3), (grid[0] // 2, grid[1] // 2), (3 * grid[0] // 4, 2 * grid[1] // 3)]
    figures: dict[str, tuple[str, Callable[[], Any]]] = {
        "overlay": ("overlay with colour bar", lambda: result.figure(scale=clipped_range(result.attention))),
        "photo-map-overlay": (
            "photo, map, overlay",
            lambda: photo_figure(result, scale=clipped_range(result.attention)),
        ),
        "heads": ("heads of the last block", lambda: heads_figure(result)),
        "heads-first": ("heads of the first block", lambda: heads_figure(result, block=0)),
        "blocks": ("the class token over depth", lambda: blocks_figure(result)),
        "blocks-heads": ("blocks by heads", lambda: blocks_heads_figure(result)),
        "methods": ("all methods", lambda: methods_figure(result)),
        "query": ("one patch", lambda: query_figure(result, patches[1])),
        "queries": ("three patches", lambda: query_figure(result, patches, scale="uniform")),
        "statistics": ("statistics over depth", lambda: statistics_figure(result)),
    }
    for kind, (text, make) in figures.items():
        gallery.figure(f"{name}-{kind}", f"{name}: {text}", make(), vector=kind in ("photo-map-overlay", "statistics"))


def statistics_figure(result: AttentionResult) -> Any:
    """Statistics of the readout's row, per block and head."""
    rows = torch.stack([raw_attention(result.maps, block=block.name, heads=None)[0] for block in result.maps])
    flat = rows.flatten(2).double()
    outside = 1 - flat.sum(-1)
    entropy = -torch.special.xlogy(flat, flat).sum(-1)
    largest = flat.max(-1).values
    return depth_figure(
        {"entropy of the patches' part (nats)": entropy, "mass outside the patches": outside, "largest patch": largest},
        caption=f"{result.settings['model']}, {result.settings['rows']} row; dots are heads, the line their mean.",
    )


def draw_video(gallery: Gallery, result: AttentionResult) -> None:
    blocks = torch.stack([raw_attention(result.maps, block=block.name)[0] for block in result.maps])
    frames = [result.image.resize((320, round(320 * result.image.height / result.image.width)))] * len(blocks)
    maps = [np.asarray(Image.fromarray(one.numpy()).resize(frames[0].size)) for one in result.upsample(blocks)]
    for suffix in ("gif", "png"):
        path = overlay_video(
            frames, maps, gallery.out / f"blocks-over-depth.{suffix}", fps=3, scale="uniform", uniform=result.uniform
        )
        gallery.file(path, f"the blocks as an animation ({suffix})")


def write_readme_pictures(results: dict[str, AttentionResult], folder: Path) -> None:
    """The pictures that the README shows, as small JPEGs."""
    cat, astronaut = results["chelsea"], results.get("astronaut", results["chelsea"])
    grid = cat.attention.shape
    figures = {
        "photo-map-overlay": photo_figure(cat, scale=clipped_range(cat.attention)),
        "heads": heads_figure(astronaut),
        "query": query_figure(
            cat,
            [(grid[0] // 3, grid[1] // 3), (grid[0] // 2, grid[1] // 2), (grid[0] - 4, 4)],
            photo_title=None,
            scale="uniform",
        ),
        "depth": blocks_figure(astronaut),
    }
    for name, figure in figures.items():
        temporary = folder / f"{name}.png"
        figure.savefig(temporary, dpi=README_WIDTH / figure.get_figwidth())
        read_image(temporary).save(folder / f"{name}.jpg", quality=82, optimize=True)
        temporary.unlink()
        print(f"{folder / name}.jpg: {(folder / f'{name}.jpg').stat().st_size / 1e3:.0f} KB")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", default=",".join(PHOTOS), help="names in skimage.data (default: %(default)s)")
    parser.add_argument("--readme", type=Path, help="folder for the README's pictures")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    known = read_photos()
    photos = {name: known[name] for name in arguments.photos.split(",")}
    model = load("demo")
    gallery = Gallery(arguments.out)
    results = {name: attend(model, photo, rows="all")[0] for name, photo in photos.items()}
    for name, result in results.items():
        print(name, flush=True)
        draw_styles(gallery, name, result)
        draw_figures(gallery, name, result)
    draw_video(gallery, next(iter(results.values())))
    page = viewer_html([result.scene(name) for name, result in results.items()], model=model.name)
    gallery.file(save_viewer(page, gallery.out / "viewer.html"), "the viewer")
    print(
        f"{gallery.write_index(f'attnhook: {len(gallery.entries)} pictures of {model.name}')}, methods: {', '.join(METHODS)}"
    )
    if arguments.readme:
        arguments.readme.mkdir(parents=True, exist_ok=True)
        write_readme_pictures(results, arguments.readme)
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
