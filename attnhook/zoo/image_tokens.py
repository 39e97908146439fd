"""Where an image's tokens lie: the grids that they tile, of one input or of several side by side."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnhook.options import NO_OVERLAP, Overlap, Size


@dataclass(frozen=True, eq=False)
class ImagePart:
    """Tokens of one image that tile one grid.

    Attributes:
        name: "image", "overview", "tiles", or "tile 1" and so on where their arrangement is unknown.
        index: Which of the image's tokens lies in each cell, `(h, w)` int64.
        inputs: Which of the inputs that the preprocessing made of the photo it shows, row by row.
        arrangement: Rows and columns of those inputs.
        input_size: Height and width of the inputs side by side, in pixels.
        area: Top, left, height and width of what the grid covers of them, in pixels.
        overlap: How its cells lie if they overlap or reach into padding.
    """

    name: str
    index: Tensor
    inputs: tuple[int, ...]
    arrangement: Size
    input_size: Size
    area: tuple[int, int, int, int]
    overlap: Overlap = NO_OVERLAP


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """The tokens of one image.

    Attributes:
        keys: Their positions among the keys, ascending int64: in the sequence, or for cross-attention in the encoder's output.
        parts: The grids that they tile; tokens in none of them (ends of rows, a class token) show no patch.
        inputs: How many inputs the preprocessing made of the photo; 0 if unknown.
    """

    keys: Tensor
    parts: tuple[ImagePart, ...]
    inputs: int = 1


def whole(grid: Size, pixels: Size, patch: Size, *, first: int = 0, name: str = "image", number: int = 0) -> ImagePart:
    """A part that is one input, patches row by row from the token `first` on."""
    index = torch.arange(first, first + grid[0] * grid[1]).reshape(grid)
    return ImagePart(name, index, (number,), (1, 1), pixels, (0, 0, grid[0] * patch[0], grid[1] * patch[1]))


def cut_images(
    positions: Sequence[Tensor], parts_of: Callable[[int], tuple[int, tuple[ImagePart, ...], int]]
) -> list[list[ImageTokens]]:
    """Cut each prompt's image tokens into images; `parts_of` gives the length, parts and inputs of the image with that number in the batch."""
    found: list[list[ImageTokens]] = []
    numbers = itertools.count()
    for keys in positions:
        images = []
        start = 0
        while start < len(keys):
            length, parts, inputs = parts_of(next(numbers))
            images.append(ImageTokens(keys[start : start + length], parts, inputs))
            start += length
        found.append(images)
    return found


def tiled(grid: Size, pixels: Size, step: Size, tiles: int, arrangement: Size | None) -> tuple[ImagePart, ...]:
    """Tiles of one grid each, the overview last; joined if their arrangement is known."""
    length = grid[0] * grid[1]
    if tiles == 1:
        return (whole(grid, pixels, step),)
    overview = whole(grid, pixels, step, first=(tiles - 1) * length, name="overview", number=tiles - 1)
    if arrangement is None or arrangement[0] * arrangement[1] != tiles - 1:
        return (
            overview,
            *(whole(grid, pixels, step, first=n * length, name=f"tile {n + 1}", number=n) for n in range(tiles - 1)),
        )
    return joined_tiles(grid, pixels, arrangement), overview


def joined_tiles(grid: Size, pixels: Size, arrangement: Size, *, name: str = "tiles", first: int = 0) -> ImagePart:
    """Tiles joined to one grid; in each, patches from the token `first` on."""
    (rows, columns), each = arrangement, first + grid[0] * grid[1]
    index = torch.arange(rows * columns * each).reshape(rows, columns, each)[..., first:]
    joined = index.reshape(rows, columns, *grid).transpose(1, 2).reshape(rows * grid[0], columns * grid[1])
    size = (rows * pixels[0], columns * pixels[1])
    return ImagePart(name, joined, tuple(range(rows * columns)), arrangement, size, (0, 0, *size))


def unpacked(
    packed: Tensor, grid: Size, pixels: Size, tiles: Size, *, alone: bool
) -> tuple[int, tuple[ImagePart, ...], int]:
    """Length, parts and number of inputs of an image whose rows and columns of patches were `packed`, `(tokens, 2)`, -1 at ends of rows."""
    length, patch = grid[0] * grid[1], (pixels[0] / grid[0], pixels[1] / grid[1])
    index = torch.arange(length).reshape(grid)
    overview = ImagePart("overview" if alone else "image", index, (0,), (1, 1), pixels, (0, 0, *pixels))
    if not alone:
        return len(packed), (overview,), 1
    ends = (packed[length:, 0] < 0).nonzero()[:, 0]
    width = int(ends[0])
    rest = packed[length:].reshape(-1, width + 1, 2)
    index = torch.arange(length, len(packed)).reshape(-1, width + 1)[:, :-1]
    edges = []
    for axis, line in enumerate((rest[:, 0, 0], rest[0, :-1, 1])):
        step = float(line[-1] - line[0]) / max(len(line) - 1, 1) or 1.0
        edges.append([round((float(line[n]) + 0.5 + side * step / 2) * patch[axis]) for n, side in ((0, -1), (-1, 1))])
    (top, bottom), (left, right) = edges
    size, count = (tiles[0] * pixels[0], tiles[1] * pixels[1]), tiles[0] * tiles[1]
    area = (top, left, bottom - top, right - left)
    joined = ImagePart("tiles", index, tuple(range(1, count + 1)), tiles, size, area)
    return len(packed), (joined, overview), count + 1
